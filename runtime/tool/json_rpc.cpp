#include "runtime/tool/json_rpc.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "runtime/base/limits.h"

namespace mainstay {

namespace json = boost::json;

namespace {

constexpr size_t id_bytes_max = 256;
constexpr size_t method_bytes_max = 256;

std::optional<RpcId> id_of(const json::value& value) {
    if (value.is_int64()) return RpcId(value.get_int64());
    if (value.is_string() && value.get_string().size() <= id_bytes_max) {
        return RpcId(std::string(value.get_string()));
    }
    return std::nullopt;  // 1.0, null, unsigned beyond 63 bits
}

bool read_error(const json::value& value, RpcMessage& message) {
    const auto* error = value.if_object();
    const auto* code = error ? error->if_contains("code") : nullptr;
    const auto* text = error ? error->if_contains("message") : nullptr;
    if (!code || !code->is_int64() || !text || !text->is_string()) return false;
    message.error_code = code->get_int64();
    message.error_message = text->get_string();
    return true;
}

/// A message with a method: a request or a notification. Nothing where it cannot even be answered.
std::optional<RpcMessage> read_question(json::object& object, const json::value& method) {
    RpcMessage message;
    const auto* id = object.if_contains("id");
    if (id) {
        message.id = id_of(*id);
        if (!message.id) return std::nullopt;
    }
    message.kind = id ? RpcMessage::Kind::request : RpcMessage::Kind::notification;
    auto* params = object.if_contains("params");
    const bool well_formed = method.is_string() && !method.get_string().empty() &&
                             method.get_string().size() <= method_bytes_max &&
                             (!params || params->is_object() || params->is_array()) && !object.contains("result") &&
                             !object.contains("error");
    if (!well_formed) {
        if (!id) return std::nullopt;
        message.kind = RpcMessage::Kind::bad_request;
        return message;
    }
    message.method = method.get_string();
    if (params) message.body = std::move(*params);
    return message;
}

std::optional<RpcMessage> read_answer(json::object& object) {
    RpcMessage message;
    auto* result = object.if_contains("result");
    const auto* error = object.if_contains("error");
    const auto* id = object.if_contains("id");
    if (!id || (result != nullptr) == (error != nullptr)) return std::nullopt;
    message.id = id_of(*id);
    if (result) {
        if (!message.id) return std::nullopt;
        message.kind = RpcMessage::Kind::result;
        message.body = std::move(*result);
        return message;
    }
    // An error may have a null id: the peer could not read ours.
    if (!message.id && !id->is_null()) return std::nullopt;
    message.kind = RpcMessage::Kind::error;
    if (!read_error(*error, message)) return std::nullopt;
    return message;
}

std::optional<RpcMessage> read_message(json::value& value) {
    auto* object = value.if_object();
    if (!object) return std::nullopt;
    const auto* version = object->if_contains("jsonrpc");
    if (!version || !version->is_string() || version->get_string() != "2.0") return std::nullopt;
    if (const auto* method = object->if_contains("method")) {
        const json::value copy = *method;  // params are moved out of the object that holds it
        return read_question(*object, copy);
    }
    return read_answer(*object);
}

json::value id_value(const RpcId& id) {
    if (const auto* number = std::get_if<int64_t>(&id)) return *number;
    return json::string(std::get<std::string>(id));
}

std::string line_of(json::object message) {
    message["jsonrpc"] = "2.0";
    return json::serialize(message) + "\n";
}

}  // namespace

RpcLine parse_rpc_line(std::string_view line, bool batch_allowed) {
    RpcLine read;
    json::parse_options options;
    options.max_depth = limits::json_depth_max;
    boost::system::error_code problem;
    json::value value = json::parse(line, problem, {}, options);
    if (problem) {
        read.bad = 1;
        return read;
    }
    auto take = [&](json::value& one) {
        if (auto message = read_message(one)) {
            read.messages.push_back(std::move(*message));
        } else {
            ++read.bad;
        }
    };
    auto* batch = value.if_array();
    if (batch && batch_allowed && !batch->empty()) {
        for (auto& one : *batch) take(one);
    } else {
        take(value);
    }
    return read;
}

std::string rpc_request(int64_t id, std::string_view method, json::object params) {
    json::object message;
    message["id"] = id;
    message["method"] = method;
    message["params"] = std::move(params);
    return line_of(std::move(message));
}

std::string rpc_notification(std::string_view method, json::object params) {
    json::object message;
    message["method"] = method;
    if (!params.empty()) message["params"] = std::move(params);
    return line_of(std::move(message));
}

std::string rpc_result(const RpcId& id, json::object result) {
    json::object message;
    message["id"] = id_value(id);
    message["result"] = std::move(result);
    return line_of(std::move(message));
}

std::string rpc_error(const RpcId& id, int64_t code, std::string_view text) {
    json::object message;
    message["id"] = id_value(id);
    message["error"] = json::object{{"code", code}, {"message", text}};
    return line_of(std::move(message));
}

}  // namespace mainstay
