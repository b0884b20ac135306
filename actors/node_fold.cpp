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

/// The newest record is the memory as it is; earlier ones only matter where they removed something.
Result<void> fold_memory(const SessionKey& key, const std::vector<FoldRecord>& records, std::vector<RowOp>& rows,
                         uint16_t shard_count) {
    bool removed = false;
    const FoldRecord* newest = nullptr;  // null: the memory as a whole was removed
    for (const auto& record : records) {
        const auto memory = decode_entity(record.payload);
        if (!memory) return memory.error();
        removed = removed || memory->removed;
        newest = memory->body.empty() ? nullptr : &record;
    }
    const std::string row_key = memory_row_key(key, shard_count);
    // A deletion by prefix tells the store that text has gone, which it then erases from its files.
    if (removed) rows.push_back({Table::memory, row_key, std::nullopt, true});
    if (newest) rows.push_back({Table::memory, row_key, std::string(newest->payload), false});
    return {};
}

}  // namespace

Result<void> NodeFold::fold(const SessionKey& key, std::optional<std::string_view> head,
                            const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) {
    if (key.session.valid()) return sessions_.fold(key, head, records, rows);
    if (key.session != SessionId{}) return fold_memory(key, records, rows, shard_count_);
    for (const auto& record : records) {
        const auto entity = decode_entity(record.payload);
        if (!entity) return entity.error();
        rows.push_back({Table::entity, entity_row_key(key, *entity, shard_count_), std::string(record.payload), false});
    }
    return {};
}

}  // namespace mainstay
