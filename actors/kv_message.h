#pragma once
// What nodes say to each other about KV blocks, as values and as Cap'n Proto bytes (schema/kv_transfer.capnp,
// docs/formats/kv_transfer.md). A peer is one of ours, but what it sent is judged all the same: damaged messages, more
// than a message may have and outcomes that are none are refused. A block whose checksum does not hold is told apart:
// the others of its message are good. Pure.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "actors/worker_info.h"
#include "runtime/inference/block_pool.h"

namespace mainstay {

/// Of which model the blocks of a message are.
struct KvOf {
    std::string model, model_hash, kv_format;
    uint32_t block_tokens = 0;
    friend bool operator==(const KvOf&, const KvOf&) = default;
};

struct KvWanted {
    KvOf of;
    std::vector<BlockName> blocks;
};
struct KvBlocks {
    KvOf of;
    std::vector<BlockName> blocks;
    std::vector<std::string> bytes;  // of each
    std::vector<bool> whole;         // of each, as read: its checksum held
};
struct KvForget {
    std::vector<SessionKey> sessions;
};
using KvRequest = std::variant<KvWanted, KvBlocks, KvForget>;

std::string encode_kv_wanted(const KvWanted& wanted);
/// `bytes` of each block, in their order.
std::string encode_kv_blocks(const KvOf& of, const std::vector<BlockName>& blocks,
                             const std::vector<std::string_view>& bytes);
std::string encode_kv_forget(const KvForget& forget);
std::string encode_kv_answer(const std::vector<KvOutcome>& outcomes);

/// Errors: peer_refused.
Result<KvRequest> decode_kv_request(std::string_view bytes);
Result<std::vector<KvOutcome>> decode_kv_answer(std::string_view bytes);

}  // namespace mainstay
