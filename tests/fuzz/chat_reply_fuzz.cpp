// What an upstream may answer: the first byte chooses between a stream of events (one a line), a whole answer and an
// error answer. Whatever the bytes, there is a result within its bounds or an error with its words.
#include <cstdint>
#include <set>
#include <string_view>

#include "runtime/inference/chat_reply.h"
#include "tests/fuzz/require.h"

namespace {

void check(const mainstay::ModelError& error) {
    require(!error.message.empty());
    require(error.code == mainstay::model_error_code(error.error_class));
    require(error.retry_after_ms <= mainstay::limits::upstream_retry_after_ms_max);
}

void check(const mainstay::ModelResult& result, std::string_view told) {
    require(result.text == told);
    require(result.calls.size() <= mainstay::limits::tool_calls_per_step_max);
    std::set<std::string> ids;
    for (const auto& call : result.calls) require(!call.name.empty() && !call.call_id.empty());
    for (const auto& call : result.calls) require(ids.insert(call.call_id).second);
}

void stream(std::string_view bytes, bool whole) {
    mainstay::ChatReply reply(1);
    std::string told;
    while (!bytes.empty()) {
        const size_t end = whole ? bytes.size() : std::min(bytes.find('\n'), bytes.size());
        std::string text;
        const auto error = whole ? reply.take_whole(bytes, text) : reply.take_event(bytes.substr(0, end), text);
        if (error) return check(*error);
        told += text;
        bytes.remove_prefix(std::min(bytes.size(), end + 1));
    }
    const auto outcome = reply.finish();
    if (const auto* error = std::get_if<mainstay::ModelError>(&outcome)) return check(*error);
    check(std::get<mainstay::ModelResult>(outcome), told);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
    switch (data[0] % 4) {
        case 0: stream(bytes, false); break;
        case 1: stream(bytes, true); break;
        case 2: check(mainstay::classify_upstream_error(201 + data[1] * 2, {}, bytes, 1, "key")); break;
        default:
            require(mainstay::retry_after_ms({{data[1] % 2 ? "retry-after" : "retry-after-ms", std::string(bytes)}},
                                             1) <= mainstay::limits::upstream_retry_after_ms_max);
    }
    return 0;
}
