#include "gateway/error_table.h"

#include <charconv>

#include "gateway/json_writer.h"

namespace mainstay {
namespace {

void append_error(std::string& out, ErrorCode code, std::string_view message, std::string_view param) {
    const auto& info = error_info(code);
    JsonWriter(out)
        .raw("{\"message\":")
        .string(message.empty() ? info.name : message)
        .raw(",\"type\":")
        .string(info.type)
        .raw(",\"param\":")
        .string_or_null(param)
        .raw(",\"code\":")
        .string(info.name)
        .raw("}");
}

/// Seconds. A queue drains within one; a disk is not emptied that fast.
std::string_view retry_after(ErrorCode code) { return code == ErrorCode::storage_full ? "30" : "1"; }

/// Who sends a request on wants to know which shard it is of (gateway/hop.h).
std::optional<ShardId> shard_of(ErrorCode code, std::string_view param) {
    if (code != ErrorCode::misdirected && code != ErrorCode::shard_unavailable) return std::nullopt;
    uint16_t shard = 0;
    const auto [end, ec] = std::from_chars(param.data(), param.data() + param.size(), shard);
    if (param.empty() || ec != std::errc() || end != param.data() + param.size()) return std::nullopt;
    return ShardId{shard};
}

}  // namespace

Answer error_answer(ErrorCode code, std::string_view message, std::string_view param) {
    const auto& info = error_info(code);
    Answer answer;
    answer.status = info.http_status;
    answer.error = code;
    answer.shard = shard_of(code, param);
    answer.body.reserve(160 + message.size());
    answer.body += "{\"error\":";
    append_error(answer.body, code, message, param);
    answer.body += "}";
    if (info.retryable) answer.headers.append("Retry-After: ").append(retry_after(code)).append("\r\n");
    if (code == ErrorCode::unauthenticated) answer.headers += "WWW-Authenticate: Bearer realm=\"mainstay\"\r\n";
    return answer;
}

Answer error_answer(const Error& error) { return error_answer(error.code, error.message, error.param); }

Answer dropped_answer() {
    return error_answer(ErrorCode::internal, "The node lost this request; whether it took effect is not known.");
}

void append_error_object(std::string& out, const Error& error) {
    append_error(out, error.code, error.message, error.param);
}

}  // namespace mainstay
