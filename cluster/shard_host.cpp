#include "cluster/shard_host.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "cluster/membership.h"
#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr uint32_t lease_beats = 3;        // keep-alives in the time of a lease
constexpr uint32_t retry_ms = 200;         // of a coordinator that does not answer
constexpr size_t acks_searched = 32;       // for another acknowledgement to the same target
constexpr double gather_inputs_min = 4;    // that the window must promise: a lone session never waits
constexpr size_t gather_inputs_max = 256;  // ... and no round is made to wait for more
constexpr double gather_stretch_max = 5;
// A commit waits in up to four rounds, two of them a copy's: at this part of its time, waiting is at most half of it.
constexpr double gather_commit_share = 8;
constexpr double commits_averaged = 64;
constexpr uint32_t hand_over_poll_ms = 10;  // a poll with a bound
constexpr milliseconds figures_interval(1000);
constexpr int lists_spaced = 10;  // times what one takes

TimeMs steady_ms() {
    return static_cast<TimeMs>(
        std::chrono::duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

}  // namespace

ShardHost::ShardHost(ShardHostConfig config, ShardLog& log, ShardHostEvents& events)
    : config_(std::move(config)), log_(log), events_(events) {
    auto found = log_.recovered_shards();
    INVARIANT(found.size() == config_.meta.shards, "a store has the cluster's shards");
    members_.resize(found.size());
    places_.resize(found.size());
    sights_.resize(found.size());
    for (size_t number = 0; number < found.size(); ++number) {
        const ShardId shard{static_cast<uint16_t>(number)};
        members_[number].member = std::make_unique<ShardMember>(
            MemberIdentity{config_.meta.cluster, shard, config_.self.name, config_.self.incarnation}, found[number],
            config_.replication);
    }
}

ShardHost::~ShardHost() { stop(); }

void ShardHost::start(ClusterCoordinator& coordinator) {
    coordinator_ = &coordinator;
    log_.start_shards(*this);
    coordinator_->on_hint([this] { look(); });
    host_ = std::thread([this] { run(); });
    lease_ = std::thread([this] { keep_lease(); });
    talker_ = std::thread([this] { talk_to_coordinator(); });
    reader_ = std::thread([this] { read_snapshots(); });
}

void ShardHost::stop() {
    {
        std::scoped_lock lock(inbox_mutex_, work_mutex_, lease_mutex_, parts_mutex_);
        stopping_ = work_stops_ = true;
        inbox_filled_.notify_all();
        work_waits_.notify_all();
        lease_wakes_.notify_all();
        parts_wait_.notify_all();
    }
    for (std::thread* thread : {&host_, &lease_, &talker_, &reader_})
        if (thread->joinable()) thread->join();
    log_.stop_shards();
}

// --- into the inbox -------------------------------------------------------------------------------------------------

TimeMs ShardHost::now() const { return steady_ms(); }

void ShardHost::post(const std::function<void(Inbox&)>& put) {
    std::lock_guard lock(inbox_mutex_);
    const bool wake = inbox_.empty();
    put(inbox_);
    if (gathering_ ? inbox_.many() >= gather_inputs_max : wake) inbox_filled_.notify_one();
}

void ShardHost::receive(std::vector<ReplicationMessage> messages) {
    post([&](Inbox& inbox) { std::move(messages.begin(), messages.end(), std::back_inserter(inbox.messages)); });
}

void ShardHost::propose(ShardId shard, Epoch epoch, std::shared_ptr<const std::string> entry,
                        std::shared_ptr<AckTarget> target, Sequence last) {
    const auto since = steady_clock::now();
    post([&](Inbox& inbox) {
        inbox.proposals.push_back({shard, epoch, std::move(entry), std::move(target), last, since});
    });
}

void ShardHost::confirm_read(ShardId shard, std::function<void(bool)> done) {
    const auto since = steady_clock::now();
    post([&](Inbox& inbox) { inbox.reads.push_back({shard, std::move(done), since}); });
}

void ShardHost::groups_synced(const std::vector<std::pair<ShardId, uint64_t>>& tickets) {
    post([&](Inbox& inbox) { inbox.synced.insert(inbox.synced.end(), tickets.begin(), tickets.end()); });
}

void ShardHost::state_applied(const std::vector<std::pair<ShardId, uint64_t>>& indexes) {
    post([&](Inbox& inbox) { inbox.applied.insert(inbox.applied.end(), indexes.begin(), indexes.end()); });
}

// --- the host's thread ----------------------------------------------------------------------------------------------

void ShardHost::run() {
    ::pthread_setname_np(::pthread_self(), "shards");
    Inbox taken;
    auto tick_at = steady_clock::now(), count_at = tick_at;
    const milliseconds beat(config_.replication.heartbeat_ms);
    while (true) {
        {
            std::unique_lock lock(inbox_mutex_);
            gather(lock);
            inbox_filled_.wait_until(lock, tick_at, [this] { return stopping_ || !inbox_.empty(); });
            began_round();
            if (stopping_) break;
            std::swap(taken, inbox_);
        }
        take(taken);
        taken = {};
        if (steady_clock::now() >= tick_at) {
            const bool full = log_.out_of_space(), filled = full != std::exchange(full_, full);
            for (uint16_t number = 0; number < members_.size(); ++number) {
                const ShardId shard{number};
                if (filled) step(shard, SpaceChanged{full});
                hold_or_not(shard, members_[number].member->configurations().record());
                step(shard, ShardTick{});
                if (!members_[number].deferred.empty()) offer_deferred(shard);
                if (members_[number].member->serving()) place(shard);
            }
            tick_at = std::max(tick_at + beat, steady_clock::now());
            if (tick_at >= count_at + figures_interval) {
                count();
                count_at = tick_at;
            }
        }
        end_round();
        if (std::exchange(placed_, false)) bump();
    }
    // Who waits for an answer is told that there will be none.
    for (auto& member : members_) drop_waiting(member);
    end_round();
}

/// As SegmentLog::gather, and for the same reason: under load the wake-ups behind a round cost more than its work. The
/// window is slept through before anything is looked for, so that whoever fills the inbox meanwhile wakes nobody.
void ShardHost::gather(std::unique_lock<std::mutex>& lock) {
    const auto window = gather_window();
    const bool promising = inputs_per_us_ * static_cast<double>(window.count()) >= gather_inputs_min;
    const auto until = taken_at_ + window;
    gathering_ = true;
    while (promising && !stopping_ && inbox_.many() < gather_inputs_max && steady_clock::now() < until)
        inbox_filled_.wait_until(lock, until);
    gathering_ = false;
}

std::chrono::microseconds ShardHost::gather_window() const {
    const double least = config_.gather_us;
    const double stretched = std::clamp(commit_us_ / gather_commit_share, least, least * gather_stretch_max);
    return std::chrono::microseconds(static_cast<int64_t>(stretched));
}

/// Under the lock: the rate at which inputs came since the last round.
void ShardHost::began_round() {
    const auto moment = steady_clock::now();
    const double elapsed = std::max(1.0, std::chrono::duration<double, std::micro>(moment - taken_at_).count());
    // What was longer than a window ago says nothing about the next one.
    const double weight = std::min(1.0, elapsed / std::max(1.0, static_cast<double>(gather_window().count())));
    inputs_per_us_ += weight * (static_cast<double>(inbox_.many()) / elapsed - inputs_per_us_);
    taken_at_ = moment;
}

void ShardHost::take(Inbox& inbox) {
    if (inbox.view) {
        for (const auto& record : inbox.view->shards) {
            if (record.shard.value >= members_.size()) continue;
            hold_or_not(record.shard, record);  // before the member sees a wish, which it may follow at once
            step(record.shard, RecordRead{record, inbox.view->nodes});
        }
        for (uint16_t number = 0; number < members_.size(); ++number) place(ShardId{number});
        events_.viewed(*inbox.view);
    }
    for (const auto& settled : inbox.settled) {
        step(settled.shard, ChangeSettled{settled.request, settled.answer});
        hold_or_not(settled.shard, members_[settled.shard.value].member->configurations().record());
    }
    for (const auto& [shard, ticket] : inbox.synced) step(shard, GroupSynced{ticket});
    for (auto& message : inbox.messages) {
        if (message.shard.value >= members_.size()) continue;
        figures_.received(message.body);
        step(message.shard, std::move(message));
    }
    for (const auto& [shard, index] : inbox.applied) step(shard, StateApplied{index});
    take_proposals(inbox.proposals);
    for (auto& read : inbox.reads) {
        members_[read.shard.value].reads.emplace(++tokens_, WaitingRead{std::move(read.done), read.since});
        step(read.shard, BeginRead{tokens_, 0});
    }
    for (auto& part : inbox.parts) step(part.shard, std::move(part.data));
}

void ShardHost::step(ShardId shard, const ShardInput& input) {
    members_[shard.value].member->step(input, now(), outputs_);
    perform(shard);
}

/// Those of one shard are one step, in the order in which they came.
void ShardHost::take_proposals(std::vector<Proposal>& proposals) {
    std::erase_if(proposals, [&](Proposal& proposal) {
        // An actor of an earlier leadership knows a state that others may have gone on from.
        if (members_[proposal.shard.value].member->serving() == proposal.epoch) return false;
        figures_.proposal(ProposalOutcome::other_epoch);
        if (proposal.target) proposal.target->refused();
        return true;
    });
    std::stable_sort(proposals.begin(), proposals.end(),
                     [](const Proposal& a, const Proposal& b) { return a.shard < b.shard; });
    for (size_t from = 0, to = 0; from < proposals.size(); from = to) {
        std::vector<Waiting> batch;
        for (; to < proposals.size() && proposals[to].shard == proposals[from].shard; ++to) {
            Proposal& proposal = proposals[to];
            batch.push_back({0, std::move(proposal.target), proposal.last, std::move(proposal.entry), proposal.since});
        }
        offer(proposals[from].shard, std::move(batch));
    }
}

void ShardHost::offer(ShardId shard, std::vector<Waiting> proposals) {
    Member& member = members_[shard.value];
    if (!member.deferred.empty()) {
        std::move(proposals.begin(), proposals.end(), std::back_inserter(member.deferred));
        return;
    }
    Propose input{tokens_ + 1, {}};
    tokens_ += proposals.size();
    for (Waiting& proposal : proposals) {
        input.payloads.push_back(proposal.entry);
        member.waiting.push_back(std::move(proposal));
    }
    step(shard, input);
}

/// What this step made of the newest that wait.
void ShardHost::took_proposals(Member& member) {
    const ShardOutputs& out = outputs_;
    size_t refused = 0;
    for (const auto& one : out.refused) refused += !member.reads.contains(one.token);
    auto newest = member.waiting.end() - static_cast<ptrdiff_t>(out.proposed.size() + refused);
    for (const auto& proposed : out.proposed) {
        newest->index = proposed.index;
        newest->entry.reset();
        ++newest;
        figures_.proposal(ProposalOutcome::accepted);
    }
    const auto first_refused = newest;
    for (const auto& one : out.refused) {
        if (member.reads.contains(one.token)) {
            end_read(member, one.token, false);
            continue;
        }
        figures_.proposal(static_cast<ProposalOutcome>(one.why));
        const bool leads = one.why != ProposeRefusal::not_primary && one.why != ProposeRefusal::recovering;
        if (leads)  // it was admitted: it waits until another node leads or it may
            member.deferred.push_back(std::move(*newest));
        else if (newest->target)
            newest->target->refused();
        ++newest;
    }
    member.waiting.erase(first_refused, member.waiting.end());
}

/// What a proposal would be refused for, were it made now: said before somebody decides anything.
std::optional<ErrorCode> ShardHost::refuses(ShardId shard) const {
    const Member& member = members_[shard.value];
    const auto& record = member.member->configurations().record();
    if (record.in_sync.size() < record.min_in_sync) return ErrorCode::under_replicated;
    if (member.member->replica().full()) return ErrorCode::storage_full;
    if (member.waiting.size() + member.deferred.size() >= config_.replication.uncommitted_max / 2)
        return ErrorCode::journal_backlog_full;
    return std::nullopt;
}

/// A hand-over did not come about, or there is room again.
void ShardHost::offer_deferred(ShardId shard) {
    auto deferred = std::exchange(members_[shard.value].deferred, {});
    offer(shard, {std::make_move_iterator(deferred.begin()), std::make_move_iterator(deferred.end())});
}

void ShardHost::hold_or_not(ShardId shard, const ShardRecord& record) {
    if (!config_.busy) return;
    Member& member = members_[shard.value];
    const bool wished = record.target && *record.target != config_.self.name.node && member.member->serving();
    const bool possible = wished && std::any_of(record.in_sync.begin(), record.in_sync.end(),
                                                [&](const ReplicaName& name) { return name.node == *record.target; });
    if (!possible) member.held_since = 0;
    // A target that must catch up first is held for as well: it may come in and be handed the shard in one step.
    const TimeMs held_ms = member.held_since == 0 ? 0 : now() - member.held_since;
    bool hold = wished && (!possible || config_.busy(shard, *record.target, held_ms));
    if (possible && hold && member.held_since == 0) member.held_since = now();
    if (possible && hold && held_ms > config_.hand_over_hold_ms) hold = false;
    if (hold == member.held) return;
    member.held = hold;
    step(shard, HoldHandOver{hold});
}

/// Into the round, in an order that keeps the promises (end_round()); what ends or begins a leadership comes after all
/// that was before it.
void ShardHost::perform(ShardId shard) {
    Member& member = members_[shard.value];
    ShardOutputs& out = outputs_;
    if (!out.staged.empty()) {
        end_round();  // an install that waits in the round is of the parts that are aside now
        for (auto& part : out.staged) log_.stage(shard, part);
    }
    for (auto& group : out.writes) {
        figures_.snapshots_installed += group.install.has_value();
        round_.writes.emplace_back(shard, std::move(group));
    }
    for (auto& message : out.sends) send(std::move(message));
    if (out.applicable) round_.applies.emplace_back(shard, *out.applicable);
    took_proposals(member);
    if (out.committed) acknowledge(member, *out.committed);
    for (const uint64_t token : out.reads_ready) end_read(member, token, true);
    if (out.step_down || out.lead) end_round();
    if (out.step_down) {
        drop_waiting(member);
        place(shard);
        events_.lost(shard, *out.step_down);
    }
    if (out.lead) {
        place(shard);
        events_.led(shard, *out.lead);
    }
    if (out.halt) {
        spdlog::critical("shard {} stops on this node: {}; nothing more is done with this copy", shard.value, out.halt);
        place(shard);
    }
    if (!out.changes.empty() || out.list) {
        std::lock_guard lock(work_mutex_);
        for (auto& change : out.changes) {
            const ChangeKind kind = kind_of(change.change, member.member->configurations().record());
            if (change.change.decision) change.change.decision->at = SystemClock().now_ms();
            work_.push_back({shard, change.request, kind, std::move(change.change), {}, {}});
        }
        list_wanted_ = list_wanted_ || out.list;
        work_waits_.notify_one();
    }
    if (!out.parts_wanted.empty() || !out.transfers_closed.empty()) {
        std::lock_guard lock(parts_mutex_);
        for (const auto& wanted : out.parts_wanted) parts_.push_back({shard, wanted.transfer, wanted.part, false});
        for (const uint64_t transfer : out.transfers_closed) parts_.push_back({shard, transfer, 0, true});
        parts_wait_.notify_one();
    }
}

/// Of two answers of a copy in one round the later says all that the earlier did.
void ShardHost::send(ReplicationMessage message) {
    figures_.sent(message.body);
    auto& messages = round_.sends[message.to.node];
    const auto plain = [](const ReplicationMessage& one) {
        const auto* answer = std::get_if<AppendAnswer>(&one.body);
        return answer && answer->status == AppendStatus::ok ? answer : nullptr;
    };
    if (!messages.empty() && plain(message) && plain(messages.back()) && messages.back().shard == message.shard &&
        messages.back().to == message.to && plain(messages.back())->epoch == plain(message)->epoch)
        messages.back() = std::move(message);
    else
        messages.push_back(std::move(message));
}

void ShardHost::acknowledge(Member& member, uint64_t committed) {
    auto& acks = round_.acks;
    const auto committed_at = steady_clock::now();
    while (!member.waiting.empty() && member.waiting.front().index <= committed) {
        Waiting done = std::move(member.waiting.front());
        member.waiting.pop_front();
        const double seconds = std::chrono::duration<double>(committed_at - done.since).count();
        figures_.commit.add(seconds);
        commit_us_ += (1e6 * seconds - commit_us_) / commits_averaged;
        if (!done.target) continue;
        const auto from = acks.end() - static_cast<ptrdiff_t>(std::min(acks.size(), acks_searched));
        const auto same = std::find_if(from, acks.end(), [&](const auto& ack) { return ack.first == done.target; });
        if (same == acks.end())
            acks.emplace_back(std::move(done.target), done.last);
        else
            same->second = std::max(same->second, done.last);
    }
}

/// Written and applied before anything is told.
void ShardHost::end_round() {
    if (!round_.writes.empty()) log_.write_groups(std::exchange(round_.writes, {}));
    for (auto& [node, messages] : round_.sends)
        if (!messages.empty()) config_.send(node, std::exchange(messages, {}));
    if (!round_.applies.empty()) log_.apply_entries(round_.applies);
    round_.applies.clear();
    for (auto& [target, last] : round_.acks) target->acknowledged(last, last);
    round_.acks.clear();
    for (auto& done : std::exchange(round_.reads, {})) done();
}

void ShardHost::drop_waiting(Member& member) {
    for (auto* proposals : {&member.waiting, &member.deferred}) {
        for (auto& waiting : *proposals) {
            figures_.proposal(ProposalOutcome::dropped);
            if (waiting.target) waiting.target->refused();
        }
        proposals->clear();
    }
    while (!member.reads.empty()) end_read(member, member.reads.begin()->first, false);
}

void ShardHost::end_read(Member& member, uint64_t token, bool confirmed) {
    const auto found = member.reads.find(token);
    if (found == member.reads.end()) return;
    ++(confirmed ? figures_.reads_confirmed : figures_.reads_refused);
    figures_.confirmation.add(std::chrono::duration<double>(steady_clock::now() - found->second.since).count());
    round_.reads.push_back([done = std::move(found->second.done), confirmed] { done(confirmed); });
    member.reads.erase(found);
}

/// Once a second: what stands is looked at then, so that nothing has to be kept up to date between.
void ShardHost::count() {
    ShardFigures& out = figures_;
    out.shards_led = out.shards_serving = out.shards_under_replicated = out.shards_moving = out.shards_halted = 0;
    out.follower_lag_max = out.proposals_waiting = out.reads_waiting = 0;
    for (const Member& member : members_) {
        out.shards_halted += member.member->halted();
        out.proposals_waiting += member.waiting.size() + member.deferred.size();
        out.reads_waiting += member.reads.size();
        const ShardRecord& record = member.member->configurations().record();
        if (record.primary != config_.self.name || record.incarnation != config_.self.incarnation) continue;
        ++out.shards_led;
        out.shards_serving += member.member->serving().has_value();
        out.shards_under_replicated += record.in_sync.size() < config_.meta.replicas;
        out.shards_moving += record.target && *record.target != config_.self.name.node;
        out.follower_lag_max = std::max(out.follower_lag_max, member.member->lag_max());
    }
    const auto current = view();
    out.view_age_ms = view_age_ms();
    out.shards_unled = config_.meta.shards;
    out.nodes_live = current ? static_cast<uint32_t>(current->nodes.size()) : 0;
    if (current)
        for (const auto& record : current->shards)
            out.shards_unled -= std::any_of(current->nodes.begin(), current->nodes.end(), [&](const LiveNode& node) {
                return node.name == record.primary && node.incarnation == record.incarnation;
            });
    events_.figures(out, coordinator_figures_);
}

// --- the directory --------------------------------------------------------------------------------------------------

/// After anything that may have changed who leads.
void ShardHost::place(ShardId shard) {
    const ShardMember& member = *members_[shard.value].member;
    const ShardRecord& record = member.configurations().record();
    const auto serving = member.serving();
    ShardPlace next;
    if (serving) {
        next.where = ShardPlace::Where::here;
        next.epoch = *serving;
        next.refuses = refuses(shard);
    } else if (record.primary.node != config_.self.name.node) {
        const auto current = view();
        const auto leads = [&](const LiveNode& node) {
            return node.name == record.primary && node.incarnation == record.incarnation;
        };
        if (current && std::any_of(current->nodes.begin(), current->nodes.end(), leads)) {
            next.where = ShardPlace::Where::there;
            next.node = record.primary.node;
        }
    }
    std::unique_lock lock(places_mutex_);
    ShardPlace& place = places_[shard.value];
    if (place.where != next.where || place.node != next.node || place.epoch != next.epoch ||
        place.refuses != next.refuses)
        placed_ = true;
    place = next;
    sights_[shard.value] = {record,
                            record.primary == config_.self.name && record.incarnation == config_.self.incarnation,
                            serving.has_value(),
                            member.halted(),
                            member.replica().log().last_index(),
                            member.replica().commit()};
}

ShardPlace ShardHost::find(ShardId shard) const {
    std::shared_lock lock(places_mutex_);
    return shard.value < places_.size() ? places_[shard.value] : ShardPlace{};
}

void ShardHost::bump() {
    std::vector<std::function<void()>> called;
    {
        std::lock_guard lock(watchers_mutex_);
        version_.fetch_add(1, std::memory_order_release);
        called.swap(watchers_);
    }
    for (const auto& watcher : called) watcher();
}

void ShardHost::when_changed(uint64_t seen, std::function<void()> changed) {
    {
        std::lock_guard lock(watchers_mutex_);
        if (version() == seen) {
            watchers_.push_back(std::move(changed));
            return;
        }
    }
    changed();
}

std::vector<ShardSight> ShardHost::sights() const {
    std::shared_lock lock(places_mutex_);
    return sights_;
}

std::shared_ptr<const ClusterView> ShardHost::view() const {
    std::lock_guard lock(view_mutex_);
    return view_;
}

std::optional<uint64_t> ShardHost::view_age_ms() const {
    std::lock_guard lock(view_mutex_);
    return view_ ? std::optional<uint64_t>(now() - viewed_at_) : std::nullopt;
}

// --- the coordinator ------------------------------------------------------------------------------------------------

void ShardHost::keep_lease() {
    ::pthread_setname_np(::pthread_self(), "lease");
    bool joined = false, told = false;
    CoordinatorFigures& count = coordinator_figures_;
    while (true) {
        const auto kept = joined ? coordinator_->keep_alive() : coordinator_->join();
        if (kept) {
            if (!joined) {
                ++count.leases_taken;
                look();
            }
            joined = true;
            told = false;
        } else if (kept.error().code == ErrorCode::conflict) {
            // Expired, or a join whose answer was lost: the other of the two is right then.
            count.leases_lost += joined;
            joined = !joined;
            continue;
        } else {
            ++count.beats_failed;
            if (!std::exchange(told, true))
                spdlog::warn("the coordinator does not take this node's lease: {}", kept.error().message);
        }
        std::unique_lock lock(lease_mutex_);
        const milliseconds pause(kept ? config_.lease_ms / lease_beats : retry_ms);
        if (lease_wakes_.wait_for(lock, pause, [this] { return work_stops_ || lease_ends_; })) return;
    }
}

void ShardHost::look() {
    std::lock_guard lock(work_mutex_);
    list_wanted_ = true;
    work_waits_.notify_one();
}

void ShardHost::change(ShardChange change, std::function<void(const ChangeAnswer&)> done) {
    std::lock_guard lock(work_mutex_);
    const ShardId shard = change.desired.shard;
    work_.push_back({shard, 0, {}, std::move(change), std::move(done), {}});
    work_waits_.notify_one();
}

void ShardHost::ask(std::function<void(ClusterCoordinator&)> question) {
    std::lock_guard lock(work_mutex_);
    work_.push_back({{}, 0, {}, {}, {}, std::move(question)});
    work_waits_.notify_one();
}

void ShardHost::talk_to_coordinator() {
    ::pthread_setname_np(::pthread_self(), "coordinator");
    auto spacing = milliseconds(config_.list_spacing_ms);
    auto listed_at = steady_clock::now() - spacing;
    bool failed = false;
    while (true) {
        std::deque<CoordinatorWork> work;
        bool look_now = false;
        {
            std::unique_lock lock(work_mutex_);
            const auto due = listed_at + (failed ? milliseconds(retry_ms) : spacing);
            // A look that is wanted waits for its spacing; changes do not wait for it.
            while (!work_stops_ && work_.empty() && !(list_wanted_ && steady_clock::now() >= due)) {
                if (list_wanted_)
                    work_waits_.wait_until(lock, due);
                else
                    work_waits_.wait(lock);
            }
            if (work_stops_) return;
            work.swap(work_);
            look_now = list_wanted_ && steady_clock::now() >= due;
            if (look_now) list_wanted_ = false;
        }
        for (auto& one : work) {
            if (one.question) {
                one.question(*coordinator_);
                continue;
            }
            const ChangeKind kind = one.kind ? *one.kind : kind_in_view(one.change);
            const ChangeAnswer answer = coordinator_->change(one.change);
            coordinator_figures_.changed(kind, answer.outcome);
            if (one.request > 0)
                post([&](Inbox& inbox) { inbox.settled.push_back({one.shard, one.request, answer}); });
            else if (one.done)
                one.done(answer);
        }
        if (!look_now) continue;
        const auto began = steady_clock::now();
        failed = !list();
        listed_at = steady_clock::now();
        const auto rest = std::chrono::duration_cast<milliseconds>(lists_spaced * (listed_at - began));
        spacing = std::clamp(rest, milliseconds(config_.list_spacing_min_ms), milliseconds(config_.list_spacing_ms));
        if (failed) look();
    }
}

/// Of a change that no member asked for: placement and people make theirs from what was read last.
ChangeKind ShardHost::kind_in_view(const ShardChange& change) const {
    const auto current = view();
    if (current)
        for (const auto& record : current->shards)
            if (record.shard == change.desired.shard) return kind_of(change, record);
    return kind_of(change, {});
}

bool ShardHost::list() {
    auto listed = coordinator_->list();
    ++(listed ? coordinator_figures_.reads : coordinator_figures_.reads_failed);
    if (!listed) return false;
    auto shared = std::make_shared<const ClusterView>(std::move(*listed));
    {
        std::lock_guard lock(view_mutex_);
        view_ = shared;
        viewed_at_ = now();
    }
    post([&](Inbox& inbox) { inbox.view = shared; });
    return true;
}

/// By wishes, as an operator would: each shard goes to the first other copy in sync that has a lease.
bool ShardHost::hand_over_all(uint32_t patience_ms) {
    const TimeMs until = now() + patience_ms;
    std::map<uint16_t, uint64_t> asked;  // by shard, at which version
    while (true) {
        bool leads = false;
        const auto current = view();
        for (const auto& sight : sights()) {
            const ShardRecord& record = sight.record;
            if (!sight.leads || record.config_version == 0) continue;
            leads = true;
            if (!current || asked[record.shard.value] == record.config_version) continue;
            const auto may = [&](const LiveNode& node) {
                return node.name.node != config_.self.name.node && contains(record.in_sync, node.name);
            };
            const auto to = std::find_if(current->nodes.begin(), current->nodes.end(), may);
            if (to == current->nodes.end() || record.target == to->name.node) continue;
            asked[record.shard.value] = record.config_version;
            ShardChange wished = wish(record, to->name.node);
            wished.decision = {SystemClock().now_ms(), record.shard, "target node " + short_text(to->name.node),
                               "node " + short_text(config_.self.name.node) + " stops"};
            change(std::move(wished), [this](const ChangeAnswer&) { look(); });
        }
        if (!leads) return true;
        if (now() >= until) return false;
        std::this_thread::sleep_for(milliseconds(hand_over_poll_ms));
    }
}

void ShardHost::give_lease_back() {
    {
        std::lock_guard lock(lease_mutex_);
        lease_ends_ = true;
        lease_wakes_.notify_all();
    }
    if (lease_.joinable()) lease_.join();
    if (auto left = coordinator_->leave(); !left)
        spdlog::warn("the lease stays until it expires: {}", left.error().message);
}

// --- snapshots ------------------------------------------------------------------------------------------------------

void ShardHost::read_snapshots() {
    ::pthread_setname_np(::pthread_self(), "snapshots");
    std::map<std::pair<uint16_t, uint64_t>, std::unique_ptr<ShardSnapshot>> open;
    while (true) {
        PartWanted wanted;
        {
            std::unique_lock lock(parts_mutex_);
            parts_wait_.wait(lock, [this] { return work_stops_ || !parts_.empty(); });
            if (work_stops_) return;
            wanted = parts_.front();
            parts_.pop_front();
        }
        const auto key = std::pair(wanted.shard.value, wanted.transfer);
        if (wanted.closed) {
            open.erase(key);
            continue;
        }
        auto& snapshot = open[key];
        if (!snapshot) {
            auto taken = log_.snapshot(wanted.shard);
            if (!taken) {
                // The member asks again when nothing comes.
                spdlog::warn("shard {}: no snapshot: {}", wanted.shard.value, taken.error().message);
                open.erase(key);
                continue;
            }
            snapshot = std::move(*taken);
        }
        if (wanted.part >= snapshot->parts()) continue;  // asked for ahead, before it was known which is the last
        auto bytes = snapshot->read(wanted.part);
        if (!bytes) {
            spdlog::warn("shard {}: a snapshot cannot be read: {}", wanted.shard.value, bytes.error().message);
            open.erase(key);
            continue;
        }
        SnapshotData data;
        data.transfer = wanted.transfer;
        data.at = snapshot->position();
        data.part = wanted.part;
        data.last = wanted.part + 1 == snapshot->parts();
        data.bytes = std::make_shared<const std::string>(std::move(*bytes));
        post([&](Inbox& inbox) { inbox.parts.push_back({wanted.shard, std::move(data)}); });
    }
}

}  // namespace mainstay
