#include "runtime/inference/kv_pages.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/base/limits.h"
#include "runtime/inference/kv_block.h"

namespace mainstay {

const char* to_string(Precision precision) { return precision == Precision::bf16 ? "bf16" : "f32"; }

Result<Arena> Arena::reserve(size_t bytes, const std::string& what) {
    constexpr size_t large_page = 2 * 1024 * 1024;
    const size_t size = round_up(std::max<size_t>(bytes, 1), large_page);
    // One large page more, so that the region can begin at one.
    void* map =
        mmap(nullptr, size + large_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return Error{ErrorCode::model_not_loadable, "no memory for " + what + ": " + std::strerror(errno), "memory"};
    uint8_t* begin = static_cast<uint8_t*>(map);
    const size_t skip = round_up(reinterpret_cast<uintptr_t>(begin), large_page) - reinterpret_cast<uintptr_t>(begin);
    if (skip > 0) munmap(begin, skip);
    if (skip < large_page) munmap(begin + skip + size, large_page - skip);
    madvise(begin + skip, size, MADV_HUGEPAGE);  // advice: it is right without
    Arena arena;
    arena.data_ = begin + skip;
    arena.size_ = size;
    return arena;
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
Arena& Arena::operator=(Arena&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}
Arena::~Arena() {
    if (data_) munmap(data_, size_);
}

KvPages::KvPages(const KvShape& shape, std::string_view identity, Arena arena)
    : shape_(shape), identity_(identity), arena_(std::move(arena)) {}

Result<std::unique_ptr<KvPages>> KvPages::create(const KvShape& shape, std::string_view identity) {
    INVARIANT(shape.block_tokens % kv_tile_tokens == 0 && shape.block_tokens > 0, "whole tiles in a block");
    auto arena = Arena::reserve(shape.total_bytes(), "the KV blocks");
    if (!arena) return arena.error();
    return std::unique_ptr<KvPages>(new KvPages(shape, identity, std::move(*arena)));
}

void KvPages::write(int64_t slot, uint32_t layer, uint32_t head, const float* key, const float* value,
                    const Kernels& kernels) {
    if (slot < 0) return;
    const uint32_t dim = shape_.head_dim, padded = shape_.padded_dim();
    const uint32_t index = uint32_t(slot % shape_.block_tokens), tile = index / kv_tile_tokens,
                   lane = index % kv_tile_tokens;
    uint8_t* block = at(BlockId(slot / shape_.block_tokens));
    uint8_t* keys = block + key_offset(layer, head);
    uint8_t* values = block + value_offset(layer, head);
    if (shape_.precision == Precision::bf16) {
        uint16_t narrow[limits::model_head_dim_max];
        kernels.to_bf16(key, dim, narrow);
        uint16_t* to = reinterpret_cast<uint16_t*>(keys) + size_t(tile) * kv_tile_tokens * dim + 2 * lane;
        for (uint32_t d = 0; d < dim; d += 2) std::memcpy(to + size_t(d) * kv_tile_tokens, narrow + d, 4);
        kernels.to_bf16(value, dim, narrow);
        uint16_t* pairs = reinterpret_cast<uint16_t*>(values) + size_t(index / 2) * 2 * padded + index % 2;
        for (uint32_t d = 0; d < dim; ++d) pairs[2 * d] = narrow[d];
    } else {
        float* to = reinterpret_cast<float*>(keys) + size_t(tile) * kv_tile_tokens * dim + lane;
        for (uint32_t d = 0; d < dim; ++d) to[size_t(d) * kv_tile_tokens] = key[d];
        std::memcpy(reinterpret_cast<float*>(values) + size_t(index) * padded, value, size_t(dim) * 4);
    }
}

void KvPages::copy(BlockId from, BlockId to) { std::memcpy(at(to), at(from), shape_.block_bytes()); }

std::string KvPages::export_block(BlockId block, uint32_t tokens) const {
    INVARIANT(tokens >= 1 && tokens <= shape_.block_tokens, "tokens of an exported block");
    std::string out(export_bytes(), '\0');
    // Only the tokens that were asked for: the others may be left over from whoever had the block before.
    const size_t size = element_bytes(shape_.precision);
    for (uint32_t layer = 0; layer < shape_.layers; ++layer)
        for (uint32_t head = 0; head < shape_.heads; ++head) {
            const size_t keys = key_offset(layer, head), values = value_offset(layer, head);
            const size_t pair = shape_.precision == Precision::bf16 ? 2 : 1;  // dimensions side by side
            for (uint32_t first = 0; first < tokens; first += kv_tile_tokens) {
                const size_t lanes = std::min(tokens - first, kv_tile_tokens);
                const size_t tile = keys + size_t(first) * shape_.head_dim * size;
                for (size_t d = 0; d < shape_.head_dim; d += pair)
                    std::memcpy(out.data() + header_bytes + tile + d * kv_tile_tokens * size,
                                at(block) + tile + d * kv_tile_tokens * size, lanes * pair * size);
            }
            const size_t row = shape_.padded_dim() * size, whole = tokens / pair * pair;
            std::memcpy(out.data() + header_bytes + values, at(block) + values, whole * row);
            for (size_t d = 0; whole < tokens && d < shape_.padded_dim(); ++d)  // the first of two side by side
                std::memcpy(out.data() + header_bytes + values + whole * row + d * pair * size,
                            at(block) + values + whole * row + d * pair * size, size);
        }
    seal_kv_block(out, identity_, tokens);
    return out;
}

DeviceResult<uint32_t> KvPages::import_block(BlockId block, std::string_view bytes) {
    auto tokens = open_kv_block(bytes, identity_, shape_.block_tokens, shape_.block_bytes());
    if (!tokens) return tokens;
    std::memcpy(at(block), bytes.data() + header_bytes, shape_.block_bytes());
    return tokens;
}

}  // namespace mainstay
