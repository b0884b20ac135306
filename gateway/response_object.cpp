#include "gateway/response_object.h"

#include <boost/json.hpp>

#include "gateway/item_object.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"
#include "runtime/base/error_code.h"
#include "runtime/base/invariant.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace json = boost::json;

constexpr size_t constants_max = 256;  // agents whose constant part is kept; beyond, all are forgotten

/// OpenAI's two reasons, and our own codes where there is no word of theirs.
std::string_view incomplete_reason(const Turn& turn) {
    if (turn.code == error_name(ErrorCode::token_limit_reached)) return "max_output_tokens";
    if (turn.code == error_name(ErrorCode::content_filtered)) return "content_filter";
    return turn.code;
}

void append_usage(JsonWriter& writer, const Usage& usage) {
    writer.raw("{\"input_tokens\":").number(uint64_t{usage.input_tokens});
    writer.raw(",\"input_tokens_details\":{\"cached_tokens\":").number(uint64_t{usage.cached_tokens});
    writer.raw("},\"output_tokens\":").number(uint64_t{usage.output_tokens});
    writer.raw(",\"output_tokens_details\":{\"reasoning_tokens\":").number(uint64_t{usage.reasoning_tokens});
    writer.raw("},\"total_tokens\":").number(uint64_t{usage.input_tokens} + usage.output_tokens);
    if (usage.device_micros != 0) {
        // Of devices of our own; modelled where `simulated` says so, and power is assumed then.
        writer.raw(",\"device_seconds\":").number(double(usage.device_micros) / 1e6);
        writer.raw(",\"joules\":").number(double(usage.micro_joules) / 1e6);
    }
    if (usage.simulated) writer.raw(",\"simulated\":true");
    writer.raw("}");
}

/// The keys that options and agent decide. `options` may be null.
void append_settings(JsonWriter& writer, const AgentSpec* agent, const json::object* options) {
    const auto echo = [&](std::string_view key, std::string_view fallback) {
        writer.raw(",\"").raw(key).raw("\":");
        const auto* value =
            options != nullptr ? options->if_contains(json::string_view(key.data(), key.size())) : nullptr;
        if (value != nullptr)
            append_json(writer.out(), *value);
        else
            writer.raw(fallback);
    };
    const auto number_text = [](std::optional<double> value, double fallback) {
        std::string text;
        JsonWriter(text).number(value.value_or(fallback));
        return text;
    };
    echo("instructions", "null");
    echo("tools", "[]");
    echo("tool_choice", "\"auto\"");
    echo("truncation", agent == nullptr || agent->truncate_history ? "\"auto\"" : "\"disabled\"");
    echo("parallel_tool_calls", "true");
    echo("text", "{\"format\":{\"type\":\"text\"}}");
    echo("top_p", number_text(agent != nullptr ? agent->top_p : std::nullopt, 1));
    writer.raw(",\"presence_penalty\":0,\"frequency_penalty\":0");
    echo("top_logprobs", "0");
    echo("temperature", number_text(agent != nullptr ? agent->temperature : std::nullopt, 1));
    echo("reasoning", "{\"effort\":null,\"summary\":null}");
    echo("max_output_tokens", "null");
    echo("max_tool_calls", "null");
    echo("store", "true");
    echo("background", "false");
    echo("service_tier", "\"default\"");
    echo("metadata", "{}");
    echo("safety_identifier", "null");
    echo("prompt_cache_key", "null");
    if (options != nullptr && options->contains("user")) echo("user", "null");
}

}  // namespace

std::string_view response_status(TurnStatus status) {
    switch (status) {
        case TurnStatus::queued: return "queued";
        case TurnStatus::in_progress: return "in_progress";
        case TurnStatus::completed: return "completed";
        case TurnStatus::failed: return "failed";
        case TurnStatus::incomplete: return "incomplete";
        case TurnStatus::cancelled: return "cancelled";
    }
    INVARIANT(false, "every status has a word");
}

ResponseId response_id(const TurnAnswer& answer) { return {answer.session, answer.turn->no}; }

void ResponseObject::append(std::string& out, const TurnAnswer& answer) {
    append(out, answer, response_status(answer.turn->status), true);
}

void ResponseObject::append_started(std::string& out, const TurnAnswer& answer, std::string_view status) {
    append(out, answer, status, false);
}

void ResponseObject::append(std::string& out, const TurnAnswer& answer, std::string_view status, bool with_output) {
    const Turn& turn = *answer.turn;
    const bool settled = with_output && is_settled(turn.status);
    JsonWriter writer(out);
    writer.raw("{\"id\":").id(response_id(answer));
    writer.raw(",\"object\":\"response\",\"created_at\":").number(turn.created_at / 1000);
    writer.raw(",\"completed_at\":");
    settled ? writer.number(turn.settled_at / 1000) : writer.raw("null");
    writer.raw(",\"status\":\"").raw(status).raw("\",\"error\":");
    if (settled && turn.status == TurnStatus::failed) {
        writer.raw("{\"code\":").string(turn.code.empty() ? error_name(ErrorCode::internal) : turn.code);
        writer.raw(",\"message\":").string(turn.message).raw("}");
    } else {
        writer.raw("null");
    }
    writer.raw(",\"incomplete_details\":");
    if (settled && turn.status == TurnStatus::incomplete)
        writer.raw("{\"reason\":").string(incomplete_reason(turn)).raw("}");
    else
        writer.raw("null");
    writer.raw(",\"model\":").string(turn.agent).raw(",\"previous_response_id\":");
    answer.previous ? writer.id(*answer.previous) : writer.raw("null");
    writer.raw(",\"conversation\":");
    answer.conversation ? writer.raw("{\"id\":").id(answer.session).raw("}") : writer.raw("null");
    writer.raw(",\"output\":[");
    if (with_output) {
        for (size_t i = turn.input_count; i < turn.items.size(); ++i) {
            if (i > turn.input_count) writer.raw(",");
            append_item(out, *turn.items[i], {answer.session, turn.no, static_cast<uint16_t>(i)});
        }
    }
    writer.raw("],\"usage\":");
    if (settled)
        append_usage(writer, turn.usage);
    else
        writer.raw("null");
    if (turn.options.size() <= 2) {
        writer.raw(constant_of(answer.agent));
    } else {
        // Written by this door and bounded, but read from disk: what does not parse is shown as if nothing were set.
        unsigned char first[4096];
        json::monotonic_resource memory(first, sizeof first);
        json::error_code ec;
        json::parse_options deep;
        deep.max_depth = limits::json_depth_max + 2;
        const json::value options = json::parse(turn.options, ec, &memory, deep);
        append_settings(writer, answer.agent.get(), ec ? nullptr : options.if_object());
    }
    writer.raw("}");
}

const std::string& ResponseObject::constant_of(const AgentPtr& agent) {
    auto& constant = constants_[agent.get()];
    if (constant.text.empty()) {
        if (constants_.size() > constants_max) {
            constants_.clear();
            return constant_of(agent);
        }
        constant.agent = agent;
        JsonWriter writer(constant.text);
        append_settings(writer, agent.get(), nullptr);
    }
    return constant.text;
}

}  // namespace mainstay
