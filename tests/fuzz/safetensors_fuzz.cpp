// The header of a safetensors file: whatever it says, a tensor that is accepted lies within the file, has the size of
// its shape, and shares no byte with another. The first bytes decide how long the file claims to be.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/inference/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 2) return 0;
    // A header is worth little without its length, so it is put in front; how much data follows is the input's choice.
    const std::string json(reinterpret_cast<const char*>(data) + 2, size - 2);
    const uint64_t data_bytes = uint64_t(data[0]) | uint64_t(data[1]) << 8;
    std::string head(8, '\0');
    for (size_t i = 0; i < 8; ++i) head[i] = char(uint64_t(json.size()) >> (8 * i));
    head += json;
    const auto header = mainstay::parse_safetensors_header(head, head.size() + data_bytes);
    (void)mainstay::parse_safetensors_header(json, json.size() + data_bytes);  // and as it is, length included
    if (!header.ok()) return 0;
    uint64_t covered = 0;
    for (const auto& [name, info] : header->tensors) {
        if (info.begin > info.end || info.end > data_bytes) std::abort();
        covered += info.end - info.begin;
    }
    if (covered != data_bytes || header->data_begin != head.size()) std::abort();
    return 0;
}
