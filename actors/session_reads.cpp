// What a session actor answers from its state and its rows. Reads are held by the output gate like every output: nobody
// sees what might still be lost.

#include <algorithm>

#include "actors/event_page.h"
#include "actors/session_actor.h"
#include "actors/session_inspector.h"

namespace mainstay {

ItemId SessionActor::item_id(TurnNo turn, size_t index) const {
    return {history_.owner_of(turn).session, turn, static_cast<uint16_t>(index)};
}

Result<TurnPtr> SessionActor::find_turn(TurnNo turn) const {
    if (auto here = session_->turn(turn)) return here;
    for (const auto& [sequence, settled] : settling_)
        if (settled->no == turn) return settled;
    return history_.read(turn);
}

SessionInfo SessionActor::info() const {
    SessionInfo made = describe(*session_);
    made.updated_at = last_active_;
    made.active = true;
    return made;
}

void SessionActor::on(ReadTurn& ask) {
    const bool unstored = session_->ephemeral() && session_->idle();  // kept for its idempotency key only
    if (ask.turn < history_.first_own() || !session_->exists() || unstored)
        return ask.done(Error{ErrorCode::response_not_found, "there is no such response", {}});
    auto turn = find_turn(ask.turn);
    if (!turn.ok()) return ask.done(turn.error());
    if (!*turn || (*turn)->items_only)
        return ask.done(Error{ErrorCode::response_not_found, "there is no such response", {}});
    gate_.hold(last(), [this, turn = *turn, reply = std::make_shared<ReplyTo<TurnAnswer>>(std::move(ask.done))] {
        (*reply)(make_answer(turn));
    });
}

/// As it is now: when the gate opens, the session may have gone on in memory beyond what is committed.
void SessionActor::answer_info(ReplyTo<SessionInfo>& done) {
    gate_.hold(last(), [now = info(), reply = std::make_shared<ReplyTo<SessionInfo>>(std::move(done))] {
        (*reply)(SessionInfo(now));
    });
}

void SessionActor::on(ReadInfo& ask) {
    if (!session_->exists()) return ask.done(Error{ErrorCode::session_not_found, "there is no such session", {}});
    answer_info(ask.done);
}

void SessionActor::on(ListItems& ask) {
    if (!session_->exists()) return ask.done(Error{ErrorCode::session_not_found, "there is no such session", {}});
    const auto& query = ask.query;
    const size_t limit = std::clamp<size_t>(query.limit, 1, limits::list_page_max);
    const uint32_t newest = session_->last_turn().value;
    ItemPage page;
    // A turn at a time from one end or from the item after which the page begins.
    uint32_t no = query.ascending ? 1 : newest;
    if (query.after) no = query.after->turn.value;
    for (; no >= 1 && no <= newest && !page.has_more; query.ascending ? ++no : --no) {
        auto turn = find_turn(TurnNo{no});
        if (!turn.ok()) return ask.done(turn.error());
        if (!*turn) continue;
        const size_t count = (*turn)->items.size();
        for (size_t i = 0; i < count; ++i) {
            const size_t index = query.ascending ? i : count - 1 - i;
            if (query.after && query.after->turn.value == no &&
                (query.ascending ? index <= query.after->index : index >= query.after->index))
                continue;
            if (page.items.size() == limit) {
                page.has_more = true;
                break;
            }
            page.items.push_back({item_id(TurnNo{no}, index), (*turn)->items[index]});
        }
    }
    gate_.hold(last(), [page = std::move(page), reply = std::make_shared<ReplyTo<ItemPage>>(std::move(ask.done))] {
        (*reply)(ItemPage(page));
    });
}

void SessionActor::on(ReadItem& ask) {
    auto turn = session_->exists() ? find_turn(ask.item.turn) : Result<TurnPtr>(TurnPtr{});
    if (!turn.ok()) return ask.done(turn.error());
    if (!*turn || ask.item.index >= (*turn)->items.size() || item_id(ask.item.turn, ask.item.index) != ask.item)
        return ask.done(Error{ErrorCode::item_not_found, "there is no such item", {}});
    gate_.hold(last(),
               [entry = ItemEntry{ask.item, (*turn)->items[ask.item.index]},
                reply = std::make_shared<ReplyTo<ItemEntry>>(std::move(ask.done))] { (*reply)(ItemEntry(entry)); });
}

void SessionActor::on(ListEvents& ask) {
    const size_t limit = std::clamp<size_t>(ask.limit, 1, limits::list_page_max + 1);
    auto page = read_event_page(node_.store, key_, history_.first_own(), ask.after, limit, node_.options.shard_count);
    if (!page.ok()) return ask.done(page.error());
    if (page->empty() && !session_->exists())
        return ask.done(Error{ErrorCode::session_not_found, "there is no such session", {}});
    ask.done(std::move(*page));
}

}  // namespace mainstay
