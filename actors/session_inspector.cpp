#include "actors/session_inspector.h"

#include <algorithm>

#include "runtime/session/rebuild.h"

namespace mainstay {
namespace {

/// The session as its head and tail tell it; empty if it was deleted or never existed.
std::optional<SessionInfo> inspect(NodeContext& node, const SessionKey& key) {
    const auto image = node.store.load(key);
    const auto session = image.ok() ? rebuild(key, *image) : Result<Session>(image.error());
    if (!session.ok()) {
        SessionInfo damaged;
        damaged.id = key.session;
        damaged.state = "damaged";
        return damaged;
    }
    if (!session->exists()) return std::nullopt;
    if (session->ephemeral() && session->idle()) return std::nullopt;  // kept for its idempotency key only
    SessionInfo info = describe(*session);
    info.updated_at = session->now();
    return info;
}

/// In the order of the store's keys, which is no order that a person would recognise but a stable one to page through.
Result<std::vector<SessionInfo>> list(NodeContext& node, const ListSessions& ask) {
    const size_t limit = std::clamp<size_t>(ask.limit, 1, limits::list_page_max + 1);
    std::string from;
    if (ask.after) from = session_row_key({ask.principal.tenant, *ask.after}, node.options.shard_count) + '\0';
    // Of this tenant, and led here: copies of what other nodes lead may be behind.
    const auto listed = [&](const SessionKey& key) {
        return key.tenant == ask.principal.tenant &&
               (node.shards == nullptr || node.shards->find(node.shard_of(key)).where == ShardPlace::Where::here);
    };
    std::vector<std::pair<std::string, SessionKey>> keys;
    auto scanned = node.store.scan(Table::head, {}, from, SIZE_MAX, [&](std::string_view row_key, std::string_view) {
        const auto key = parse_session_row_key(row_key);
        if (key && listed(*key)) keys.emplace_back(row_key, *key);
        return keys.size() < limit * 2;  // tombstones fall out below
    });
    if (!scanned.ok()) return scanned.error();
    for (const auto& key : node.store.sessions_in_tail()) {
        if (!listed(key)) continue;
        auto row_key = session_row_key(key, node.options.shard_count);
        if (row_key >= from) keys.emplace_back(std::move(row_key), key);
    }
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    std::vector<SessionInfo> found;
    for (const auto& [row_key, key] : keys) {
        if (found.size() == limit) break;
        if (auto info = inspect(node, key)) found.push_back(std::move(*info));
    }
    return found;
}

}  // namespace

SessionInfo describe(const Session& session) {
    SessionInfo info;
    info.id = session.key().session;
    info.created_at = session.created_at();
    info.principal = session.created().principal;
    info.metadata = session.metadata();
    info.turns = session.tip().value;
    info.items = session.item_count();
    info.usage = session.usage();
    info.conversation = session.created().conversation;
    info.state = "idle";
    if (const Turn* open = session.open_turn()) {
        info.agent = open->agent;
        const bool unknown = std::any_of(open->items.begin(), open->items.end(),
                                         [](const ItemPtr& item) { return item->status == ItemStatus::unknown; });
        const auto pending = session.pending();
        const bool works = pending.model || !pending.tools.empty() || !pending.retries.empty();
        info.state = unknown ? "unknown_outcome" : works ? "running" : "waiting";
    }
    return info;
}

caf::behavior session_inspector(caf::event_based_actor* self, NodeContext* node) {
    return {
        [node](const ListSessionsPtr& ask) { ask->done(list(*node, *ask)); },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
