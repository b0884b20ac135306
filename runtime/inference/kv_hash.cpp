#include "runtime/inference/kv_hash.h"

#include <bit>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

std::string_view bytes_of(const KvHash& hash) { return {reinterpret_cast<const char*>(hash.data()), hash.size()}; }

}  // namespace

KvHash kv_root(std::string_view model_hash, std::string_view kv_format, TenantId tenant) {
    std::string scope = "kv chain ";
    scope.append(model_hash).append(" ").append(kv_format);
    return key_hash(scope, std::to_string(tenant.value));
}

KvHash kv_next(const KvHash& parent, std::span<const TokenId> tokens) {
    static_assert(std::endian::native == std::endian::little);
    return key_hash(bytes_of(parent), {reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
}

void extend_chain(KvChain& chain, std::span<const TokenId> tokens, uint32_t block_tokens) {
    INVARIANT(block_tokens > 0, "a block holds tokens");
    for (size_t i = chain.blocks.size(); (i + 1) * block_tokens <= tokens.size(); ++i)
        chain.blocks.push_back(kv_next(chain.before(i), tokens.subspan(i * block_tokens, block_tokens)));
}

}  // namespace mainstay
