// What two doors say to each other; the first byte says which message. Whatever the bytes, they are refused with words,
// or what was read is within its bounds and is read as the same again from what it is written as.

#include <cstdint>

#include "gateway/hop_message.h"
#include "runtime/base/limits.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mainstay;
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 'q') {
        const auto request = decode_hop_request(bytes);
        if (!request) {
            require(request.error().code == ErrorCode::peer_refused && !request.error().message.empty());
            return 0;
        }
        require(request->body.size() <= limits::http_body_bytes_max && request->path.front() == '/');
        const auto again = decode_hop_request(encode_hop_request(*request));
        require(again.ok() && encode_hop_request(*again) == encode_hop_request(*request));
        return 0;
    }
    const auto part = decode_hop_part(bytes);
    if (!part) {
        require(part.error().code == ErrorCode::peer_refused && !part.error().message.empty());
        return 0;
    }
    if (const auto* head = std::get_if<HopHead>(&*part)) {
        require(head->status >= 200 && head->status < 600);
        require(head->headers.empty() || head->headers.ends_with("\r\n"));
        require(head->headers.find("\r\n\r\n") == std::string::npos);
        const auto again = decode_hop_part(encode_hop_head(*head));
        require(again.ok() && encode_hop_head(std::get<HopHead>(*again)) == encode_hop_head(*head));
    } else {
        const auto& body = std::get<HopBody>(*part);
        const auto again = decode_hop_part(encode_hop_body(body.bytes));
        require(again.ok() && std::get<HopBody>(*again).bytes == body.bytes);
    }
    return 0;
}
