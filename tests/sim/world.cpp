#include "sim/world.h"

#include <algorithm>
#include <cstring>

namespace mainstay::sim {
namespace {

constexpr size_t sessions_max = 12, own_sessions_max = 4;
constexpr RetrySpec retry_spec{3, 50, 2000};

StoreFaultRates draw_rates(Random& random) {
    StoreFaultRates rates;
    auto set = [&](StoreFault fault, uint32_t per_thousand) {
        rates.per_thousand[static_cast<size_t>(fault)] = per_thousand;
    };
    set(StoreFault::lost_unsynced, 400);
    set(StoreFault::torn, 500);
    set(StoreFault::write_error, random.below(3) == 0 ? 10 : 2);
    set(StoreFault::sync_error, random.below(3) == 0 ? 10 : 2);
    set(StoreFault::no_space, random.below(3) == 0 ? 60 : 15);
    set(StoreFault::slow, random.below(3) == 0 ? 100 : 20);
    return rates;
}

MemoryStoreConfig store_config(Fold& fold) {
    MemoryStoreConfig config;
    config.uuid = {1};
    config.epoch = Epoch{1};
    config.fold = &fold;
    config.shard_count = World::store_shards();
    config.segment_bytes = 32 * 1024;
    config.group_bytes_max = 8 * 1024;
    return config;
}

}  // namespace

void Counts::add(const Counts& other) {
    static_assert(sizeof(Counts) % sizeof(uint64_t) == 0);
    std::array<uint64_t, sizeof(Counts) / sizeof(uint64_t)> mine, theirs;
    std::memcpy(mine.data(), this, sizeof *this);
    std::memcpy(theirs.data(), &other, sizeof other);
    for (size_t i = 0; i < mine.size(); ++i) mine[i] += theirs[i];
    std::memcpy(this, mine.data(), sizeof *this);
}

World::World(const HistoryOptions& options)
    : options_(options),
      random_(options.seed),
      fold_(store_shards()),
      store_(store_config(fold_)),
      strict_(random_.below(2) == 0) {
    store_.inject_randomly(random_.next(), draw_rates(random_));
}

void World::run() {
    const uint64_t crash_at = 3 + random_.below(3);  // per thousand steps
    // Every step may be one where nothing can be done; a history that gets nowhere is a failure too.
    for (uint64_t steps = 0; counts_.commands < options_.commands; ++steps) {
        check(steps < 400ull * options_.commands, "a history makes no progress");
        const uint64_t what = random_.below(1000);
        if (what < 380)
            step_store();
        else if (what < 387)
            store_.step_apply();
        else if (what < 780)
            run_job();
        else if (what < 930)
            act_as_client();
        else if (what < 970)
            pass_time();
        else if (what < 978 && !shells_.empty())
            sleep(static_cast<uint32_t>(any_of(shells_)));
        else if (what < 985 && !shells_.empty())
            // Rather one that has something under way.
            hand_over(jobs_.empty() ? static_cast<uint32_t>(any_of(shells_)) : jobs_[any_of(jobs_)].session);
        else if (what < 1000 - crash_at && !shells_.empty()) {
            const auto& some = shells_[any_of(shells_)];
            if (some && what % 2 == 0) check_rebuilt(*some);
        } else if (what >= 1000 - crash_at) {
            ++counts_.processes_killed;
            kill();
            restart();
        }
        if (store_.must_abort()) {
            ++counts_.crashes_by_eio;
            kill();
            restart();
        }
    }
    finish();
    ++counts_.histories;
    for (size_t fault = 0; fault < store_fault_count; ++fault)
        counts_.struck[fault] = store_.struck(static_cast<StoreFault>(fault));
    counts_.executions = tools_.executions();
    counts_.segments = store_.stats().segments;
}

std::string World::words(const char* what, size_t bytes_max) {
    // Each text is another one, so that what was made again never looks like what was lost.
    std::string text = std::string(what) + " " + std::to_string(random_.next());
    text.append(random_.below(bytes_max), 'x');
    return text;
}

// --- the node -----------------------------------------------------------------------------------------------------

Shell& World::shell(uint32_t session) {
    auto& here = shells_[session];
    if (!here) {
        here = std::make_unique<Shell>(*this, session, ++incarnations_);
        alarms_[session] = 0;
        here->activate();
    }
    return *here;
}

void World::append(Append append) {
    if (options_.mutant == Mutant::store_acknowledges_before_sync)
        early_.push_back(
            {std::exchange(append.target, nullptr), Sequence{append.first_sequence.value + append.event_count - 1}});
    store_.append(std::move(append));
}

void World::step_store() {
    store_.step_journal();
    for (auto& ack : std::exchange(early_, {}))
        if (!store_.must_abort()) ack.target->acknowledged(ack.sequence, ack.sequence);
}

void World::drop_job(size_t at) {
    if (at + 1 != jobs_.size()) jobs_[at] = std::move(jobs_.back());
    jobs_.pop_back();
}

void World::run_job() {
    if (jobs_.empty()) return;
    const size_t at = any_of(jobs_);
    const auto& owner = shells_[jobs_[at].session];
    if (!owner || owner->incarnation() != jobs_[at].incarnation) return drop_job(at);
    Job job = std::move(jobs_[at]);
    drop_job(at);
    switch (job.kind) {
        case Job::Kind::commit: return owner->committed(job.committed);
        case Job::Kind::model: return owner->model_outcome(job.model);
        case Job::Kind::tool: return run_tool(std::move(job));
        case Job::Kind::retry: {
            FailedStep failed;
            failed.error_class = job.retry.error_class;
            failed.attempt = job.retry.attempt;
            failed.message = job.retry.message;
            const auto decision = decide_retry(failed, retry_spec, now_, budget_, random_);
            return owner->retry_decided({job.retry.turn, job.retry.step, job.retry.is_tool, job.retry.attempt,
                                         decision.retry, decision.at, decision.reason});
        }
    }
}

CommandBody World::model_step(const RunModelStep& step) {
    const uint64_t what = finishing_ ? 50 : random_.below(100);
    if (what < 14) {
        ModelStepFailed failed;
        failed.turn = step.turn;
        failed.step = step.step;
        failed.attempt = step.attempt;
        failed.error_class = what < 11 ? ErrorClass::transient : ErrorClass::invalid;
        failed.message = "the upstream said no";
        if (what == 13) {
            failed.error_class = ErrorClass::context_overflow;
            failed.code = ErrorCode::context_overflow;
            failed.truncate = chance(80);
            failed.context_limit = chance(50) ? 1000 : 0;
            failed.context_tokens = static_cast<uint32_t>(1001 + random_.below(2000));
        }
        if (chance(40)) failed.partial_text = words("part", 20);
        return failed;
    }
    if (what >= 16 && what < 22 && !finishing_) {
        ModelStepPaused paused{step.turn, step.step, step.attempt, {}};
        if (step.resume) paused.tokens = *step.resume;
        for (uint64_t more = random_.below(40); more > 0; --more)
            paused.tokens.ids.push_back(static_cast<uint32_t>(random_.below(32'000)));
        return paused;
    }
    budget_.succeeded();
    ModelStepDone done;
    done.turn = step.turn;
    done.step = step.step;
    done.attempt = step.attempt;
    done.usage.input_tokens = 10;
    done.usage.output_tokens = static_cast<uint32_t>(5 + random_.below(10));
    done.model = "simulated";
    done.finish_reason = what == 14 ? "length" : what == 15 ? "content_filter" : "stop";
    if (what < 60) {
        done.text = words("answer", 120);
        return done;
    }
    done.finish_reason = "tool_calls";
    if (chance(30)) done.text = words("I shall", 40);
    for (uint64_t calls = 1 + random_.below(3); calls > 0; --calls) {
        PlannedCall& call = done.calls.emplace_back();
        call.call_id = "call_" + std::to_string(random_.below(1000000));
        const uint64_t kind = random_.below(100);
        call.name = call.tool = "tool";
        call.arguments = "{\"a\":" + std::to_string(random_.next()) + "}";
        if (kind < 66) {
            call.disposition = PlannedCall::Disposition::run;
            call.server_label = "files";
            call.effect = kind < 34 ? EffectClass::once : kind < 50 ? EffectClass::idempotent : EffectClass::read;
            call.timeout_ms = 5000;
        } else if (kind < 88) {
            call.disposition = PlannedCall::Disposition::builtin;
            call.action.kind = kind < 74   ? BuiltinAction::Kind::memory_set
                               : kind < 78 ? BuiltinAction::Kind::memory_get
                               : kind < 80 ? BuiltinAction::Kind::memory_delete
                                           : BuiltinAction::Kind::sleep;
            call.action.key = "k" + std::to_string(random_.below(3));
            call.action.value = words("value", 10);
            call.action.duration_ms = random_.below(30'000);
        } else {
            call.disposition = kind < 94 ? PlannedCall::Disposition::refuse : PlannedCall::Disposition::client;
            call.refusal_message = "not allowed";
        }
    }
    return done;
}

CommandBody World::tool_result(const RunTool& tool) {
    const uint64_t what = finishing_ ? 50 : random_.below(100);
    if (what < 20) {
        ToolFailed failed;
        failed.turn = tool.turn;
        failed.call = tool.call;
        failed.attempt = tool.attempt;
        failed.lost = what < 9;
        failed.error_class = failed.lost ? ErrorClass::lost : what < 17 ? ErrorClass::transient : ErrorClass::invalid;
        failed.message = "the tool is not there";
        if (failed.lost && chance(50)) tools_.executed(tool.idempotency_key);
        return failed;
    }
    tools_.executed(tool.idempotency_key);
    return ToolStepDone{tool.turn, tool.call, tool.attempt, what < 26, words("result", 100), 12};
}

// A tool has its effect at one moment and answers at another: a crash may come between.
void World::run_tool(Job job) {
    if (!job.tool_answer) job.tool_answer = tool_result(job.tool);
    if (chance(50)) return jobs_.push_back(std::move(job));
    shells_[job.session]->tool_outcome(job.tool, std::move(*job.tool_answer));
}

void World::sleep(uint32_t session) {
    const auto& here = shells_[session];
    if (!here || !here->can_sleep()) return;
    alarms_[session] = here->session().wake_at();
    shells_[session].reset();
    ++counts_.sleeps;
}

/// As planned to another node that shares this store: with all that is committed, and with what goes on at the old one,
/// if that can be asked.
void World::hand_over(uint32_t session) {
    auto& here = shells_[session];
    if (!here || !here->all_committed()) return;
    for (const size_t number : here->waiting_requests())
        if (requests_[number].state == Request::State::waiting) requests_[number].state = Request::State::unanswered;
    const uint64_t before = here->incarnation();
    here = std::make_unique<Shell>(*this, session, ++incarnations_);
    const bool asked = chance(80);
    Elsewhere elsewhere;
    const Session journalled = rebuild(keys_[session]);
    const Pending pending = journalled.pending();
    for (size_t at = 0; at < jobs_.size();) {
        Job& job = jobs_[at];
        const bool mine = job.session == session && job.incarnation == before;
        const bool tool = mine && asked && job.kind == Job::Kind::tool &&
                          std::any_of(pending.tools.begin(), pending.tools.end(), [&](const RunTool& one) {
                              return one.call == job.tool.call && one.attempt == job.tool.attempt;
                          });
        const bool model = mine && asked && job.kind == Job::Kind::model && pending.model &&
                           pending.model->step == job.model.step && pending.model->attempt == job.model.attempt;
        if (!mine) {
            ++at;
        } else if (tool || model) {
            if (tool)
                elsewhere.tools.push_back(job.tool);
            else
                elsewhere.model = job.model;
            job.incarnation = here->incarnation();
            ++counts_.taken;
            ++at;
        } else {
            if (job.kind == Job::Kind::tool && !job.tool_answer && chance(30))
                tools_.executed(job.tool.idempotency_key);
            drop_job(at);
        }
    }
    ++counts_.hand_overs;
    here->activate(elsewhere);
}

TimeMs World::next_wake() const {
    TimeMs first = 0;
    for (size_t i = 0; i < shells_.size(); ++i) {
        const TimeMs at = shells_[i] ? shells_[i]->session().wake_at() : alarms_[i];
        // A day must not pass before the end: keys would expire under clients that still ask.
        if (views_[i].ephemeral && at > now_ + limits::idempotency_key_lifetime_ms / 2) continue;
        if (at != 0 && (first == 0 || at < first)) first = at;
    }
    return first;
}

void World::wake_due() {
    for (uint32_t i = 0; i < shells_.size(); ++i) {
        if (!shells_[i] && alarms_[i] != 0 && alarms_[i] <= now_) shell(i);
        if (shells_[i]) shells_[i]->wake();
    }
}

void World::pass_time() {
    now_ += random_.below(20);
    if (chance(50))
        if (const TimeMs at = next_wake(); at > now_) now_ = at;
    wake_due();
}

void World::kill() {
    // What was on its way to a tool may still reach it.
    for (const Job& job : jobs_)
        if (job.kind == Job::Kind::tool && !job.tool_answer && chance(30)) tools_.executed(job.tool.idempotency_key);
    jobs_.clear();
    early_.clear();
    for (auto& here : shells_) here.reset();
    for (Request& request : requests_)
        if (request.state == Request::State::waiting) request.state = Request::State::unanswered;
    store_.crash();
}

void World::restart() {
    now_ += random_.below(100);
    budget_ = {};
    check(store_.reopen(Epoch{++epoch_}).ok(), "the store cannot be opened again");
    // As the node does: what has records that are not applied, what has an open turn, and what is due; but nothing that
    // says of itself that it is at rest.
    std::set<uint32_t> found;
    for (const auto& key : store_.sessions_in_tail()) found.insert(index_of_.at(key));
    auto collect = [&](std::string_view key, std::string_view) {
        found.insert(index_of_.at(*parse_session_row_key(key)));
        return true;
    };
    check(store_.scan(Table::open, {}, {}, SIZE_MAX, collect).ok(), "the table of open sessions cannot be read");
    for (const auto& key : store_.resting_in_tail()) found.erase(index_of_.at(key));
    std::fill(alarms_.begin(), alarms_.end(), 0);
    for (const uint32_t session : found) shell(session);
}

// --- the client ---------------------------------------------------------------------------------------------------

uint32_t World::new_session(bool ephemeral, std::optional<FamilyId> family) {
    const auto index = static_cast<uint32_t>(keys_.size());
    SessionKey key{TenantId{1}, family ? make_fork_id(random_, *family) : make_session_id(random_, now_)};
    keys_.push_back(key);
    index_of_[key] = index;
    views_.emplace_back().ephemeral = ephemeral;
    shells_.emplace_back();
    alarms_.push_back(0);
    return index;
}

void World::send(Request& request) {
    std::optional<SessionCreated> create;
    if (request.creates) {
        create.emplace();
        create->tenant = keys_[request.session].tenant;
        create->principal = "ann";
        create->ephemeral = request.ephemeral;
    }
    if (request.forked) request.state = Request::State::unanswered;
    shell(request.session).submit(request, std::move(create));
}

void World::submit_new() {
    Request& request = requests_.emplace_back();
    request.number = requests_.size() - 1;
    request.background = chance(30);
    request.text = words("please", 60);
    request.digest = random_.next();
    const uint64_t halves[2] = {random_.next(), random_.next()};
    std::memcpy(request.key.data(), halves, sizeof halves);
    request.limits.steps = 5;
    if (chance(10)) request.limits.tokens = 30;
    if (chance(20)) request.limits.duration_ms = 500 + random_.below(20'000);
    size_t living = 0;
    for (const auto& view : views_) living += !view.delete_asked && !view.ephemeral;
    if (keys_.size() < sessions_max && (living < own_sessions_max || chance(5))) {
        request.ephemeral = chance(15);
        request.creates = true;
        request.session = new_session(request.ephemeral);
    } else {
        std::vector<uint32_t> open;
        for (uint32_t i = 0; i < views_.size(); ++i)
            if (!views_[i].delete_asked && !views_[i].ephemeral && views_[i].acknowledged) open.push_back(i);
        request.session = open.empty() ? 0 : open[any_of(open)];
    }
    send(request);
}

/// Goes on from an older turn, as previous_response_id does.
void World::fork_some() {
    const auto parent = static_cast<uint32_t>(any_of(keys_));
    const ClientView& view = views_[parent];
    if (keys_.size() >= sessions_max || view.turns.empty() || view.ephemeral || view.delete_asked) return;
    auto turn = view.turns.begin();
    std::advance(turn, static_cast<ptrdiff_t>(random_.below(view.turns.size())));
    if (!is_settled(turn->second->status)) return;
    const TurnNo after = turn->second->no;
    Request& request = requests_.emplace_back();
    request.number = requests_.size() - 1;
    request.text = words("rather", 60);
    request.digest = random_.next();
    const uint64_t halves[2] = {random_.next(), random_.next()};
    std::memcpy(request.key.data(), halves, sizeof halves);
    request.limits.steps = 5;
    request.session = parent;
    request.child = new_session(false, keys_[parent].session.family);
    request.after = after;
    send(request);
}

void World::resolve_some() {
    for (size_t tries = 0; tries < 4; ++tries) {
        const auto& here = shells_[any_of(shells_)];
        if (!here) continue;
        const auto calls = here->unknown_calls();
        if (calls.empty()) continue;
        const auto how = static_cast<Resolution>(random_.below(3));
        return here->resolve(here->session().open_turn()->no, calls[any_of(calls)], how, words("it was", 20));
    }
}

void World::answered(Request& request, uint32_t session, const TurnPtr& turn) {
    check(!request.turn || (*request.turn == turn->no && request.turn_session == session),
          "one request is answered by two turns");
    check(turn->key == request.key && turn->request_digest == request.digest && !turn->items.empty() &&
              turn->items[0]->text == request.text,
          "a request is answered by the turn of another");
    if (!views_[session].delete_acknowledged) views_[session].show(turn);
    request.turn = turn->no;
    request.turn_session = session;
    request.state = is_settled(turn->status) ? Request::State::answered : Request::State::unanswered;
    counts_.answers += is_settled(turn->status);
}

void World::act_as_client() {
    const uint64_t what = random_.below(100);
    if (keys_.empty() || what < 42) return submit_new();
    const auto session = static_cast<uint32_t>(any_of(keys_));
    ClientView& view = views_[session];
    if (what < 54) {
        Request& request = requests_[random_.below(requests_.size())];
        if (request.state == Request::State::refused) return;
        if (request.state == Request::State::waiting && request.forked) return;
        return send(request);
    }
    if (what < 62) return fork_some();
    if (what < 70) return resolve_some();
    if (view.ephemeral || (!view.acknowledged && !shells_[session])) return;
    Shell& here = shell(session);
    if (what < 76) return here.cancel(chance(70) ? TurnNo{0} : here.session().last_turn());
    if (what < 81) return here.add_items(words("remember", 60));
    if (what < 84) return here.set_metadata(std::max(view.metadata_asked, view.metadata_acknowledged) + 1);
    if (what < 86) return here.remove();
    const uint32_t last = here.session().last_turn().value;
    here.read(TurnNo{static_cast<uint32_t>(1 + random_.below(last + 1))});
}

}  // namespace mainstay::sim
