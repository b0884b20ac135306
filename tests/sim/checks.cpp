// What must hold while a history goes on, and the end of it: faults stop, everything finishes, all is found again.

#include <algorithm>

#include "sim/world.h"

namespace mainstay::sim {

Session World::rebuild(const SessionKey& key, bool* only_head) {
    auto image = store_.load(key);
    check(image.ok(), "a session cannot be loaded");
    Session session(key);
    if (image->head) {
        auto decoded = Session::decode_head(key, *image->head);
        check(decoded.ok(), "a head cannot be read");
        session = std::move(*decoded);
    }
    if (only_head) *only_head = true;
    for (const auto& record : image->tail) {
        if (record.first_sequence <= session.last_sequence()) continue;
        if (only_head) *only_head = false;
        auto batch = decode_batch(*record.payload);
        check(batch.ok(), "a record of the tail cannot be read");
        session.apply(*batch, record.first_sequence);
    }
    return session;
}

void World::check_dispatch(uint32_t session, const RunTool& tool) {
    // A rebuilt session is the only witness that does not depend on who was told what; it costs, so some do.
    if (chance(25))
        check(rebuild(keys_[session]).last_sequence() >= tool.cause,
              "a call is dispatched before its intent is durable");
    tools_.dispatched(keys_[session], tool);
}

void World::check_activated(const Shell& shell) {
    const Session& session = shell.session();
    const ClientView& view = views_[index_of_.at(session.key())];
    if (view.delete_acknowledged) return check(!session.exists(), "a deleted session is back");
    if (!view.acknowledged || view.delete_asked) return;
    check(session.exists(), "an acknowledged session is gone");
    const uint64_t metadata = session.metadata().empty() ? 0 : std::stoull(session.metadata());
    check(metadata >= view.metadata_acknowledged, "acknowledged metadata is gone");
    if (view.turns.empty()) return;
    check(session.last_turn().value >= view.turns.rbegin()->first, "an acknowledged turn is gone");
    // The newest now, all at the end.
    if (!chance(12)) return;
    const TurnPtr& newest = view.turns.rbegin()->second;
    auto turn = shell.find_turn(newest->no);
    check(turn.ok() && *turn, "an acknowledged turn cannot be read");
    view.compare(*newest, **turn);
    ++counts_.turns_read;
}

void World::check_rebuilt(const Shell& shell) {
    const Session& live = shell.session();
    if (!shell.all_committed() || live.last_sequence().value == 0 || (live.deleted() && live.ephemeral())) return;
    const Session rebuilt = rebuild(live.key());
    check(rebuilt.last_sequence() == live.last_sequence(), "the store lacks what was committed");
    check(rebuilt.encode_head() == live.encode_head(), "the state of the store is not that of the live session");
    ++counts_.rebuilds;
}

void World::run_until_quiet() {
    for (size_t rounds = 0;; ++rounds) {
        check(rounds < 5000, "without faults a history does not come to rest");
        while (store_.step_journal()) {
        }
        check(!store_.must_abort(), "a store without faults must abort");
        for (auto& ack : std::exchange(early_, {})) ack.target->acknowledged(ack.sequence, ack.sequence);
        if (!jobs_.empty()) {
            for (size_t jobs = jobs_.size(); jobs > 0; --jobs) run_job();
            continue;
        }
        const TimeMs at = next_wake();
        if (at == 0) return;
        now_ = std::max(now_, at);
        wake_due();
    }
}

void World::settle_everything() {
    run_until_quiet();
    store_.flush();
    // Without the client: whatever does not wait for a person has finished. Those that sleep have nothing open, which
    // the rows of the store say in the end.
    for (const auto& here : shells_) {
        if (!here || here->session().idle() || here->session().deleted()) continue;
        const Turn* open = here->session().open_turn();
        check(open != nullptr && std::any_of(open->items.begin(), open->items.end(),
                                             [](const ItemPtr& i) { return i->status == ItemStatus::unknown; }),
              "a turn that waits for nobody has not finished");
    }
}

void World::finish() {
    store_.inject_randomly(1, {});
    store_.space_returns();
    finishing_ = true;
    if (chance(70)) {
        kill();
        restart();
    }
    settle_everything();
    for (size_t rounds = 0; rounds < 100; ++rounds) {
        bool resolved = false;
        for (uint32_t i = 0; i < shells_.size(); ++i) {
            if (!shells_[i] && rebuild(keys_[i]).idle()) continue;
            Shell& here = shell(i);
            for (const uint32_t call : here.unknown_calls()) {
                here.resolve(here.session().open_turn()->no, call, static_cast<Resolution>(random_.below(3)),
                             "at last");
                resolved = true;
            }
        }
        if (!resolved) break;
        settle_everything();
    }
    // Each client that was never answered asks once more; where a queue is full or a parent was not settled, again.
    for (size_t rounds = 0; rounds < 40; ++rounds) {
        bool asked = false;
        for (Request& request : requests_)
            if (request.state == Request::State::unanswered) {
                request.background = false;
                send(request);
                asked = true;
            }
        if (!asked) break;
        run_until_quiet();
    }
    for (const Request& request : requests_) {
        if (request.state == Request::State::refused) continue;
        const bool forkless = request.after && views_[request.session].delete_asked;
        const bool orphan = !views_[request.session].acknowledged || views_[request.session].delete_asked;
        check(request.state == Request::State::answered || forkless || orphan, "a client is never answered");
    }
    expire_unstored();
    check_at_rest();
}

// What was to be kept for its key only has been kept until now, and is gone a day later.
void World::expire_unstored() {
    for (uint32_t i = 0; i < keys_.size(); ++i)
        if (views_[i].ephemeral) now_ = std::max(now_, rebuild(keys_[i]).wake_at());
    for (uint32_t i = 0; i < keys_.size(); ++i) {
        if (!views_[i].ephemeral) continue;
        shell(i).wake();
        check(!shell(i).session().exists(), "what was to be kept for its key only is still there");
    }
    run_until_quiet();
}

void World::check_at_rest() {
    store_.flush();
    size_t open_rows = 0, due_rows = 0, open_turns = 0;
    auto count = [](size_t& rows) { return [&rows](std::string_view, std::string_view) { return ++rows != 0; }; };
    check(store_.scan(Table::open, {}, {}, SIZE_MAX, count(open_rows)).ok(), "the open table cannot be read");
    check(store_.scan(Table::due, {}, {}, SIZE_MAX, count(due_rows)).ok(), "the due table cannot be read");
    for (uint32_t i = 0; i < keys_.size(); ++i) check_session_at_rest(i);
    for (const auto& key : keys_) open_turns += !rebuild(key).idle();
    check(open_turns == 0, "a session is not idle at the end");
    check(open_rows == 0 && due_rows == 0, "rows of open turns or timers are left of idle sessions");
}

void World::check_session_at_rest(uint32_t index) {
    const SessionKey& key = keys_[index];
    const ClientView& view = views_[index];
    bool only_head = true;
    const Session session = rebuild(key, &only_head);
    check(only_head, "a flushed store keeps a tail");
    const std::string prefix = session_row_key(key, store_shards());
    size_t rows = 0;
    auto count = [&](std::string_view, std::string_view) { return ++rows != 0; };
    if (!session.exists()) {
        check(!view.acknowledged || view.delete_asked, "an acknowledged session is gone at the end");
        check(store_.scan(Table::key, prefix, prefix, SIZE_MAX, count).ok() && rows == 0, "keys of a deleted session");
        if (session.children() == 0)
            check(store_.scan(Table::turn, prefix, prefix, SIZE_MAX, count).ok() && rows == 0,
                  "turns of a deleted session");
        return;
    }
    check(!view.delete_acknowledged, "a deleted session is back at the end");
    if (const auto& live = shells_[index]) check_rebuilt(*live);
    HistoryReader history(store_, key);
    check(history.follow_parents(session.created()).ok(), "the ancestors of a fork cannot be read at the end");
    std::set<KeyHash> keys;
    std::map<uint32_t, TurnPtr> turns;
    uint64_t items = 0;
    for (uint32_t no = session.parent_turn().value + 1; no <= session.last_turn().value; ++no) {
        auto turn = history.read(TurnNo{no});
        check(turn.ok() && *turn, "the numbers of turns have a gap");
        check(is_settled((*turn)->status), "the row of a turn that is not settled");
        items += (*turn)->items.size();
        turns[no] = *turn;
        if ((*turn)->key) check(keys.insert(*(*turn)->key).second, "one key made two turns");
        const auto shown = view.turns.find(no);
        if (shown != view.turns.end()) view.compare(*shown->second, **turn);
        ++counts_.turns_read;
    }
    check(items == session.item_count(), "the items of the rows are not those of the head");
    check(view.turns.empty() || view.turns.rbegin()->first <= session.last_turn().value,
          "an acknowledged turn is gone at the end");
    // What a fork shares is its parent's, as the parent's client saw it.
    for (uint32_t no = 1; no <= session.parent_turn().value; ++no) {
        auto turn = history.read(TurnNo{no});
        check(turn.ok() && *turn, "a turn that a fork shares is gone");
        const ClientView& owner = views_[index_of_.at(history.owner_of(TurnNo{no}))];
        const auto shown = owner.turns.find(no);
        if (shown != owner.turns.end()) owner.compare(*shown->second, **turn);
    }
    for (const Request& request : requests_)
        if (request.turn && request.turn_session == index) {
            const auto turn = turns.find(request.turn->value);
            check(
                turn != turns.end() && turn->second->key == request.key && turn->second->items[0]->text == request.text,
                "the turn that answered a request is another one");
        }
}

}  // namespace mainstay::sim
