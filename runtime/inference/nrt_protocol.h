#pragma once
// What the daemon and a worker of the Neuron runtime say to each other, as values and as bytes (schema/inference.capnp,
// docs/formats/nrt_worker.md). A frame is a header of 8 bytes and one Cap'n Proto message. The other side is another
// process that may have lost its mind: sizes and enumerators are checked, and bytes that are no message are an answer,
// never an exception. Pure functions; reading and writing is their users'.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/inference/device.h"

namespace mainstay {

struct NrtExportBlock {
    BlockId block = block_none;
    uint32_t tokens = 0;
};
struct NrtImportBlock {
    BlockId block = block_none;
    std::string bytes;
};
struct NrtRequest {
    uint64_t call = 0;
    std::variant<Step, std::vector<BlockCopy>, NrtExportBlock, NrtImportBlock> what;
};

struct NrtReady {
    std::string version;
    DeviceCaps caps;
};
/// Sequences and epochs of the rows are not sent: who asked knows them.
struct NrtStepped {
    StepResult result;
    std::vector<float> logits;  // that the rows' spans look at
};
struct NrtDone {};
struct NrtExported {
    std::string bytes;
};
struct NrtImported {
    uint32_t tokens = 0;
};
struct NrtReply {
    uint64_t call = 0;
    std::variant<NrtDone, NrtReady, Error, DeviceError, NrtStepped, NrtExported, NrtImported> what;
};

constexpr size_t nrt_frame_header_bytes = 8;
/// Floats of one step's result that fit a frame with all else.
constexpr size_t nrt_logits_max = limits::nrt_frame_bytes_max / 2 / sizeof(float);

/// A whole frame, or empty where the message is beyond limits::nrt_frame_bytes_max.
std::string encode_nrt_request(const NrtRequest& request);
std::string encode_nrt_reply(const NrtReply& reply);
/// Bytes that follow a header. Fails (internal) for what is no header or beyond the bound.
Result<size_t> nrt_frame_bytes(std::string_view header);
/// From what follows the header. Fails (internal) with the reason.
Result<NrtRequest> decode_nrt_request(std::string_view bytes);
Result<NrtReply> decode_nrt_reply(std::string_view bytes);

}  // namespace mainstay
