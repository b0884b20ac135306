#include "actors/session_actor.h"

#include <caf/send.hpp>

#include "actors/model_scheduler.h"
#include "runtime/base/crash_point.h"
#include "runtime/base/invariant.h"
#include "runtime/session/fold.h"
#include "runtime/session/rebuild.h"

namespace mainstay {
namespace {

/// The store's acknowledgement as a message to the actor that appended.
class CommitMessage final : public AckTarget {
  public:
    explicit CommitMessage(caf::actor session) : session_(std::move(session)) {}
    void acknowledged(Sequence durable, Sequence committed) override {
        caf::anon_send(session_, Committed{durable, committed});
    }
    void refused() override { caf::anon_send(session_, refused_atom::value); }

  private:
    caf::actor session_;
};

constexpr size_t record_overhead_estimate = 4096;  // later records of the same turn, beyond its input

size_t bytes_of(const std::vector<ItemPtr>& items) {
    size_t total = 0;
    for (const auto& item : items) total += item->bytes();
    return total;
}

const Error gone_error{ErrorCode::session_not_found, "there is no such session", {}};

}  // namespace

SessionActor::SessionActor(caf::event_based_actor* self, NodeContext& node, SessionKey key, caf::actor supervisor,
                           Epoch led_in)
    : self_(self),
      node_(node),
      key_(key),
      supervisor_(std::move(supervisor)),
      session_(std::make_unique<Session>(key)),
      led_in_(led_in),
      history_(node.store, key),
      ack_target_(std::make_shared<CommitMessage>(caf::actor_cast<caf::actor>(self))) {
    node_.sessions_active.fetch_add(1);
}

SessionActor::~SessionActor() {
    node_.sessions_active.fetch_sub(1);
    if (counted_busy_) node_.sessions_busy.fetch_sub(1);
    // A crash leaves nobody to take the answer: the next incarnation asks again, or finds the call unknown.
    if (model_ && !model_->left) node_.models.cancel(model_->request_id);
}

// --- activation
// -----------------------------------------------------------------------------------------------------------

void SessionActor::activate() {
    last_active_ = node_.clock.now_ms();
    node_.metrics.session_activated();
    // Before anything is read: who leads in a later epoch may go on from there, and this actor must not.
    const ShardId shard = node_.shard_of(key_);
    const auto place = node_.place_of(shard);
    if (place.where != ShardPlace::Where::here || place.epoch != led_in_) {
        broken_ = node_.elsewhere(place, shard);
        return;
    }
    auto image = node_.store.load(key_);
    if (!image.ok()) {
        broken_ = image.error();
        return;
    }
    auto rebuilt = rebuild(key_, *image);
    if (!rebuilt.ok()) {
        broken_ = rebuilt.error();
        return;
    }
    *session_ = std::move(*rebuilt);
    session_->set_window_bytes(node_.options.window_bytes);
    if (session_->exists()) follow_parents();
    if (broken_) return;
    gate_.start_at(last());
    crash_point("session.activated");
    begin_recovery();
    // store: false, and the process ended between the answer and the deletion that follows it.
    if (session_->disposable(node_.clock.now_ms())) decide(context("system"), DeleteSession{});
    drive();
}

/// What a session shares with those that it was forked from. Once, when the session is known to exist: at activation,
/// or when the command that makes it has been applied.
void SessionActor::follow_parents() {
    if (auto followed = history_.follow_parents(session_->created()); !followed.ok()) broken_ = followed.error();
}

/// The settled turns that prompts begin with: back to where the journal says that they begin, or, if it says nothing, a
/// few windows, so that this window is the one that another incarnation had. When a prompt is wanted for the first
/// time, because most sessions that wake are only looked at.
void SessionActor::load_window() {
    if (window_loaded_ || broken_) return;
    std::vector<TurnPtr> turns;
    size_t bytes = 0;
    const size_t bytes_max = node_.options.window_bytes * limits::history_windows_read;
    for (uint32_t no = session_->last_turn().value; no > session_->left_out().value && bytes < bytes_max; --no) {
        auto turn = find_turn(TurnNo{no});
        if (!turn.ok()) {
            broken_ = turn.error();
            return;
        }
        if (!*turn) break;
        if (!is_settled((*turn)->status)) continue;
        bytes += window_bytes_of(**turn);
        turns.push_back(std::move(*turn));
    }
    session_->load_window(std::move(turns));
    window_loaded_ = true;
}

void SessionActor::count_busy() {
    const bool busy = model_ || !tools_.empty() || !gate_.empty() || !gate_.is_committed(last());
    if (busy == counted_busy_) return;
    counted_busy_ = busy;
    busy ? node_.sessions_busy.fetch_add(1) : node_.sessions_busy.fetch_sub(1);
}

bool SessionActor::can_sleep() const {
    if (broken_) return gate_.empty() && watch_.empty();
    if (!gate_.is_committed(last()) || !gate_.empty() || !watch_.empty()) return false;
    if (model_ || !tools_.empty() || !retries_.empty() || listing_) return false;
    const auto pending = session_->pending();
    return !pending.model && pending.tools.empty() && pending.retries.empty();
}

bool SessionActor::go_to_sleep() {
    asked_to_sleep_ = false;
    if (!can_sleep()) return false;
    // Near wake-ups stay with the timer actor; far ones it finds in the store's due-time index. Checks for idleness go:
    // one that is left behind would wake the session only to put it to sleep again, for ever.
    const TimeMs at = broken_ ? 0 : session_->pending().wake_at;
    if (at != 0 || armed_at_ != 0) self_->send(node_.timer, ArmTimer{key_, at, true});
    node_.metrics.session_passivated();
    rest();
    return true;
}

/// It leaves memory: what caches hold of it may leave theirs.
void SessionActor::rest() {
    if (used_model_) node_.models.session_idle(key_);
}

void SessionActor::sleep_if_idle(TimeMs now) {
    if (now < last_active_ + node_.options.passivate_after_ms || asked_to_sleep_ || !can_sleep()) return;
    asked_to_sleep_ = true;
    self_->send(supervisor_, sleep_atom::value, key_);
}

void SessionActor::lost() {
    const ShardId shard = node_.shard_of(key_);
    Error error = node_.elsewhere(node_.place_of(shard), shard);
    error.param.clear();  // without its shard: what they asked for may have been journalled (gateway/hop.h)
    watch_.fail_all(error);
    node_.metrics.session_passivated();
    rest();
}

// --- commands
// -------------------------------------------------------------------------------------------------------------

CommandContext SessionActor::context(const std::string& principal) const {
    CommandContext made;
    made.now = node_.clock.now_ms();
    made.tenant = key_.tenant;
    made.principal = principal;
    return made;
}

Decided SessionActor::decide(CommandContext context, CommandBody body) {
    auto decided = session_->decide(Command{std::move(context), std::move(body)});
    if (decided.batch) append(*decided.batch, decided.first_sequence);
    if (decided.refused) node_.metrics.refused(error_name(decided.refused->code));
    return decided;
}

/// Of a batch that the session has applied.
void SessionActor::append(const EventBatch& batch, Sequence first_sequence) {
    Append append;
    append.session = key_;
    append.first_sequence = first_sequence;
    append.event_count = static_cast<uint32_t>(batch.events.size());
    append.turn = batch.turn;
    append.payload = encode(batch);
    append.target = ack_target_;
    append.led_in = led_in_;
    append.at_rest = session_->at_rest();
    append.deletes = session_->deleted();
    if (append.deletes) node_.models.session_deleted(key_);
    append.companions = static_cast<uint32_t>(node_.sessions_busy.load(std::memory_order_relaxed));
    crash_point("session.before_append");
    node_.store.append(std::move(append));
    crash_point("session.after_append");
}

/// Holds the answers of turns that a decision settled until it is committed.
void SessionActor::follow_up(const Decided& decided) {
    for (const TurnNo no : decided.settled) {
        auto turn = session_->turn(no);
        INVARIANT(turn != nullptr, "a turn that was just settled is still in the window");
        settling_.emplace_back(last(), turn);
        gate_.hold(last(), [this, turn = std::move(turn)] { answer_settled(turn); });
    }
}

void SessionActor::answer_settled(TurnPtr turn) {
    node_.metrics.turn_settled(to_word(turn->status),
                               static_cast<double>(turn->settled_at - turn->created_at) / 1000.0);
    crash_point("session.before_answer");
    watch_.settle(make_answer(std::move(turn)));
    crash_point("session.after_answer");
    // store: false. The answer has left; nobody can ask for it again, except under its idempotency key.
    if (session_->disposable(node_.clock.now_ms())) decide(context("system"), DeleteSession{});
}

TurnAnswer SessionActor::make_answer(TurnPtr turn) const {
    TurnAnswer answer;
    answer.session = key_.session;
    answer.agent = bound_agent(node_.catalogue, turn->agent, turn->agent_version);
    answer.conversation = session_->created().conversation;
    if (!answer.conversation && turn->no.value > 1) {
        const TurnNo before{turn->no.value - 1};
        answer.previous = ResponseId{history_.owner_of(before).session, before};
    }
    answer.turn = std::move(turn);
    return answer;
}

void SessionActor::handle(Envelope& envelope) {
    if (!std::holds_alternative<WakeUp>(envelope.ask)) last_active_ = node_.clock.now_ms();
    if (broken_ && !std::holds_alternative<WakeUp>(envelope.ask)) {
        if (auto* ask = std::get_if<RemoveSession>(&envelope.ask); ask && damaged()) return discard(*ask);
        refuse(envelope.ask, *broken_);
        drive();  // it goes to sleep like any other
        return;
    }
    std::visit([this](auto& ask) { on(ask); }, envelope.ask);
}

void SessionActor::forget_applied_keys() {
    // The head is written in the same transaction as the key rows of the turns that it contains.
    auto row = node_.store.read_row(Table::head, session_row_key(key_, node_.options.shard_count));
    if (!row.ok() || !*row) return;
    if (auto head = Session::decode_head(key_, **row); head.ok()) session_->forget_keys(head->tip());
}

std::optional<KnownKey> SessionActor::known_key(const KeyHash& key) const {
    if (session_->find_key(key, node_.clock.now_ms())) return std::nullopt;  // the session knows better
    auto row = node_.store.read_row(Table::key, key_row_key(key_, key, node_.options.shard_count));
    if (!row.ok() || !*row) return std::nullopt;
    auto known = decode_key_row(**row);
    return known.ok() ? std::optional<KnownKey>(*known) : std::nullopt;
}

void SessionActor::on(SubmitTurn& ask) {
    auto fail = [&](const Error& error) {
        ask.done(Error(error));
        if (ask.stream) ask.stream->send(StreamFailed{error});
    };
    if (auto admitted =
            node_.store.admit(bytes_of(ask.request.items) + ask.request.options.size() + record_overhead_estimate);
        !admitted.ok()) {
        node_.metrics.refused(error_name(admitted.error().code));
        return fail(admitted.error());
    }
    auto ctx = context(ask.request.principal.name);
    ctx.key = ask.key;
    ctx.request_digest = ask.request.request_digest;
    SubmitInput submit;
    submit.input.items = ask.request.items;
    submit.input.agent = ask.agent->name;
    submit.input.agent_version = ask.agent->version;
    submit.input.principal = ask.request.principal.name;
    // An agent that says nothing has the default, and then the operator's word counts.
    const uint32_t steps = ask.agent->steps_per_turn != AgentSpec{}.steps_per_turn ? ask.agent->steps_per_turn
                                                                                   : node_.options.steps_per_turn;
    submit.input.limits = {steps, ask.agent->tokens_per_turn, node_.options.turn_duration_ms};
    submit.input.options = ask.request.options;
    submit.create = ask.create;
    submit.inherited = std::move(ask.inherited);
    submit.placed = std::move(ask.placed);
    submit.after_turn = ask.after;
    if (ask.key) {
        // What is forgotten here is in the store, so it is looked for there only after that: else neither would know
        // it.
        if (++keyed_turns_ % (limits::recent_keys_max / 4) == 0) forget_applied_keys();
        submit.known_key = known_key(*ask.key);
    }
    const TimeMs deadline = ask.request.timeout_ms ? ctx.now + ask.request.timeout_ms : 0;
    const bool existed = session_->exists();
    load_window();
    if (broken_) return fail(*broken_);
    // A conversation goes on by its own name only (DECISIONS 16).
    if (existed && ask.after && session_->created().conversation) return fork_and_submit(ask);
    const auto decided = decide(std::move(ctx), std::move(submit));
    if (!existed && session_->created().parent.valid()) {
        follow_parents();
        window_loaded_ = false;  // its first prompt is the parent's history
        load_window();
    }
    if (broken_) return fail(*broken_);
    if (decided.refused) {
        if (decided.refused->code == ErrorCode::conflict && ask.after) return fork_and_submit(ask);
        return fail(*decided.refused);
    }
    const TurnNo no = decided.turn;
    if (decided.repeated) {
        auto turn = find_turn(no);
        if (!turn.ok()) return fail(turn.error());
        if (!*turn) return fail({ErrorCode::response_not_found, "the turn of this idempotency key is gone", {}});
        if (is_settled((*turn)->status)) {
            auto answer = make_answer(*turn);
            answer.repeated = true;
            gate_.hold(last(), [answer, reply = std::make_shared<ReplyTo<TurnAnswer>>(std::move(ask.done)),
                                stream = ask.stream] {
                (*reply)(TurnAnswer(answer));
                if (stream) {
                    stream->send(StreamAccepted{answer});
                    stream->send(StreamEnded{answer});
                }
            });
            return;
        }
    }
    // As it is now: when the gate opens, it may have gone on in memory beyond what is committed.
    TurnPtr so_far;
    if (ask.stream || ask.request.background)
        if (auto found = find_turn(no); found.ok()) so_far = *found;
    if (ask.stream) {
        // Readers join when the input is committed: until then there is nothing to be promised. One who joins a turn
        // under way is told what it has so far; what comes from here on is published behind that.
        watch_.expect(no);
        gate_.hold(last(), [this, no, stream = ask.stream, so_far] {
            watch_.subscribe(no, stream);
            if (!so_far) return;
            stream->send(StreamAccepted{make_answer(so_far)});
            if (so_far->items.size() > so_far->input_count) {
                const uint32_t first = so_far->input_count;
                std::vector<ItemPtr> items(so_far->items.begin() + first, so_far->items.end());
                const uint32_t step = items.back()->step;
                stream->send(StreamItems{first, std::move(items), step, 0});
            }
            if (model_ && model_->step.turn == no && model_->published > 0)
                stream->send(StreamDelta{model_->step.step, model_->step.attempt,
                                         model_->streamed.substr(0, model_->published)});
        });
    } else if (ask.request.background) {
        gate_.hold(last(), [this, so_far, reply = std::make_shared<ReplyTo<TurnAnswer>>(std::move(ask.done))] {
            if (so_far) (*reply)(make_answer(so_far));
        });
    } else {
        watch_.wait(no, std::move(ask.done), deadline, decided.repeated);
    }
    follow_up(decided);
    drive();
}

/// The parent is older, busy or a conversation's: the turn goes to a fork that shares the history up to the parent.
void SessionActor::fork_and_submit(SubmitTurn& ask) {
    auto fail = [&](const Error& error) {
        ask.done(Error(error));
        if (ask.stream) ask.stream->send(StreamFailed{error});
    };
    auto parent = find_turn(*ask.after);
    if (!parent.ok()) return fail(parent.error());
    if (!*parent || *ask.after < history_.first_own())
        return fail({ErrorCode::previous_response_not_found, "there is no such response", "previous_response_id"});
    if (!is_settled((*parent)->status))
        return fail({ErrorCode::conflict, "the previous response is still in progress", "previous_response_id"});
    // A repeated key names the same child: what is there already is not recorded again.
    const auto image = ask.key ? node_.store.load({key_.tenant, ask.fork_child}) : Result<SessionImage>(SessionImage{});
    if (!image.ok()) return fail(image.error());
    if (!image->head && image->tail.empty()) {
        const auto decided = decide(context(ask.request.principal.name), ForkSession{ask.fork_child, *ask.after});
        if (decided.refused) return fail(*decided.refused);
    }

    SessionCreated child;
    child.tenant = key_.tenant;
    child.principal = ask.request.principal.name;
    child.parent = key_.session;
    child.parent_turn = *ask.after;
    child.metadata = ask.request.metadata;
    child.ephemeral = !ask.request.store;
    auto envelope = std::make_shared<Envelope>(Envelope{{key_.tenant, ask.fork_child}, WakeUp{}});
    ask.create = std::move(child);
    ask.inherited = Compacted{session_->left_out(), session_->summary()};
    ask.after.reset();
    envelope->ask = std::move(ask);
    gate_.hold(last(), [this, envelope] { self_->send(supervisor_, envelope); });
    drive();
}

void SessionActor::on(CancelTurnOf& ask) {
    if (ask.turn < history_.first_own() || ask.turn > session_->last_turn())
        return ask.done(Error{ErrorCode::response_not_found, "there is no such response", {}});
    const auto decided =
        decide(context(ask.principal.name), CancelTurn{ask.turn, "cancelled by " + ask.principal.name});
    if (decided.refused) return ask.done(Error(*decided.refused));
    follow_up(decided);
    auto turn = find_turn(ask.turn);
    if (!turn.ok()) return ask.done(turn.error());
    gate_.hold(last(), [this, turn = *turn, reply = std::make_shared<ReplyTo<TurnAnswer>>(std::move(ask.done))] {
        (*reply)(make_answer(turn));
    });
    drive();
}

void SessionActor::on(OpenSession& ask) {
    if (session_->exists() && ask.key) return answer_info(ask.done);  // the key made this session before
    if (auto admitted = node_.store.admit(bytes_of(ask.items) + record_overhead_estimate); !admitted.ok())
        return ask.done(admitted.error());
    auto ctx = context(ask.created.principal);
    ctx.key = ask.key;
    ctx.request_digest = ask.digest;
    const auto decided = decide(std::move(ctx), CreateSession{std::move(ask.created), std::move(ask.items)});
    if (decided.refused) return ask.done(Error(*decided.refused));
    answer_info(ask.done);
    drive();
}

void SessionActor::on(ChangeMetadata& ask) {
    const auto decided = decide(context(ask.principal.name), SetMetadata{std::move(ask.metadata)});
    if (decided.refused) return ask.done(Error(*decided.refused));
    answer_info(ask.done);
    drive();
}

/// The session's own bytes cannot be read, so that nothing was built of them.
bool SessionActor::damaged() const {
    return broken_ && last().value == 0 &&
           (broken_->code == ErrorCode::state_damaged || broken_->code == ErrorCode::journal_damaged);
}

/// Nobody can decide upon a session that cannot be read: its deletion is a batch that makes and deletes it by itself,
/// which the store takes for the end of what it has set aside (docs/formats/state.md).
void SessionActor::discard(RemoveSession& ask) {
    SessionCreated created;
    created.tenant = key_.tenant;
    created.principal = ask.principal.name;
    EventBatch batch;
    batch.at = node_.clock.now_ms();
    batch.events = {created, SessionDeleted{ask.principal.name}};
    session_->apply(batch, Sequence{1});
    append(batch, Sequence{1});
    broken_ = gone_error;
    SessionInfo before;
    before.id = key_.session;
    before.state = "damaged";
    gate_.hold(last(), [before, reply = std::make_shared<ReplyTo<SessionInfo>>(std::move(ask.done))] {
        (*reply)(SessionInfo(before));
    });
}

void SessionActor::on(RemoveSession& ask) {
    if (!session_->exists()) return ask.done(Error(gone_error));
    auto before = info();
    const auto decided = decide(context(ask.principal.name), DeleteSession{});
    if (decided.refused) return ask.done(Error(*decided.refused));
    gate_.hold(last(), [this, before, reply = std::make_shared<ReplyTo<SessionInfo>>(std::move(ask.done))] {
        watch_.fail_all({ErrorCode::session_not_found, "the session was deleted", {}});
        (*reply)(SessionInfo(before));
    });
    drive();
}

void SessionActor::on(AppendItems& ask) {
    if (auto admitted = node_.store.admit(bytes_of(ask.items) + record_overhead_estimate); !admitted.ok())
        return ask.done(admitted.error());
    const auto decided = decide(context(ask.principal.name), AddItems{std::move(ask.items)});
    if (decided.refused) return ask.done(Error(*decided.refused));
    ItemPage page;
    if (const auto turn = session_->turn(session_->last_turn()))
        for (size_t i = 0; i < turn->items.size(); ++i) page.items.push_back({item_id(turn->no, i), turn->items[i]});
    gate_.hold(last(), [page = std::move(page), reply = std::make_shared<ReplyTo<ItemPage>>(std::move(ask.done))] {
        (*reply)(ItemPage(page));
    });
    drive();
}

void SessionActor::on(ResolveCall& ask) {
    const Turn* open = session_->open_turn();
    const auto turn = ask.call.turn;
    const auto decided =
        decide(context(ask.principal.name), ResolveUnknown{turn, ask.call.index, ask.how, std::move(ask.result)});
    if (decided.refused) return ask.done(Error(*decided.refused));
    INVARIANT(open != nullptr, "only an open turn has an unknown call");
    follow_up(decided);
    auto after = find_turn(turn);
    if (!after.ok()) return ask.done(after.error());
    if (watch_.has_stream(turn) && (*after)->items.size() > ask.call.index)
        gate_.hold(last(), [this, turn, index = ask.call.index, item = (*after)->items[ask.call.index]] {
            watch_.publish(turn, StreamItemDone{index, item});
        });
    gate_.hold(last(), [this, answer = *after, reply = std::make_shared<ReplyTo<TurnAnswer>>(std::move(ask.done))] {
        (*reply)(make_answer(answer));
    });
    drive();
}

void SessionActor::on(WakeUp& ask) {
    const TimeMs now = node_.clock.now_ms();
    // The timer has forgotten this session, and with it anything later that was asked for while the earlier time stood.
    armed_at_ = 0;
    if (!broken_) {
        // A batch belongs to one turn, so what is due in several takes several ticks.
        for (size_t tick = 0; tick <= limits::input_queue_max; ++tick) {
            const TimeMs due = session_->wake_at();
            if (due == 0 || due > now) break;
            follow_up(decide(context("system"), Tick{}));
        }
        watch_.expire(now, [this](TurnNo turn) {
            return Error{ErrorCode::request_timeout,
                         "the turn goes on; read " + to_text(ResponseId{key_.session, turn}) + " for its outcome",
                         {}};
        });
    }
    drive();
    sleep_if_idle(now);
    if (ask.done) ask.done();
}

// --- the actor
// ------------------------------------------------------------------------------------------------------------

void SessionActor::committed(const Committed& acknowledged) {
    gate_.commit(acknowledged.committed);
    while (!settling_.empty() && settling_.front().first <= acknowledged.committed) settling_.pop_front();
    publish_deltas();
    if (waits_for_commit_) drive();
    count_busy();
}

caf::behavior session_actor(caf::stateful_actor<SessionActorHolder>* self, NodeContext* node, SessionKey key,
                            caf::actor supervisor, Epoch led_in) {
    self->state.actor = std::make_unique<SessionActor>(self, *node, key, std::move(supervisor), led_in);
    self->state.actor->activate();
    auto* actor = self->state.actor.get();
    return {
        [actor](const EnvelopePtr& envelope) { actor->handle(*envelope); },
        [actor](const Committed& acknowledged) { actor->committed(acknowledged); },
        [actor](const ModelDelta& delta) { actor->model_delta(delta); },
        [actor](const ModelSettledPtr& settled) { actor->model_settled(*settled); },
        [actor](const ToolSettledPtr& settled) { actor->tool_settled(*settled); },
        [actor](const ToolsReadyPtr& ready) { actor->tools_ready(*ready); },
        [actor](const RetryDecided& decided) { actor->retry_decided(decided); },
        [actor, self, key](sleep_atom) {
            // Everything that the supervisor sent before its permission has been handled by now.
            if (actor->go_to_sleep()) {
                self->send(caf::actor_cast<caf::actor>(self->current_sender()), gone_atom::value, key);
                self->quit();
            } else {
                self->send(caf::actor_cast<caf::actor>(self->current_sender()), stay_atom::value, key);
            }
        },
        [actor](const LeftNewsPtr& news) { actor->news_came(*news); },
        [actor](claim_atom, uint64_t claim) { actor->claim_over(claim); },
        [actor](claim_atom, uint64_t claim, uint32_t source) { actor->claim_again(claim, source); },
        [self, node](lost_atom) {
            auto& session = self->state.actor;
            session->lost();
            auto work = session->leave_behind();
            if (work.empty()) return self->quit(caf::exit_reason::user_shutdown);
            auto behind = std::make_shared<LeftBehind>(self, *node, session->led_in(), std::move(work));
            session.reset();
            self->become(left_behind(self, std::move(behind)));
        },
        // Nobody is told of that: the supervisor still sends here.
        [self, actor](refused_atom) {
            actor->lost();
            self->quit(caf::exit_reason::user_shutdown);
        },
        [self, actor](drain_atom) {
            actor->rest();
            self->quit();
        },
    };
}

}  // namespace mainstay
