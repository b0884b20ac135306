// What nodes say to each other about model steps; the first byte says which message. Whatever the bytes, they are
// refused with words, or what was read is within its bounds and is read as the same again from what it is written as.

#include <cstdint>

#include "actors/model_step_message.h"
#include "runtime/base/limits.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mainstay;
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 'q') {
        const auto call = decode_step_call(bytes);
        if (!call) {
            require(call.error().code == ErrorCode::peer_refused && !call.error().message.empty());
            return 0;
        }
        if (const auto* step = std::get_if<RunRemoteStep>(&*call)) {
            require(step->model.size() <= limits::name_bytes_max);
            require(!step->request.resume || step->request.resume->ids.size() <= limits::step_tokens_max);
            const std::string written = encode_step(*step);
            const auto again = decode_step_call(written);
            require(again.ok() && encode_step(std::get<RunRemoteStep>(*again)) == written);
        }
        return 0;
    }
    const auto part = decode_step_part(bytes);
    if (!part) {
        require(part.error().code == ErrorCode::peer_refused && !part.error().message.empty());
        return 0;
    }
    if (const auto* delta = std::get_if<StepDelta>(&*part)) {
        require(delta->text.size() <= limits::model_text_bytes_max);
        return 0;
    }
    const auto& ended = std::get<StepEnded>(*part);
    require(ended.load.devices > 0);
    const std::string written = encode_ended(ended);
    const auto again = decode_step_part(written);
    require(again.ok() && encode_ended(std::get<StepEnded>(*again)) == written);
    return 0;
}
