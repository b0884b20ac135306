#include "sim/shell.h"

#include <algorithm>

#include "runtime/session/fold.h"
#include "runtime/session/rebuild.h"
#include "sim/world.h"

namespace mainstay::sim {
namespace {

constexpr size_t window_bytes = 1024;

ItemPtr user_item(const std::string& text) {
    auto item = std::make_shared<Item>();
    item->text = text;
    return item;
}

class CommitMail final : public AckTarget {
  public:
    explicit CommitMail(std::function<void(Sequence)> post) : post_(std::move(post)) {}
    void acknowledged(Sequence, Sequence committed) override { post_(committed); }

  private:
    std::function<void(Sequence)> post_;
};

}  // namespace

Shell::Shell(World& world, uint32_t index, uint64_t incarnation)
    : world_(world),
      index_(index),
      incarnation_(incarnation),
      key_(world.keys_[index]),
      session_(key_),
      history_(world.store_, key_),
      ack_target_(std::make_shared<CommitMail>([&world, index, incarnation](Sequence committed) {
          check(!world.store_.must_abort(), "a store that must abort acknowledges");
          World::Job job;
          job.session = index;
          job.incarnation = incarnation;
          job.committed = committed;
          world.jobs_.push_back(std::move(job));
      })) {}

void Shell::activate(const Elsewhere& elsewhere) {
    auto image = world_.store_.load(key_);
    check(image.ok(), "a session cannot be loaded");
    auto rebuilt = rebuild(key_, *image);
    check(rebuilt.ok(), "a session cannot be made of its head and tail");
    session_ = std::move(*rebuilt);
    session_.set_window_bytes(window_bytes);
    if (session_.exists()) adopt_history();
    gate_.start_at(session_.last_sequence());
    world_.check_activated(*this);
    Recover recover;
    if (elsewhere.model)
        recover.elsewhere.push_back({false, elsewhere.model->step, elsewhere.model->attempt, "a node"});
    for (const RunTool& tool : elsewhere.tools) recover.elsewhere.push_back({true, tool.call, tool.attempt, "a node"});
    if (session_.open_turn() != nullptr && world_.options_.mutant != Mutant::recovery_repeats_once)
        follow_up(decide(std::move(recover)));
    model_ = elsewhere.model;
    tools_ = elsewhere.tools;
    drive();
}

std::vector<size_t> Shell::waiting_requests() const {
    std::vector<size_t> out;
    for (const auto& [turn, requests] : waiting_) out.insert(out.end(), requests.begin(), requests.end());
    return out;
}

void Shell::adopt_history() {
    if (session_.created().parent.valid())
        check(history_.follow_parents(session_.created()).ok(), "the ancestors of a fork cannot be read");
    // Reading rows is most of what an activation costs, so not each one does it.
    if (!world_.chance(5)) return;
    std::vector<TurnPtr> newest_first;
    size_t bytes = 0;
    for (uint32_t no = session_.tip().value;
         no > session_.left_out().value && bytes < window_bytes * limits::history_windows_read; --no) {
        auto turn = history_.read(TurnNo{no});
        check(turn.ok(), "a row of a settled turn cannot be read");
        if (!*turn) break;
        bytes += window_bytes_of(**turn);
        newest_first.push_back(std::move(*turn));
    }
    session_.load_window(std::move(newest_first));
}

Result<TurnPtr> Shell::find_turn(TurnNo turn) const {
    if (auto here = session_.turn(turn)) return here;
    for (const auto& [sequence, settled] : settling_)
        if (settled->no == turn) return settled;
    return history_.read(turn);
}

std::vector<uint32_t> Shell::unknown_calls() const {
    std::vector<uint32_t> calls;
    if (const Turn* open = session_.open_turn())
        for (size_t i = 0; i < open->items.size(); ++i)
            if (open->items[i]->status == ItemStatus::unknown) calls.push_back(static_cast<uint32_t>(i));
    return calls;
}

// --- commands -----------------------------------------------------------------------------------------------------

Decided Shell::decide(CommandBody body, const Request* request) {
    Command command;
    command.context.now = world_.now_;
    command.context.tenant = key_.tenant;
    command.context.principal = request ? "ann" : "system";
    if (request) {
        command.context.key = request->key;
        command.context.request_digest = request->digest;
    }
    command.body = std::move(body);
    ++world_.counts_.commands;
    auto decided = session_.decide(command);
    if (decided.batch) {
        for (const auto& event : decided.batch->events) {
            if (const auto* receipt = std::get_if<ToolReceipt>(&event))
                world_.counts_.unknowns += receipt->status == ItemStatus::unknown;
            world_.counts_.retries += std::holds_alternative<RetryScheduled>(event);
        }
        Append append;
        append.session = key_;
        append.first_sequence = decided.first_sequence;
        append.event_count = static_cast<uint32_t>(decided.batch->events.size());
        append.turn = decided.batch->turn;
        append.payload = encode(*decided.batch);
        append.target = ack_target_;
        append.at_rest = session_.at_rest();
        append.deletes = session_.deleted();
        world_.append(std::move(append));
    }
    for (const TurnNo no : decided.settled) settling_.emplace_back(session_.last_sequence(), session_.turn(no));
    return decided;
}

void Shell::hold(OutputGate::Output output) {
    if (world_.options_.mutant == Mutant::acknowledge_before_commit) return output();
    gate_.hold(session_.last_sequence(), std::move(output));
}

void Shell::hold_shown(TurnNo no) {
    auto turn = find_turn(no);
    check(turn.ok() && *turn, "a turn that was made cannot be read");
    hold([this, turn = *turn] { world_.views_[index_].show(turn); });
}

void Shell::follow_up(const Decided& decided) {
    for (const TurnNo no : decided.settled) {
        auto turn = session_.turn(no);
        check(turn != nullptr, "a turn that was just settled is not in the window");
        const auto open = session_.open_turns();
        check(turn->status == TurnStatus::cancelled || open.empty() || open.front() > no,
              "a turn was settled before an older one");
        hold([this, turn] { answer_settled(turn); });
    }
}

void Shell::answer_settled(const TurnPtr& turn) {
    world_.views_[index_].show(turn);
    if (auto waiting = waiting_.extract(turn->no.value))
        for (const size_t request : waiting.mapped()) world_.answered(world_.requests_[request], index_, turn);
}

void Shell::submit(Request& request, std::optional<SessionCreated> create) {
    ClientView& view = world_.views_[index_];
    if (!world_.store_.admit(request.text.size() + 4096)) {
        ++world_.counts_.refused_full;
        request.state = Request::State::unanswered;
        return;
    }
    check(!world_.store_.stats().read_only, "a read-only store admits");
    SubmitInput submit;
    submit.input.items = {user_item(request.text)};
    submit.input.agent = "agent";
    submit.input.agent_version = 1;
    submit.input.limits = request.limits;
    submit.create = std::move(create);
    if (!submit.create) submit.after_turn = request.after;
    if (world_.options_.mutant != Mutant::keys_forgotten && !session_.find_key(request.key, world_.now_)) {
        auto row = world_.store_.read_row(Table::key, key_row_key(key_, request.key, world_.store_shards()));
        check(row.ok(), "a key row cannot be read");
        if (*row) {
            auto known = decode_key_row(**row);
            check(known.ok(), "a key row is damaged");
            submit.known_key = *known;
        }
    }
    const bool existed = session_.exists();
    const auto decided = decide(std::move(submit), &request);
    if (!existed && session_.exists()) adopt_history();
    if (decided.refused) {
        const ErrorCode code = decided.refused->code;
        if (code == ErrorCode::conflict && request.after && index_ == request.session) return fork_and_submit(request);
        check(!request.turn || view.delete_asked, "a key that was acknowledged is refused");
        const bool taken = view.ephemeral && !request.creates;  // it takes the turn that made it and no other
        check(code != ErrorCode::session_not_found || view.delete_asked || taken || !view.acknowledged,
              "an acknowledged session is gone");
        request.state = code == ErrorCode::session_not_found && (view.delete_asked || taken)
                            ? Request::State::refused
                            : Request::State::unanswered;
        return;
    }
    check(!view.delete_acknowledged, "a deleted session takes an input");
    const TurnNo no = decided.turn;
    if (decided.repeated) {
        ++world_.counts_.repeats;
        check(!request.turn || *request.turn == no, "a repeated key answers with another turn");
        auto turn = find_turn(no);
        check(turn.ok() && *turn, "the turn of a repeated key is gone");
        check((*turn)->key == request.key, "a repeated key answers with a turn of another key");
        if (is_settled((*turn)->status)) {
            hold([this, &request, turn = *turn] { world_.answered(request, index_, turn); });
            return;
        }
    } else {
        ++world_.counts_.submits;
        check(!request.turn, "an acknowledged input was accepted again");
    }
    request.state = Request::State::waiting;
    if (request.background)
        hold([this, &request, turn = session_.turn(no)] { world_.answered(request, index_, turn); });
    else
        waiting_[no.value].push_back(request.number);
    follow_up(decided);
    drive();
}

void Shell::fork_and_submit(Request& request) {
    request.state = Request::State::unanswered;
    auto parent = find_turn(*request.after);
    check(parent.ok() && *parent, "a turn that was acknowledged cannot be forked");
    if (!is_settled((*parent)->status)) return;
    const auto decided = decide(ForkSession{world_.keys_[request.child].session, *request.after});
    if (decided.refused) return;
    request.state = Request::State::waiting;
    request.forked = true;
    ++world_.counts_.forks;
    SessionCreated child;
    child.tenant = key_.tenant;
    child.principal = "ann";
    child.parent = key_.session;
    child.parent_turn = *request.after;
    hold([this, &request, child] { world_.shell(request.child).submit(request, child); });
    drive();
}

void Shell::cancel(TurnNo turn) {
    const auto decided = decide(CancelTurn{turn, "no longer wanted"});
    if (decided.refused) return;
    ++world_.counts_.cancels;
    follow_up(decided);
    if (decided.turn.value != 0) hold_shown(decided.turn);
    drive();
}

void Shell::add_items(std::string text) {
    if (!world_.store_.admit(text.size() + 4096)) {
        ++world_.counts_.refused_full;
        return;
    }
    const auto decided = decide(AddItems{{user_item(text), user_item(text + " again")}});
    if (!decided.refused) follow_up(decided);
    drive();
}

void Shell::set_metadata(uint64_t number) {
    ClientView& view = world_.views_[index_];
    if (decide(SetMetadata{std::to_string(number)}).refused) return;
    view.metadata_asked = number;
    hold([&view, number] { view.metadata_acknowledged = std::max(view.metadata_acknowledged, number); });
    drive();  // any batch records the time, and that may make a retry due
}

void Shell::remove() {
    if (!session_.exists()) return;
    ClientView& view = world_.views_[index_];
    view.delete_asked = true;
    if (decide(DeleteSession{}).refused) return;
    ++world_.counts_.deletes;
    hold([this, &view] {
        view.delete_acknowledged = true;
        for (auto& [turn, requests] : waiting_)
            for (const size_t request : requests) world_.requests_[request].state = Request::State::refused;
        waiting_.clear();
    });
    drive();
}

void Shell::resolve(TurnNo turn, uint32_t call, Resolution how, std::string output) {
    const auto decided = decide(ResolveUnknown{turn, call, how, std::move(output)});
    check(!decided.refused, "an unknown outcome cannot be closed");
    ++world_.counts_.resolved;
    world_.views_[index_].resolved.insert({turn.value, call});
    if (how == Resolution::retry) hold([this, turn, call] { world_.tools_.allow_again(key_, turn, call); });
    follow_up(decided);
    hold_shown(turn);
    drive();
}

void Shell::read(TurnNo no) {
    const ClientView& view = world_.views_[index_];
    const bool shown = view.turns.count(no.value) != 0;
    if (!session_.exists()) {
        check(!shown || view.delete_asked, "a session that served turns is gone");
        return;
    }
    if (no <= session_.parent_turn()) return;
    auto turn = find_turn(no);
    check(turn.ok(), "a turn cannot be read");
    check(*turn || !shown, "an acknowledged turn is gone");
    if (*turn) hold([this, turn = *turn] { world_.views_[index_].show(turn); });
    ++world_.counts_.turns_read;
}

void Shell::wake() {
    const TimeMs at = session_.wake_at();
    if (at == 0 || at > world_.now_) return;
    ++world_.counts_.timers;
    follow_up(decide(Tick{}));
    if (session_.deleted()) {
        check(session_.ephemeral(), "time deletes a session that was to be kept");
        world_.views_[index_].delete_asked = true;
        hold([this] { world_.views_[index_].delete_acknowledged = true; });
    }
    drive();
}

// --- effects ------------------------------------------------------------------------------------------------------

void Shell::drive() {
    waits_for_commit_ = false;
    const auto pending = session_.pending();
    if (model_ && !(pending.model && pending.model->turn == model_->turn && pending.model->step == model_->step &&
                    pending.model->attempt == model_->attempt))
        model_.reset();
    std::erase_if(tools_, [&](const RunTool& t) {
        return std::none_of(pending.tools.begin(), pending.tools.end(), [&](const RunTool& p) {
            return p.turn == t.turn && p.call == t.call && p.attempt == t.attempt;
        });
    });
    World::Job job;
    job.session = index_;
    job.incarnation = incarnation_;
    if (pending.model && !model_) {
        if (world_.strict_ && !gate_.is_committed(pending.model->cause)) {
            waits_for_commit_ = true;
        } else {
            model_ = pending.model;
            job.kind = World::Job::Kind::model;
            job.model = *pending.model;
            world_.jobs_.push_back(job);
        }
    }
    for (const auto& tool : pending.tools) {
        if (std::any_of(tools_.begin(), tools_.end(), [&](const RunTool& t) {
                return t.turn == tool.turn && t.call == tool.call && t.attempt == tool.attempt;
            }))
            continue;
        if (!gate_.is_committed(tool.cause) && world_.options_.mutant != Mutant::dispatch_before_intent) {
            waits_for_commit_ = true;
            continue;
        }
        world_.check_dispatch(index_, tool);
        tools_.push_back(tool);
        job.kind = World::Job::Kind::tool;
        job.tool = tool;
        world_.jobs_.push_back(job);
    }
    for (const auto& ask : pending.retries) {
        if (std::any_of(retries_.begin(), retries_.end(), [&](const AskedRetry& r) {
                return r.turn == ask.turn && r.step == ask.step && r.is_tool == ask.is_tool && r.attempt == ask.attempt;
            }))
            continue;
        retries_.push_back({ask.turn, ask.step, ask.attempt, ask.is_tool});
        job.kind = World::Job::Kind::retry;
        job.retry = ask;
        world_.jobs_.push_back(job);
    }
}

void Shell::committed(Sequence sequence) {
    gate_.commit(sequence);
    std::erase_if(settling_, [&](const auto& settled) { return gate_.is_committed(settled.first); });
    if (waits_for_commit_) drive();
}

// The daemon drops an outcome of what it has cancelled. Here some go on to the session: it must ignore them itself.
void Shell::model_outcome(const RunModelStep& step) {
    const bool awaited =
        model_ && model_->turn == step.turn && model_->step == step.step && model_->attempt == step.attempt;
    if (awaited)
        model_.reset();
    else if (world_.chance(50))
        return;
    const CommandBody outcome = world_.model_step(step);
    const auto decided = decide(outcome);
    check(awaited || !decided.batch, "an outcome that nobody waits for changes the session");
    if (const auto* paused = std::get_if<ModelStepPaused>(&outcome); paused && decided.batch) {
        const auto next = session_.pending().model;
        check(next && next->step == step.step && next->attempt == step.attempt && next->resume &&
                  next->resume->ids == paused->tokens.ids,
              "a paused step goes on from what it said");
    }
    if (decided.batch && decided.settled.empty() && world_.chance(25)) hold_shown(step.turn);
    follow_up(decided);
    drive();
}

void Shell::tool_outcome(const RunTool& tool, CommandBody outcome) {
    const auto awaited = std::find_if(tools_.begin(), tools_.end(), [&](const RunTool& t) {
        return t.turn == tool.turn && t.call == tool.call && t.attempt == tool.attempt;
    });
    const bool stale = awaited == tools_.end();
    if (!stale)
        tools_.erase(awaited);
    else if (world_.chance(50))
        return;
    const auto decided = decide(std::move(outcome));
    check(!stale || !decided.batch, "an outcome that nobody waits for changes the session");
    if (decided.batch && decided.settled.empty() && world_.chance(25)) hold_shown(tool.turn);
    follow_up(decided);
    drive();
}

void Shell::retry_decided(const RetryVerdict& verdict) {
    std::erase_if(retries_, [&](const AskedRetry& r) {
        return r.turn == verdict.turn && r.step == verdict.step && r.is_tool == verdict.is_tool &&
               r.attempt == verdict.attempt;
    });
    follow_up(decide(verdict));
    drive();
}

bool Shell::can_sleep() const {
    if (!all_committed() || !waiting_.empty() || model_ || !tools_.empty() || !retries_.empty()) return false;
    const auto pending = session_.pending();
    return !pending.model && pending.tools.empty() && pending.retries.empty();
}

}  // namespace mainstay::sim
