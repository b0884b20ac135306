#pragma once
// The framing of a KV block outside of its device (docs/formats/kv_block.md): which model, how many tokens, a checksum.
// The payload is the device's own. Shared by every device that exports blocks, so that the tiers above meet one format.
// Pure functions.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/inference/device.h"

namespace mainstay {

constexpr size_t kv_block_header_bytes = 64;

/// 16 bytes that say whose a block is, from the device's capabilities.
std::string kv_block_identity(std::string_view model_hash, std::string_view kv_format);

/// Writes the header into the first kv_block_header_bytes of `bytes`; the payload stands behind them already.
void seal_kv_block(std::string& bytes, std::string_view identity, uint32_t tokens);

/// The tokens of a block that is whole, of this identity and of this payload size. Otherwise bad_bytes, with the
/// reason.
DeviceResult<uint32_t> open_kv_block(std::string_view bytes, std::string_view identity, uint32_t block_tokens,
                                     size_t payload_bytes);

}  // namespace mainstay
