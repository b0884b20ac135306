#pragma once
// Names of KV blocks. The attention state of a token depends on every token before it, so a block is named by the chain
// of hashes that ends in it: h_i = H(h_(i-1), tokens_i), and h_0 names whose arithmetic and whose tenant it is. Equal
// names: equal bits on every device with that model hash and format (DECISIONS 20), and never across tenants, so that
// no tenant can learn from a fast answer what another one asked. Pure; any thread.

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/base/id.h"
#include "runtime/inference/sampling_params.h"

namespace mainstay {

using KvHash = KeyHash;

struct KvHashHasher {
    // The bytes are a digest's, so any of them are a hash.
    size_t operator()(const KvHash& hash) const noexcept {
        size_t out;
        std::memcpy(&out, hash.data(), sizeof out);
        return out;
    }
};

/// Hashes of full blocks of a token sequence; `blocks[i]` names tokens [0, (i + 1) * block_tokens).
struct KvChain {
    KvHash root{};
    std::vector<KvHash> blocks;
    const KvHash& before(size_t block) const { return block == 0 ? root : blocks[block - 1]; }
};

/// BLAKE2b over model hash, KV format (which names kernel and precision) and tenant.
KvHash kv_root(std::string_view model_hash, std::string_view kv_format, TenantId tenant);
/// BLAKE2b over the parent and the tokens (little-endian). Fewer tokens than a block: the name of a partial tail.
KvHash kv_next(const KvHash& parent, std::span<const TokenId> tokens);
/// Adds the full blocks of `tokens` that `chain` does not name yet.
void extend_chain(KvChain& chain, std::span<const TokenId> tokens, uint32_t block_tokens);

}  // namespace mainstay
