#include "runtime/session/session.h"

#include <algorithm>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/session/decider.h"

namespace mainstay {
namespace {

std::string call_key(const SessionKey& key, TurnNo turn, uint32_t call) {
    std::string scope = to_text(key.session) + "/" + std::to_string(key.tenant.value);
    const KeyHash hash = key_hash(scope, std::to_string(turn.value) + "/" + std::to_string(call));
    return to_hex({reinterpret_cast<const char*>(hash.data()), hash.size()});
}

}  // namespace

Session::Session(SessionKey key) : key_(key) {}

Decided Session::decide(const Command& command) {
    Decider decider(*this, command.context);
    if (decider.admits(command.body)) std::visit([&](const auto& body) { decider.decide(body); }, command.body);
    Decided decided = decider.take();
    if (!decided.batch) return decided;
    decided.first_sequence = Sequence{sequence_.value + 1};
    const bool born = !exists_;
    apply(*decided.batch, decided.first_sequence);
    if (born) window_complete_ = exists_ && !created_.parent.valid();
    for (TurnNo settled : decided.settled) INVARIANT(!find_open(settled), "a settled turn is not open");
    return decided;
}

void Session::apply(const EventBatch& batch, Sequence first_sequence) {
    INVARIANT(first_sequence.value == sequence_.value + 1, "batches are applied in order, without gaps");
    INVARIANT(!batch.events.empty(), "a batch has events");
    INVARIANT(try_apply(batch, first_sequence), "a batch of this session fits its state");
    INVARIANT(sequence_.value == first_sequence.value + batch.events.size() - 1, "every event was counted");
    INVARIANT(open_.empty() || open_.front().turn.status == TurnStatus::in_progress, "the oldest open turn runs");
    INVARIANT(open_.size() <= limits::input_queue_max + 1, "the queue of inputs is bounded");
}

bool Session::try_apply(const EventBatch& batch, Sequence first_sequence) {
    if (first_sequence.value != sequence_.value + 1 || batch.events.empty() || deleted_) return false;
    return apply_batch(batch, first_sequence, false);
}

// `replay`: the head already holds what the batch did to the session; only the turn is made again.
bool Session::apply_batch(const EventBatch& batch, Sequence first_sequence, bool replay) {
    Sequence sequence = first_sequence;
    TurnProgress* turn = batch.turn.value == 0 ? nullptr : find_open(batch.turn);
    for (const Event& event : batch.events) {
        if (const auto* e = std::get_if<Decision>(&event); e && batch.turn.value == 0)
            if (auto refusal = noted_of(e->code)) noted_ |= static_cast<uint32_t>(*refusal);
        const bool opens = std::holds_alternative<InputAccepted>(event) || std::holds_alternative<ItemsAdded>(event);
        if (opens) {
            const bool next = replay ? batch.turn > turn_base_ : batch.turn.value == last_turn_.value + 1;
            if (turn || !next) return false;
            last_turn_ = std::max(last_turn_, batch.turn);
            if (!replay) noted_ = 0;
            turn = &open_.emplace_back();
            turn->turn.no = batch.turn;
        }
        if (!apply_event(event, turn, sequence, batch.at, replay)) return false;
        ++sequence.value;
        if (deleted_) turn = nullptr;
    }
    if (batch.at > now_) {
        for (TurnProgress& progress : open_) progress.reach(now_, batch.at, Sequence{sequence.value - 1});
        now_ = batch.at;
    }
    if (!replay) sequence_ = Sequence{sequence.value - 1};
    if (batch.turn.value == 0) return true;
    if (!turn) return deleted_;
    if (turn->settled()) {
        if (replay) return false;  // a head carries open turns only
        publish(static_cast<size_t>(turn - open_.data()));
    } else if (keep_history_) {
        turn->batches.push_back(OpenBatch{first_sequence, batch});
    }
    if (!replay) start_next();
    return true;
}

bool Session::apply_event(const Event& event, TurnProgress* turn, Sequence sequence, TimeMs at, bool replay) {
    if (!replay) {
        if (const auto* e = std::get_if<SessionCreated>(&event)) return create(*e, at);
        if (!exists_) return false;
        if (const auto* e = std::get_if<MemorySet>(&event)) set_memory(*e);
        if (const auto* e = std::get_if<InputAccepted>(&event)) {
            agent_ = e->agent;
            if (created_.ephemeral && e->key) keep_until_ = at + limits::idempotency_key_lifetime_ms;
        }
        if (const auto* e = std::get_if<MetadataSet>(&event)) created_.metadata = e->metadata;
        if (const auto* e = std::get_if<StreamReserved>(&event))
            stream_reserved_ = std::max(stream_reserved_, e->below);
        if (const auto* e = std::get_if<Forked>(&event)) {
            ++children_;
            if (recent_forks_.size() == limits::recent_forks_max) recent_forks_.erase(recent_forks_.begin());
            recent_forks_.push_back(e->child);
        }
        if (const auto* e = std::get_if<Compacted>(&event)) {
            if (e->up_to > last_turn_) return false;
            compacted_to_ = e->up_to;
            summary_ = e->summary;
            window_.drop_up_to(e->up_to);
        }
        if (std::holds_alternative<SessionDeleted>(event)) {
            exists_ = false;
            deleted_ = true;
            open_.clear();
            window_.clear();
            keys_.clear();
            memory_.clear();
            summary_.clear();
            created_.metadata.clear();
            return true;
        }
    }
    if (const auto* e = std::get_if<InputAccepted>(&event); e && e->key && keep_history_)
        keys_.add(RecentKey{*e->key, turn->turn.no, e->request_digest, at});
    return !turn || turn->apply(event, sequence, at);
}

bool Session::create(const SessionCreated& created, TimeMs at) {
    if (exists_ || sequence_.value != 0) return false;
    created_ = created;
    exists_ = true;
    created_at_ = at;
    window_complete_ = false;
    turn_base_ = last_turn_ = created.parent.valid() ? created.parent_turn : TurnNo{0};
    return true;
}

void Session::set_memory(const MemorySet& event) {
    if (event.removed)
        memory_.erase(event.key);
    else
        memory_[event.key] = event.value;
}

void Session::publish(size_t open_index) {
    TurnProgress& progress = open_[open_index];
    ++turns_settled_;
    items_settled_ += progress.turn.items.size();
    usage_ += progress.turn.usage;
    if (keep_history_) window_.push(std::make_shared<const Turn>(std::move(progress.turn)));
    open_.erase(open_.begin() + static_cast<ptrdiff_t>(open_index));
}

// A turn starts when no other runs: that follows from what is recorded, so it is no event of its own.
void Session::start_next() {
    if (!open_.empty()) open_.front().turn.status = TurnStatus::in_progress;
}

Pending Session::pending() const {
    Pending pending;
    pending.wake_at = wake_at();
    if (open_.empty()) return pending;
    const TurnProgress& progress = open_.front();
    const TurnNo no = progress.turn.no;
    auto ask = [&](const StepAttempt& step, uint32_t number, bool is_tool) {
        pending.retries.push_back(AskRetry{no, number, is_tool, step.attempt, step.failure->error_class,
                                           step.failure->code, step.failure->message, step.failure->sequence.value});
    };
    if (progress.model_step_due()) {
        const uint32_t step = progress.turn.model_steps;
        if (progress.model.failure) ask(progress.model, step, false);
        if (progress.model.runnable(now_))
            pending.model = RunModelStep{no, step, progress.model.attempt, progress.model.cause, progress.model.said};
    }
    for (const Call& call : progress.calls.all()) {
        if (call.state != Call::State::intended) continue;
        if (call.step.failure) ask(call.step, call.index, true);
        if (!call.in_flight(now_)) continue;
        const Item& item = *progress.turn.items[call.index];
        pending.tools.push_back(RunTool{no, call.index, call.step.attempt, call.step.cause, item.server_label,
                                        item.name, item.arguments, call.effect, call.timeout_ms,
                                        call_key(key_, no, call.index)});
    }
    return pending;
}

bool Session::exists() const { return exists_; }
bool Session::deleted() const { return deleted_; }
bool Session::idle() const { return open_.empty(); }
bool Session::at_rest() const { return idle() && wake_at() == 0 && !(exists_ && created_.ephemeral); }
Sequence Session::last_sequence() const { return sequence_; }
const SessionKey& Session::key() const { return key_; }
TurnNo Session::last_turn() const { return last_turn_; }
const SessionCreated& Session::created() const { return created_; }
TimeMs Session::created_at() const { return created_at_; }
const std::string& Session::metadata() const { return created_.metadata; }
const std::unordered_map<std::string, std::string>& Session::memory() const { return memory_; }
uint64_t Session::item_count() const { return items_settled_; }
const Usage& Session::usage() const { return usage_; }
bool Session::ephemeral() const { return created_.ephemeral; }
SessionId Session::parent() const { return created_.parent; }
TurnNo Session::parent_turn() const { return turn_base_; }
uint32_t Session::children() const { return children_; }
uint64_t Session::stream_reserved() const { return stream_reserved_; }
TimeMs Session::now() const { return now_; }

bool Session::disposable(TimeMs now) const {
    return exists_ && created_.ephemeral && open_.empty() && last_turn_ > turn_base_ && now >= keep_until_;
}

bool Session::forgettable() const { return deleted_ && created_.ephemeral && children_ == 0 && now_ >= keep_until_; }

TimeMs Session::wake_at() const {
    if (!open_.empty()) return open_.front().wake_at(now_);
    return exists_ ? keep_until_ : 0;
}

TurnNo Session::tip() const {
    TurnNo no = last_turn_;
    while (no > turn_base_ && find_open(no)) --no.value;
    return no;
}

std::vector<TurnNo> Session::open_turns() const {
    std::vector<TurnNo> turns;
    for (const TurnProgress& progress : open_) turns.push_back(progress.turn.no);
    return turns;
}

TurnProgress* Session::find_open(TurnNo no) {
    for (TurnProgress& progress : open_)
        if (progress.turn.no == no) return &progress;
    return nullptr;
}

const TurnProgress* Session::find_open(TurnNo no) const { return const_cast<Session*>(this)->find_open(no); }

TurnPtr Session::turn(TurnNo no) const {
    // A copy of an open turn: what was handed out never changes, and its items are shared all the same.
    if (const TurnProgress* open = find_open(no)) return std::make_shared<const Turn>(open->turn);
    return no > turn_base_ ? window_.find(no) : nullptr;
}

std::optional<KnownKey> Session::find_key(const KeyHash& key, TimeMs now) const {
    const RecentKey* recent = keys_.find(key, now);
    if (!recent) return std::nullopt;
    return KnownKey{recent->turn, recent->request_digest, recent->at};
}

void Session::load_window(std::vector<TurnPtr> settled_turns) {
    // As they were settled: a turn that was cancelled while it waited is settled before older ones.
    std::stable_sort(settled_turns.begin(), settled_turns.end(), [](const TurnPtr& a, const TurnPtr& b) {
        return std::pair(a->settled_at, a->no) < std::pair(b->settled_at, b->no);
    });
    window_.clear();
    for (const TurnPtr& turn : settled_turns)
        if (turn->no > compacted_to_) window_.push(turn);
    window_complete_ = true;
}

TurnNo Session::left_out() const {
    TurnNo first = window_.first();
    if (!open_.empty()) first = std::min(first, open_.front().turn.no);
    return window_complete_ && first > compacted_to_ ? TurnNo{first.value - 1} : compacted_to_;
}

const std::string& Session::summary() const { return summary_; }

void Session::set_window_bytes(size_t bytes) { window_.set_bytes(bytes); }

TurnRun Session::settled_window() const {
    const TurnRun turns = window_.run();
    // Turns that were left out for want of room have no summary, and nothing stands for them: a sentence that says so
    // would cost tokens, and tell a model nothing that it could use.
    if (summary_.empty()) return turns;
    auto summary = std::make_shared<Item>();
    summary->kind = ItemKind::compaction;
    summary->text = summary_;
    TurnRun::Turns with_summary;
    with_summary.push_back(std::make_shared<const std::vector<ItemPtr>>(1, std::move(summary)));
    with_summary.insert(with_summary.end(), turns.begin(), turns.end());
    return TurnRun(std::move(with_summary));
}

ItemsPtr Session::open_items() const { return open_.empty() ? nullptr : prompt_items(open_.front().turn); }

std::vector<ItemsPtr> Session::window() const {
    const TurnRun settled = settled_window();
    std::vector<ItemsPtr> out(settled.begin(), settled.end());
    if (auto open = open_items()) out.push_back(std::move(open));
    return out;
}

TimeMs Session::open_deadline() const { return open_.empty() ? 0 : open_.front().deadline; }

const Turn* Session::open_turn() const { return open_.empty() ? nullptr : &open_.front().turn; }

void Session::forget_keys(TurnNo up_to) { keys_.forget(up_to); }

void Session::forget_history() {
    keep_history_ = false;
    window_.clear();
    keys_.clear();
    for (TurnProgress& progress : open_) progress.batches.clear();
}

}  // namespace mainstay
