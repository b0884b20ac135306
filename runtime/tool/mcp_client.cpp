#include "runtime/tool/mcp_client.h"

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"
#include "runtime/tool/arguments.h"
#include "runtime/tool/mcp_content.h"

namespace mainstay {

namespace json = boost::json;

namespace {

constexpr std::string_view newest_version = "2025-11-25";
constexpr std::string_view batch_version = "2025-03-26";  // the only revision with JSON-RPC batches
constexpr std::array<std::string_view, 4> known_versions{newest_version, "2025-06-18", batch_version, "2024-11-05"};
constexpr size_t given_up_max = 1024;
constexpr size_t name_bytes_max = 128;
constexpr size_t cursor_bytes_max = 4096;
constexpr size_t message_bytes_max = 2048;      // of a server's error that we pass on
constexpr size_t answers_queued_max = 1 << 20;  // bytes of answers to a server that asks and does not read
constexpr uint64_t second_us = 1'000'000;

std::string_view word(const json::object& object, std::string_view key) {
    const auto* value = object.if_contains(key);
    return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view{};
}

bool flag(const json::object& object, std::string_view key) {
    const auto* value = object.if_contains(key);
    return value && value->is_bool() && value->get_bool();
}

/// Cut at a character's first byte, so that the text stays UTF-8.
std::string cut(std::string_view text, size_t bytes_max) {
    if (text.size() <= bytes_max) return std::string(text);
    return std::string(text.substr(0, utf8_floor(text, bytes_max))) + "...";
}

std::string error_text(const RpcMessage& message) {
    return cut(message.error_message, message_bytes_max) + " (" + std::to_string(message.error_code) + ")";
}

ToolOutcome outcome_of(ToolOutcome::Kind kind, ErrorClass error_class, ErrorCode code, std::string message) {
    ToolOutcome outcome;
    outcome.kind = kind;
    outcome.error_class = error_class;
    outcome.code = code;
    outcome.message = std::move(message);
    return outcome;
}

EffectClass hint_of(const json::object& tool) {
    const auto* value = tool.if_contains("annotations");
    const auto* annotations = value ? value->if_object() : nullptr;
    if (!annotations) return EffectClass::once;
    if (flag(*annotations, "readOnlyHint")) return EffectClass::read;
    return flag(*annotations, "idempotentHint") ? EffectClass::idempotent : EffectClass::once;
}

std::optional<McpTool> read_tool(const json::value& value) {
    const auto* object = value.if_object();
    if (!object) return std::nullopt;
    McpTool tool;
    tool.name = word(*object, "name");
    if (tool.name.empty() || tool.name.size() > name_bytes_max) return std::nullopt;
    tool.description = word(*object, "description");
    if (tool.description.empty()) tool.description = word(*object, "title");
    const auto* schema = object->if_contains("inputSchema");
    // The model's API wants an object schema; a server without one takes no parameters that we could tell it of.
    tool.input_schema = schema && schema->is_object() ? json::serialize(*schema) : R"({"type":"object"})";
    tool.hint = hint_of(*object);
    return tool;
}

}  // namespace

McpClient::McpClient(uint64_t start_deadline_us)
    : start_deadline_us_(start_deadline_us), lines_(limits::tool_line_bytes_max) {
    initialize_request_ = next_request_++;
    json::object capabilities;
    capabilities["roots"] = json::object{{"listChanged", false}};
    json::object params;
    params["protocolVersion"] = newest_version;
    params["capabilities"] = std::move(capabilities);
    params["clientInfo"] = json::object{{"name", "mainstay"}, {"version", "0.1.0"}};
    push(rpc_request(initialize_request_, "initialize", std::move(params)));
}

// --- what the owner asks ------------------------------------------------------------------------------------------

void McpClient::list(uint64_t deadline_us, McpOutputs& out) {
    INVARIANT(state_ != State::closed, "a closed connection is not used");
    if (list_) return;
    list_.emplace();
    list_->deadline_us = deadline_us;
    list_->tools = std::make_shared<std::vector<McpTool>>();
    if (state_ != State::ready) return;
    if (has_tools_) {
        ask_page({});
    } else {
        end_list(std::move(list_->tools), {}, out);
    }
}

void McpClient::call(McpCall call, uint64_t now_us, McpOutputs& out) {
    INVARIANT(state_ != State::closed, "a closed connection is not used");
    INVARIANT(!request_of_.contains(call.call_id), "a call id names one call");
    using Kind = ToolOutcome::Kind;
    auto refuse = [&](ErrorClass error_class, ErrorCode code, std::string message) {
        out.settled.push_back({call.call_id, outcome_of(Kind::failed, error_class, code, std::move(message))});
    };
    if (queued_bytes_ + call.arguments.size() > limits::tool_queue_bytes_max) {
        return refuse(ErrorClass::overloaded, ErrorCode::tool_unavailable,
                      "More than tool_queue_bytes_max = " + std::to_string(limits::tool_queue_bytes_max) +
                          " bytes wait for the tool server.");
    }
    if (auto arguments = parse_arguments(call.arguments); !arguments) {
        return refuse(ErrorClass::invalid, ErrorCode::invalid_request, arguments.error().message);
    }
    const int64_t request = next_request_++;
    request_of_[call.call_id] = request;
    auto& pending = pending_[request];
    pending.call = std::move(call);
    pending.since_us = now_us;
    if (state_ == State::ready) {
        frame(request, pending);
    } else {
        queued_bytes_ += pending.call.arguments.size();
    }
}

void McpClient::cancel(uint64_t call_id, uint64_t now_us, McpOutputs& out) {
    const auto found = request_of_.find(call_id);
    if (found != request_of_.end()) give_up(pending_.find(found->second), "cancelled", false, now_us, out);
}

void McpClient::expire(uint64_t now_us, McpOutputs& out) {
    if (failure_) return;
    if (state_ == State::starting && now_us >= start_deadline_us_) {
        return fail("The tool server did not answer initialize in time.", ErrorClass::timeout, ErrorCode::tool_timeout);
    }
    if (list_ && now_us >= list_->deadline_us) {
        // A late page is counted as an answer to nothing.
        end_list(nullptr, "did not answer tools/list in time", out);
    }
    std::vector<int64_t> due;
    for (const auto& [request, pending] : pending_) {
        if (now_us >= pending.call.deadline_us) due.push_back(request);
    }
    for (const int64_t request : due) give_up(pending_.find(request), "timed out", true, now_us, out);
}

uint64_t McpClient::next_deadline_us() const {
    uint64_t next = state_ == State::starting ? start_deadline_us_ : UINT64_MAX;
    if (list_) next = std::min(next, list_->deadline_us);
    for (const auto& [request, pending] : pending_) next = std::min(next, pending.call.deadline_us);
    return next;
}

// --- bytes out ----------------------------------------------------------------------------------------------------

std::string_view McpClient::output() const {
    if (frames_.empty()) return {};
    return std::string_view(frames_.front().bytes).substr(front_written_);
}

void McpClient::wrote(size_t count) {
    while (count > 0) {
        INVARIANT(!frames_.empty(), "only offered bytes are taken");
        auto& front = frames_.front();
        if (front_written_ == 0 && front.request != 0) {
            // The newline does not count: a reader that met the end of the stream may take a line without it.
            pending_.at(front.request).end = written_ + front.bytes.size() - 1;
            front.request = 0;  // from here on the call may be given up, and the frame still goes out whole
        }
        const size_t taken = std::min(count, front.bytes.size() - front_written_);
        front_written_ += taken;
        written_ += taken;
        count -= taken;
        if (front_written_ < front.bytes.size()) continue;
        queued_bytes_ -= front.bytes.size();
        frames_.pop_front();
        front_written_ = 0;
    }
}

void McpClient::push(std::string bytes, int64_t request) {
    queued_bytes_ += bytes.size();
    frames_.push_back({std::move(bytes), request});
}

void McpClient::frame(int64_t request, Pending& pending) {
    auto arguments = parse_arguments(pending.call.arguments);
    INVARIANT(arguments.ok(), "the arguments were read when the call was taken");
    json::object meta;
    meta["progressToken"] = request;
    if (!pending.call.idempotency_key.empty()) meta["mainstay/idempotencyKey"] = pending.call.idempotency_key;
    json::object params;
    params["name"] = pending.call.name;
    params["arguments"] = std::move(*arguments);
    params["_meta"] = std::move(meta);
    pending.framed = true;
    pending.call.arguments.clear();
    pending.call.arguments.shrink_to_fit();
    push(rpc_request(request, "tools/call", std::move(params)), request);
}

// --- the ends of a call -------------------------------------------------------------------------------------------

void McpClient::settle(PendingMap::iterator at, ToolOutcome outcome, uint64_t now_us, McpOutputs& out) {
    if (!at->second.framed) queued_bytes_ -= at->second.call.arguments.size();
    outcome.duration_micros = now_us - std::min(now_us, at->second.since_us);
    out.settled.push_back({at->second.call.call_id, std::move(outcome)});
    request_of_.erase(at->second.call.call_id);
    pending_.erase(at);
}

bool McpClient::maybe_delivered(const Pending& pending, uint64_t delivered) const { return delivered >= pending.end; }

void McpClient::give_up(PendingMap::iterator at, const char* why, bool timed_out, uint64_t now_us, McpOutputs& out) {
    using Kind = ToolOutcome::Kind;
    const int64_t request = at->first;
    const bool begun = at->second.end != UINT64_MAX;
    const ErrorCode late = timed_out ? ErrorCode::tool_timeout : ErrorCode::tool_unavailable;
    if (!begun) {
        const auto queued =
            std::find_if(frames_.begin(), frames_.end(), [&](const Frame& one) { return one.request == request; });
        if (queued != frames_.end()) {
            queued_bytes_ -= queued->bytes.size();
            frames_.erase(queued);
        }
        return settle(at,
                      outcome_of(Kind::failed, timed_out ? ErrorClass::timeout : ErrorClass::transient, late,
                                 std::string("The call ") + why + " before it was sent; the tool did not run."),
                      now_us, out);
    }
    json::object params;
    params["requestId"] = request;
    params["reason"] = why;
    push(rpc_notification("notifications/cancelled", std::move(params)));
    if (given_up_set_.insert(request).second) given_up_.push_back(request);
    if (given_up_.size() > given_up_max) {
        given_up_set_.erase(given_up_.front());
        given_up_.pop_front();
    }
    settle(at,
           outcome_of(Kind::lost, timed_out ? ErrorClass::timeout : ErrorClass::lost,
                      timed_out ? ErrorCode::tool_timeout : ErrorCode::tool_outcome_unknown,
                      std::string("The call ") + why + " after it was sent; whether the tool ran is not known."),
           now_us, out);
}

void McpClient::close(std::string_view reason, ErrorClass error_class, ErrorCode code, size_t unread, uint64_t now_us,
                      McpOutputs& out) {
    using Kind = ToolOutcome::Kind;
    state_ = State::closed;
    const uint64_t delivered = written_ - std::min<uint64_t>(written_, unread);
    const std::string text(reason);
    while (!pending_.empty()) {
        const auto at = pending_.begin();
        if (maybe_delivered(at->second, delivered)) {
            settle(at, outcome_of(Kind::lost, ErrorClass::lost, ErrorCode::tool_outcome_unknown, text), now_us, out);
        } else {
            settle(at, outcome_of(Kind::failed, error_class, code, text + " The tool did not run."), now_us, out);
        }
    }
    if (list_) end_list(nullptr, text, out);
    frames_.clear();
    front_written_ = 0;
    queued_bytes_ = 0;
}

void McpClient::fail(std::string reason, ErrorClass error_class, ErrorCode code) {
    if (failure_) return;
    failure_ = std::move(reason);
    failure_class_ = error_class;
    failure_code_ = code;
}

// --- bytes in -----------------------------------------------------------------------------------------------------

void McpClient::receive(std::string_view bytes, uint64_t now_us, McpOutputs& out) {
    if (failure_ || state_ == State::closed) return;
    const bool whole = lines_.feed(bytes, [&](std::string_view line) { return on_line(line, now_us, out); });
    if (!whole && !failure_) {
        fail("The tool server sent a line longer than tool_line_bytes_max = " +
                 std::to_string(limits::tool_line_bytes_max) + " bytes.",
             ErrorClass::protocol, ErrorCode::tool_protocol_error);
    }
}

bool McpClient::on_line(std::string_view line, uint64_t now_us, McpOutputs& out) {
    if (line.find_first_not_of(" \t") == std::string_view::npos) return true;
    RpcLine read = parse_rpc_line(line, protocol_version_ == batch_version);
    // Servers print banners and log lines to the wrong stream; some of that is borne, a stream of it is not.
    counters_.bad_lines += read.bad;
    if (counters_.bad_lines > limits::tool_bad_lines_max) {
        fail("The tool server sent more than tool_bad_lines_max = " + std::to_string(limits::tool_bad_lines_max) +
                 " lines that are no JSON-RPC message.",
             ErrorClass::protocol, ErrorCode::tool_protocol_error);
    }
    for (auto& message : read.messages) {
        if (failure_) break;
        on_message(message, now_us, out);
    }
    return !failure_;
}

void McpClient::on_message(RpcMessage& message, uint64_t now_us, McpOutputs& out) {
    switch (message.kind) {
        case RpcMessage::Kind::request:
        case RpcMessage::Kind::bad_request: return on_request(message);
        case RpcMessage::Kind::notification: return on_notification(message, now_us, out);
        case RpcMessage::Kind::result:
        case RpcMessage::Kind::error: return on_answer(message, now_us, out);
    }
}

void McpClient::on_request(const RpcMessage& message) {
    // Answers wait behind requests; the bound is on top of what those may take.
    if (queued_bytes_ > limits::tool_queue_bytes_max + answers_queued_max) {
        return fail("The tool server asks and does not read the answers.", ErrorClass::protocol,
                    ErrorCode::tool_protocol_error);
    }
    if (message.kind == RpcMessage::Kind::bad_request) {
        ++counters_.refused_requests;
        return push(rpc_error(*message.id, rpc_invalid_request, "Invalid request"));
    }
    if (message.method == "ping") return push(rpc_result(*message.id, {}));
    if (message.method == "roots/list") return push(rpc_result(*message.id, {{"roots", json::array{}}}));
    ++counters_.refused_requests;
    push(rpc_error(*message.id, rpc_method_not_found, "Method not found"));
}

void McpClient::on_notification(const RpcMessage& message, uint64_t now_us, McpOutputs& out) {
    ++counters_.notifications;
    if (now_us - window_us_ >= second_us) {
        window_us_ = now_us;
        window_count_ = 0;
    }
    if (++window_count_ > limits::tool_notifications_per_second_max) {
        return fail("The tool server sent more than tool_notifications_per_second_max = " +
                        std::to_string(limits::tool_notifications_per_second_max) + " notifications within a second.",
                    ErrorClass::protocol, ErrorCode::tool_protocol_error);
    }
    if (message.method == "notifications/tools/list_changed") out.tools_changed = true;
    // Progress, log messages and changes of what we do not use say nothing that we act on.
}

void McpClient::on_answer(RpcMessage& message, uint64_t now_us, McpOutputs& out) {
    const auto* id = message.id ? std::get_if<int64_t>(&*message.id) : nullptr;
    if (!id) {
        ++counters_.unknown_answers;
        return;
    }
    if (state_ == State::starting && *id == initialize_request_) return on_initialized(message, out);
    if (list_ && list_->request != 0 && *id == list_->request) return on_page(message, out);
    const auto at = pending_.find(*id);
    // An answer that overtakes its question is no answer.
    if (at == pending_.end() || at->second.end > written_) {
        ++(given_up_set_.contains(*id) ? counters_.late_answers : counters_.unknown_answers);
        return;
    }
    ++answers_;
    if (message.kind == RpcMessage::Kind::result) return settle(at, read_tool_result(message.body), now_us, out);
    // -32600 to -32602 say that the request was refused. Anything else may have come from within the tool, after half
    // of its work: no answer at all would say as much about what it did.
    const bool refused = message.error_code <= rpc_invalid_request && message.error_code >= rpc_invalid_params;
    std::string text = "The tool server answered with an error: " + error_text(message);
    if (!refused) text += "; whether the tool ran is not known.";
    settle(at,
           outcome_of(refused ? ToolOutcome::Kind::failed : ToolOutcome::Kind::lost,
                      refused ? ErrorClass::invalid : ErrorClass::protocol, ErrorCode::tool_protocol_error,
                      std::move(text)),
           now_us, out);
}

void McpClient::on_initialized(RpcMessage& message, McpOutputs& out) {
    if (message.kind == RpcMessage::Kind::error) {
        return fail("The tool server refused to initialize: " + error_text(message), ErrorClass::protocol,
                    ErrorCode::tool_protocol_error);
    }
    const auto* result = message.body.if_object();
    const auto version = result ? word(*result, "protocolVersion") : std::string_view{};
    if (std::find(known_versions.begin(), known_versions.end(), version) == known_versions.end()) {
        return fail("The tool server speaks MCP revision \"" + cut(version, 64) + "\", which is not supported.",
                    ErrorClass::protocol, ErrorCode::tool_protocol_error);
    }
    protocol_version_ = version;
    const auto* capabilities = result->if_contains("capabilities");
    has_tools_ = capabilities && capabilities->is_object() && capabilities->get_object().contains("tools");
    state_ = State::ready;
    push(rpc_notification("notifications/initialized", {}));
    for (auto& [request, pending] : pending_) {
        queued_bytes_ -= pending.call.arguments.size();
        frame(request, pending);
    }
    if (!list_) return;
    if (has_tools_) {
        ask_page({});
    } else {
        end_list(std::move(list_->tools), {}, out);
    }
}

// --- tools/list ---------------------------------------------------------------------------------------------------

void McpClient::ask_page(std::string_view cursor) {
    list_->request = next_request_++;
    ++list_->pages;
    json::object params;
    if (!cursor.empty()) params["cursor"] = cursor;
    push(rpc_request(list_->request, "tools/list", std::move(params)));
}

void McpClient::end_list(McpTools tools, std::string failure, McpOutputs& out) {
    list_.reset();
    out.listed = true;
    out.tools = std::move(tools);
    out.list_failure = std::move(failure);
}

void McpClient::on_page(RpcMessage& message, McpOutputs& out) {
    if (message.kind == RpcMessage::Kind::error) {
        return end_list(nullptr, "answered tools/list with an error: " + error_text(message), out);
    }
    const auto* result = message.body.if_object();
    const auto* tools = result ? result->if_contains("tools") : nullptr;
    if (!tools || !tools->is_array()) return end_list(nullptr, "answered tools/list without tools", out);
    for (const auto& one : tools->get_array()) {
        auto tool = read_tool(one);
        if (!tool) {
            ++counters_.bad_lines;
            continue;
        }
        list_->bytes += tool->name.size() + tool->description.size() + tool->input_schema.size();
        if (list_->tools->size() == limits::tools_per_server_max || list_->bytes > limits::tool_list_bytes_max) {
            return end_list(nullptr,
                            "lists more than tools_per_server_max = " + std::to_string(limits::tools_per_server_max) +
                                " tools or tool_list_bytes_max = " + std::to_string(limits::tool_list_bytes_max) +
                                " bytes",
                            out);
        }
        list_->tools->push_back(std::move(*tool));
    }
    const auto cursor = word(*result, "nextCursor");
    if (cursor.empty()) {
        ++answers_;
        return end_list(std::move(list_->tools), {}, out);
    }
    if (list_->pages == limits::tool_list_pages_max || cursor.size() > cursor_bytes_max) {
        return end_list(nullptr,
                        "lists its tools in more than tool_list_pages_max = " +
                            std::to_string(limits::tool_list_pages_max) + " pages",
                        out);
    }
    ask_page(cursor);
}

}  // namespace mainstay
