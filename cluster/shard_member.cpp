#include "cluster/shard_member.h"

#include <algorithm>
#include <utility>

#include "runtime/base/crash_point.h"

namespace mainstay {

namespace {

std::string leads_text(const ReplicaName& next, const ShardRecord& record) {
    return "primary node " + short_text(next.node) + ", epoch " + std::to_string(record.epoch.value + 1);
}

}  // namespace

void ShardOutputs::clear() {
    writes.clear();
    staged.clear();
    sends.clear();
    changes.clear();
    proposed.clear();
    refused.clear();
    reads_ready.clear();
    parts_wanted.clear();
    transfers_closed.clear();
    list = false;
    lead = step_down = std::nullopt;
    committed = applicable = trimmed = std::nullopt;
    halt = nullptr;
}

ShardMember::ShardMember(const MemberIdentity& identity, const DurableShard& durable,
                         const ReplicationSettings& settings)
    : identity_(identity), settings_(settings), replica_(durable), applied_(durable.base.index) {}

std::optional<Epoch> ShardMember::serving() const {
    return primary_ && primary_->serving() ? std::optional(primary_->epoch()) : std::nullopt;
}

void ShardMember::step(const ShardInput& input, TimeMs now, ShardOutputs& out) {
    out.clear();
    if (halted_) return;
    now_ = std::max(now_, now);
    out_ = &out;
    std::visit([this](const auto& value) { take(value); }, input);
    if (!out.halt) settle_step();
    if (out.halt) {
        halted_ = true;
        const char* why = out.halt;
        out.clear();
        out.halt = why;
        if (primary_) out.step_down = primary_->epoch();
        primary_.reset();
    }
    out_ = nullptr;
}

/// After every input: what has become true is told, what is due is sent, what should change is proposed.
void ShardMember::settle_step() {
    if (primary_) {
        ReplicaOutputs written;
        while (replica_.groups_in_flight() < limits::replication_groups_in_flight_max && replica_.write_own(written)) {
        }
        merge(written, identity_.self);
        primary_->advance(replica_, identity_.self, configurations_.required(), now_, *out_);
        for (auto& send : primary_->sends())
            out_->sends.push_back({identity_.cluster, identity_.shard, identity_.self, send.to, identity_.incarnation,
                                   std::move(send.body)});
        primary_->sends().clear();
    }
    if (replica_.applicable() > told_applicable_) out_->applicable = told_applicable_ = replica_.applicable();
    decide_change();
}

/// A replica's outputs become this step's.
void ShardMember::merge(ReplicaOutputs& from, const ReplicaName& answer_to) {
    for (auto& write : from.writes) out_->writes.push_back(std::move(write));
    for (auto& part : from.staged) out_->staged.push_back(std::move(part));
    if (from.answer)
        out_->sends.push_back({identity_.cluster, identity_.shard, identity_.self, answer_to, identity_.incarnation,
                               std::move(*from.answer)});
    if (from.halt) out_->halt = from.halt;
}

// --- messages -------------------------------------------------------------------------------------------------------

void ShardMember::take(const ReplicationMessage& message) {
    if (message.cluster != identity_.cluster || message.shard != identity_.shard || message.to != identity_.self)
        return;  // another cluster, or a disk that this node no longer has
    deliver(message);
}

void ShardMember::deliver(const ReplicationMessage& message) {
    if (primary_) primary_->speaks(message.from, message.from_incarnation);
    if (const auto* answer = std::get_if<AppendAnswer>(&message.body)) {
        if (answer->status == AppendStatus::fenced && primary_ && answer->promised > primary_->epoch()) {
            out_->list = true;
            return step_down();
        }
        if (primary_ && answer->epoch == primary_->epoch() && answer->status != AppendStatus::fenced)
            primary_->answered(message.from, *answer, now_, *out_);
        return;
    }
    if (const auto* answer = std::get_if<SnapshotAnswer>(&message.body)) {
        if (primary_ && answer->epoch == primary_->epoch()) primary_->answered(message.from, *answer, now_);
        return;
    }
    const auto* append = std::get_if<AppendEntries>(&message.body);
    const auto* part = std::get_if<SnapshotPart>(&message.body);
    const Epoch epoch = append ? append->epoch : part->epoch;
    if (primary_ && epoch == primary_->epoch()) {
        out_->halt = "two primaries in one epoch";
        return;
    }
    if (primary_ && epoch > primary_->epoch()) step_down();
    if (epoch >= replica_.promised()) heard_from_ = message.from;
    ReplicaOutputs outputs;
    if (append)
        replica_.append(*append, outputs);
    else
        replica_.take_part(*part, outputs);
    merge(outputs, message.from);
}

// --- the disk -------------------------------------------------------------------------------------------------------

void ShardMember::take(const GroupSynced& input) {
    ReplicaOutputs outputs;
    replica_.synced(input.ticket, outputs);
    merge(outputs, heard_from_);
}

void ShardMember::take(const SpaceChanged& input) { replica_.set_full(input.full); }

void ShardMember::take(const StateApplied& input) {
    applied_ = std::max(applied_, input.index);
    trim();
}

/// The log keeps what replicas behind may need, within its bounds; beyond, they are sent a snapshot.
void ShardMember::trim() {
    const auto& log = replica_.log();
    if (log.entries() <= settings_.log_records_kept && log.bytes() <= settings_.log_bytes_kept) return;
    uint64_t most = std::min(applied_, replica_.applicable());
    if (primary_) most = std::min(most, primary_->needed_from().value_or(most));
    // Half of the bounds stays: who was away for a moment goes on from the log.
    uint64_t to = log.base().index;
    size_t entries = log.entries(), bytes = log.bytes();
    while (to < most && (entries > settings_.log_records_kept / 2 || bytes > settings_.log_bytes_kept / 2)) {
        --entries;
        bytes -= log.entry(++to).bytes().size();
    }
    if (to <= log.base().index) return;
    replica_.trim(to);
    out_->trimmed = log.base().index;
}

void ShardMember::take(const SnapshotData& input) {
    if (primary_) primary_->part_read(input, replica_, now_);
}

// --- the record -----------------------------------------------------------------------------------------------------

void ShardMember::take(const RecordRead& input) {
    fresh_ = true;
    nodes_ = input.nodes;
    configurations_.adopt(input.record);
    follow_record();
}

void ShardMember::take(const ChangeSettled& input) {
    if (change_ == input.request) change_.reset();
    configurations_.settled(input.request, input.answer);
    if (input.answer.outcome != ChangeOutcome::ok) {
        fresh_ = false;
        out_->list = true;
    }
    follow_record();
}

void ShardMember::follow_record() {
    const auto& record = configurations_.record();
    const bool resumes = mutant("restart_resumes_its_epoch");
    const bool mine = record.primary == identity_.self && (record.incarnation == identity_.incarnation || resumes);
    if (primary_ && (!mine || record.epoch != primary_->epoch())) step_down();
    const bool begun = record.epoch < replica_.promised() ||
                       (record.epoch == replica_.promised() && !mutant("hand_over_without_epoch") && !resumes);
    if (mine && !primary_ && !begun) lead();
    if (!primary_) return;
    // The required ones, and everybody live who is to hold a copy: they catch up before they come in.
    std::vector<ReplicaName> names = configurations_.required();
    for (const auto& node : nodes_)
        if ((assigned(node.name.node) || record.target == node.name.node) && !contains(names, node.name))
            names.push_back(node.name);
    std::erase(names, identity_.self);
    // Who was given its copy while this primary looked on did not lose one by failing.
    for (const auto& node : record.replicas)
        if (std::find(assigned_.begin(), assigned_.end(), node) == assigned_.end()) newcomers_.push_back(node);
    std::erase_if(newcomers_, [this](const NodeUuid& node) { return !assigned(node); });
    assigned_ = record.replicas;
    primary_->follow(names, newcomers_, replica_, now_, *out_);
}

/// The fence of the data plane: our own disk promises the epoch, with its barrier, before anything else is done in it.
void ShardMember::lead() {
    ReplicaOutputs outputs;
    replica_.begin_epoch(configurations_.record().epoch, outputs);
    merge(outputs, identity_.self);
    primary_.emplace(configurations_.record().epoch, replica_.log().last_index(), settings_);
    assigned_ = configurations_.record().replicas;
    newcomers_.clear();
    handing_over_ = false;
    take_over_at_.reset();
}

void ShardMember::step_down() {
    primary_->close(*out_);
    out_->step_down = primary_->epoch();
    primary_.reset();
    handing_over_ = false;
    take_over_at_.reset();
}

/// The lease of the process that answers for a replica.
const LiveNode* ShardMember::live(const ReplicaName& name) const {
    for (const auto& node : nodes_)
        if (node.name == name && node.incarnation == primary_->incarnation(name)) return &node;
    return nullptr;
}

/// It has no lease and has said nothing in this epoch: after a take-over, the primary that was. A timeout need not
/// pass.
bool ShardMember::absent(const ReplicaName& name) const {
    const auto same = [&name](const LiveNode& node) { return node.name == name; };
    return primary_->incarnation(name) == 0 && std::none_of(nodes_.begin(), nodes_.end(), same);
}

bool ShardMember::assigned(const NodeUuid& node) const {
    const auto& replicas = configurations_.record().replicas;
    return std::find(replicas.begin(), replicas.end(), node) != replicas.end();
}

// --- requests of the shell ------------------------------------------------------------------------------------------

std::optional<ProposeRefusal> ShardMember::refusal() const {
    if (!primary_) return ProposeRefusal::not_primary;
    if (!primary_->serving()) return ProposeRefusal::recovering;
    return std::nullopt;
}

void ShardMember::take(const Propose& input) {
    auto why = refusal();
    const auto& record = configurations_.record();
    if (why) {
    } else if (handing_over_)
        why = ProposeRefusal::handing_over;
    else if (record.in_sync.size() < record.min_in_sync)
        why = ProposeRefusal::under_replicated;
    else if (replica_.full())
        why = ProposeRefusal::storage_full;
    uint64_t token = input.first_token;
    for (const auto& payload : input.payloads) {
        if (!why && replica_.log().last_index() - replica_.commit() >= settings_.uncommitted_max)
            why = ProposeRefusal::backlog_full;
        if (why)
            out_->refused.push_back({token++, *why});
        else
            out_->proposed.push_back({token++, replica_.add_own(payload)});
    }
}

void ShardMember::take(const BeginRead& input) {
    auto why = refusal();
    if (!why && primary_->reads_waiting() >= limits::replication_reads_max) why = ProposeRefusal::backlog_full;
    if (why)
        out_->refused.push_back({input.token, *why});
    else
        primary_->begin_read(input);
}

void ShardMember::take(const HoldHandOver& input) { held_ = input.hold; }

void ShardMember::take(const ShardTick&) {
    if (primary_ && now_ - ticked_ > settings_.replica_timeout_ms / 2) primary_->forgive(now_);
    ticked_ = now_;
    if (now_ - listed_ >= settings_.list_interval_ms) out_->list = true;
    if (out_->list) listed_ = now_;
    trim();
}

// --- changes of the record ------------------------------------------------------------------------------------------

/// `what` and `why` are told to people for as long as those of placement; empty: somebody else has told it. When is
/// for the shell to say, which has a wall clock.
void ShardMember::propose(ShardChange change, std::string what, std::string why) {
    change_ = ++requests_;
    if (!what.empty()) change.decision = PlacementDecision{0, identity_.shard, std::move(what), std::move(why)};
    configurations_.proposed(*change_, change);
    out_->changes.push_back({*change_, std::move(change)});
}

void ShardMember::decide_change() {
    if (change_ || configurations_.record().config_version == 0) return;
    // A change that was lost is settled without waiting for a read, which proves nothing about it.
    if (primary_ && configurations_.unsettled()) return propose(confirm(configurations_.record()));
    if (!fresh_) return;
    if (primary_)
        decide_as_primary();
    else
        decide_take_over();
}

void ShardMember::decide_as_primary() {
    if (decide_in_sync()) return;
    if (!decide_hand_over()) handing_over_ = false;
}

/// T4 and T5: who fails leaves, who is caught up comes in, and who is in sync but not to hold a copy any more leaves
/// once enough others are. True: a change was proposed.
bool ShardMember::decide_in_sync() {
    const auto& record = configurations_.record();
    std::vector<ReplicaName> keep;
    for (const auto& name : record.in_sync)
        if (name == identity_.self || !(absent(name) || primary_->failing(name, now_))) keep.push_back(name);
    const bool shrinks = keep.size() < record.in_sync.size();
    std::vector<LiveNode> incoming;
    for (const auto& node : nodes_) {
        const bool wanted = assigned(node.name.node) || record.target == node.name.node;
        if (!wanted || contains(record.in_sync, node.name) || live(node.name) != &node) continue;
        if (primary_->failing(node.name, now_) || !primary_->caught_up(node.name, replica_)) continue;
        // In need, who holds everything is taken at once; else it must have behaved for a while.
        const bool needed = keep.size() < record.min_in_sync;
        if (!needed && (shrinks || (record.target != node.name.node && !primary_->past_probation(node.name, now_))))
            continue;
        keep.push_back(node.name);
        incoming.push_back(node);
    }
    const bool retires = !mutant("retired_stay") && drop_retired(keep);
    if (keep.size() < record.min_in_sync || keep.size() > limits::replicas_max) return false;
    if (!shrinks && !retires && incoming.empty()) return false;
    std::string names;
    for (const auto& name : keep) names += (names.empty() ? "" : ", ") + short_text(name.node);
    std::string why = why_resized(keep, incoming);
    propose(resize(record, std::move(keep), incoming), "in sync: nodes " + names, std::move(why));
    return true;
}

std::string ShardMember::why_resized(const std::vector<ReplicaName>& keep,
                                     const std::vector<LiveNode>& incoming) const {
    std::string out;
    const auto say = [&out](const ReplicaName& name, const char* what) {
        out += (out.empty() ? "node " : ", node ") + short_text(name.node) + " " + what;
    };
    for (const auto& name : configurations_.record().in_sync) {
        if (contains(keep, name)) continue;
        const char* fault = absent(name) ? "has no lease" : primary_->fault(name, now_);
        say(name, fault ? fault : "is to hold no copy");
    }
    for (const auto& node : incoming) say(node.name, "has caught up");
    return out;
}

/// Takes out of `keep` who is no longer to hold a copy, down to min_in_sync. The primary goes by a hand-over alone.
bool ShardMember::drop_retired(std::vector<ReplicaName>& keep) const {
    const auto& record = configurations_.record();
    const size_t before = keep.size();
    for (auto name = keep.begin(); name != keep.end();)
        if (keep.size() > record.min_in_sync && *name != identity_.self && !assigned(name->node) &&
            record.target != name->node)
            name = keep.erase(name);
        else
            ++name;
    return keep.size() < before;
}

/// To whom the shard should go, if it may: the node that was wished for, or any that has space where this one has none.
const LiveNode* ShardMember::successor() const {
    const auto& record = configurations_.record();
    for (const auto& name : record.in_sync) {
        const bool wished = (record.target == name.node && !held_) || (!record.target && replica_.full());
        if (!wished || name == identity_.self || primary_->failing(name, now_)) continue;
        if (const LiveNode* node = live(name)) return node;
    }
    return nullptr;
}

/// T3. True: a hand-over is under way, and nothing new is accepted.
bool ShardMember::decide_hand_over() {
    const LiveNode* to = primary_->serving() ? successor() : nullptr;
    if (!to) return false;
    handing_over_ = true;
    if (replica_.commit() != replica_.log().last_index() || !primary_->level(to->name, replica_)) return true;
    const auto& record = configurations_.record();
    if (record.target)
        propose(hand_over(record, *to));  // whoever wished for it has said why
    else
        propose(hand_over(record, *to), leads_text(to->name, record),
                "node " + short_text(record.primary.node) + " has no space");
    return true;
}

/// T2, by the order on record, so that candidates do not collide for nothing; the comparison decides.
void ShardMember::decide_take_over() {
    const auto rank = take_over_rank(configurations_.record(), nodes_, self());
    if (!rank) {
        take_over_at_.reset();
        return;
    }
    if (!take_over_at_) take_over_at_ = now_ + *rank * settings_.stagger_ms;
    if (now_ < *take_over_at_) return;
    take_over_at_.reset();
    fresh_ = false;
    out_->list = true;
    const auto& record = configurations_.record();
    const bool own = record.primary.node == identity_.self.node;
    propose(take_over(record, self()), leads_text(identity_.self, record),
            "node " + short_text(record.primary.node) + (own ? " was started again" : " has no lease"));
}

}  // namespace mainstay
