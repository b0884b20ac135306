// What a worker of the Neuron runtime and its daemon say to each other, and the manifest of a model folder; the first
// byte says which. Whatever the bytes, they are refused with words, or what was read writes and reads as the same
// again.
#include <cstdint>
#include <string_view>

#include "runtime/inference/nrt_model.h"
#include "runtime/inference/nrt_protocol.h"
#include "tests/fuzz/require.h"

namespace {

template <class Decode, class Encode>
void there_and_back(std::string_view bytes, Decode decode, Encode encode) {
    auto read = decode(bytes);
    if (!read) return require(!read.error().message.empty());
    const std::string frame = encode(*read);
    if (frame.empty()) return;  // beyond the bound
    auto again = decode(std::string_view(frame).substr(mainstay::nrt_frame_header_bytes));
    require(again.ok());
    require(encode(*again) == frame);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 'q') there_and_back(bytes, mainstay::decode_nrt_request, mainstay::encode_nrt_request);
    if (data[0] == 'r') there_and_back(bytes, mainstay::decode_nrt_reply, mainstay::encode_nrt_reply);
    if (data[0] == 'f') (void)mainstay::nrt_frame_bytes(bytes).ok();
    if (data[0] != 'm') return 0;
    const auto model = mainstay::parse_nrt_model(bytes, "folder");
    if (!model) {
        require(model.error().code == mainstay::ErrorCode::model_not_loadable && !model.error().message.empty());
        return 0;
    }
    for (const uint32_t context : model->context_buckets) {
        for (const uint32_t n : model->prefill_buckets) (void)model->graph(mainstay::StepKind::prefill, n, context);
        for (const uint32_t n : model->decode_buckets) (void)model->graph(mainstay::StepKind::decode, n, context);
    }
    return 0;
}
