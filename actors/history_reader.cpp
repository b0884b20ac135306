#include "actors/history_reader.h"

#include "runtime/base/limits.h"
#include "runtime/session/fold.h"
#include "runtime/session/rebuild.h"

namespace mainstay {

Result<void> HistoryReader::follow_parents(const SessionCreated& created) {
    SessionId parent = created.parent;
    TurnNo up_to = created.parent_turn;
    while (parent.valid()) {
        if (lineage_.size() > limits::forks_depth_max)
            return {ErrorCode::state_damaged, "a chain of forks is longer than forks_depth_max"};
        const SessionKey key{created.tenant, parent};
        lineage_.emplace_back(key, up_to);
        auto image = store_.load(key);
        if (!image.ok()) return image.error();
        auto ancestor = rebuild(key, *image);
        if (!ancestor.ok()) return ancestor.error();
        // A deleted session keeps the turns that its forks share.
        if (!ancestor->exists() && !(ancestor->deleted() && ancestor->children() != 0))
            return {ErrorCode::session_not_found, "the session that this one was forked from is gone"};
        parent = ancestor->parent();
        up_to = std::min(up_to, ancestor->parent_turn());
    }
    return {};
}

const SessionKey& HistoryReader::owner_of(TurnNo turn) const {
    size_t at = 0;
    while (at + 1 < lineage_.size() && turn <= lineage_[at + 1].second) ++at;
    return lineage_[at].first;
}

Result<TurnPtr> HistoryReader::read(TurnNo turn) const {
    const auto& key = owner_of(turn);
    auto row = store_.read_turn(key, turn);
    if (!row.ok()) return row.error();
    if (!*row) return TurnPtr{};
    auto decoded = turn_from_row(key, turn, **row);
    if (!decoded.ok()) return decoded.error();
    return TurnPtr{std::make_shared<const Turn>(std::move(*decoded))};
}

Result<std::vector<std::pair<uint64_t, EventBatch>>> HistoryReader::read_batches(TurnNo turn) const {
    const auto& key = owner_of(turn);
    auto row = store_.read_turn(key, turn);
    if (!row.ok()) return row.error();
    if (!*row) return std::vector<std::pair<uint64_t, EventBatch>>{};
    return batches_from_row(**row);
}

}  // namespace mainstay
