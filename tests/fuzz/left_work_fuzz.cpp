// What nodes say to each other about work that went on where a session was led before; the first byte says which
// message. Whatever the bytes, they are refused with words, or what was read is read as the same again from what it is
// written as.

#include <cstdint>

#include "actors/left_work_message.h"
#include "runtime/base/limits.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mainstay;
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 'q') {
        const auto request = decode_left_request(bytes);
        if (!request) {
            require(request.error().code == ErrorCode::peer_refused && !request.error().message.empty());
            return 0;
        }
        const std::string written = encode_left_request(*request);
        const auto again = decode_left_request(written);
        require(again.ok() && again->index() == request->index() && encode_left_request(*again) == written);
        return 0;
    }
    const auto part = decode_left_part(bytes);
    if (!part) {
        require(part.error().code == ErrorCode::peer_refused && !part.error().message.empty());
        return 0;
    }
    if (const auto* delta = std::get_if<LeftDelta>(&*part))
        require(delta->text.size() <= limits::model_step_part_bytes_max);
    const std::string written = encode_left_part(*part);
    const auto again = decode_left_part(written);
    require(again.ok() && again->index() == part->index() && encode_left_part(*again) == written);
    return 0;
}
