#include "actors/node_fold.h"

#include "runtime/agent/catalogue.h"

namespace mainstay {
namespace {

constexpr size_t word_bytes = 8;

void append_padded(std::string& out, std::string_view text) {
    out += text;
    out.append((word_bytes - out.size() % word_bytes) % word_bytes, '\0');
}

std::string entity_row_key(const SessionKey& key, const EntityRecord& entity, uint16_t shard_count) {
    std::string out = session_row_key(key, shard_count).substr(0, word_bytes);
    append_padded(out, entity.kind);
    for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(entity.version >> shift);
    append_padded(out, entity.name);
    return out;
}

}  // namespace

Result<void> NodeFold::fold(const SessionKey& key, std::optional<std::string_view> head,
                            const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) {
    if (key.session.valid()) return sessions_.fold(key, head, records, rows);
    for (const auto& record : records) {
        const auto entity = decode_entity(record.payload);
        if (!entity) return entity.error();
        rows.push_back({Table::entity, entity_row_key(key, *entity, shard_count_), std::string(record.payload), false});
    }
    return {};
}

}  // namespace mainstay
