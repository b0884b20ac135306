// The body of POST /v1/responses: whatever bytes come, either a request that can be rendered again or an error with a
// code of the list and a message in UTF-8. The first byte chooses whether an idempotency key is given.

#include <cstdint>
#include <cstdlib>

#include "gateway/request_json.h"
#include "gateway/turn_request.h"
#include "runtime/base/limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mainstay;
    if (size == 0) return 0;
    const std::string_view body(reinterpret_cast<const char*>(data + 1), size - 1);
    const auto request = parse_responses_request(body, data[0] & 1 ? "key" : "");
    if (!request) {
        const auto& error = request.error();
        if (!is_valid_utf8(error.message) || !is_valid_utf8(error.param)) abort();
        if (error_info(error.code).http_status >= 500) abort();
        return 0;
    }
    // What is kept is JSON within its bound, and items are within theirs.
    JsonBody options, metadata;
    if (request->turn.options.size() > limits::options_bytes_max) abort();
    if (!options.parse(request->turn.options).ok() || !metadata.parse(request->turn.metadata).ok()) abort();
    if (request->turn.items.size() > limits::input_items_max) abort();
    for (const auto& item : request->turn.items)
        if (!is_valid_utf8(item->text) || !is_valid_utf8(item->arguments)) abort();
    return 0;
}
