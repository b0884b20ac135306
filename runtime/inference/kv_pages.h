#pragma once
// The memory of a device's KV blocks: one region, block after block, so that a block leaves and enters as one run of
// bytes. Inside a block: for each layer and head of keys, the tiles of keys and then the tiles of values (kernels.h has
// the order within a tile). Block 0 is the null block; it has memory, so that ids need no arithmetic, and nobody
// touches it.
//
// The region is reserved at once and becomes real memory when blocks are first written to. Owned by the device's
// thread; during a step each (block, position, layer, head) is written by one thread.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/result.h"
#include "runtime/inference/device.h"
#include "runtime/inference/kernels.h"
#include "runtime/inference/kv_block.h"

namespace mainstay {

/// Of the weights as computed with, and of keys and values.
enum class Precision : uint8_t { bf16, f32 };
const char* to_string(Precision precision);
constexpr size_t element_bytes(Precision precision) { return precision == Precision::bf16 ? 2 : 4; }

/// Anonymous memory, zeroed, in large pages where the machine has them.
class Arena {
  public:
    static Result<Arena> reserve(size_t bytes, const std::string& what);
    Arena() = default;
    Arena(Arena&& other) noexcept;
    Arena& operator=(Arena&& other) noexcept;
    ~Arena();
    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

struct KvShape {
    uint32_t layers = 0;
    uint32_t heads = 0;  // of keys and values
    uint32_t head_dim = 0;
    uint32_t block_tokens = 0;  // multiple of kv_tile_tokens
    uint32_t block_count = 0;   // with the null block
    Precision precision = Precision::bf16;

    uint32_t padded_dim() const { return uint32_t(round_up(head_dim, 16)); }
    size_t key_bytes() const {
        return size_t(block_tokens) * head_dim * element_bytes(precision);
    }  // one layer and head
    size_t value_bytes() const { return size_t(block_tokens) * padded_dim() * element_bytes(precision); }
    size_t block_bytes() const { return size_t(layers) * heads * (key_bytes() + value_bytes()); }
    size_t total_bytes() const { return block_bytes() * block_count; }
};

class KvPages {
  public:
    /// `identity`: kv_block_identity of the model and format whose bytes exported blocks are.
    static Result<std::unique_ptr<KvPages>> create(const KvShape& shape, std::string_view identity);

    const KvShape& shape() const { return shape_; }
    const uint8_t* data() const { return arena_.data(); }
    size_t key_offset(uint32_t layer, uint32_t head) const {
        return (size_t(layer) * shape_.heads + head) * (shape_.key_bytes() + shape_.value_bytes());
    }
    size_t value_offset(uint32_t layer, uint32_t head) const { return key_offset(layer, head) + shape_.key_bytes(); }

    /// Key and value of one token: `slot` is block * block_tokens + index within the block; -1 (padding): nothing
    /// happens.
    void write(int64_t slot, uint32_t layer, uint32_t head, const float* key, const float* value,
               const Kernels& kernels);

    void copy(BlockId from, BlockId to);
    size_t export_bytes() const { return header_bytes + shape_.block_bytes(); }
    std::string export_block(BlockId block, uint32_t tokens) const;
    DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes);

    static constexpr size_t header_bytes = kv_block_header_bytes;

  private:
    KvPages(const KvShape& shape, std::string_view identity, Arena arena);
    uint8_t* at(BlockId block) const { return arena_.data() + size_t(block) * shape_.block_bytes(); }

    KvShape shape_;
    std::string identity_;  // 16 bytes
    Arena arena_;
};

}  // namespace mainstay
