// One simulated node: the shell around a ShardMember. What it does in which order is what a real shell must do.
#include <algorithm>
#include <utility>

#include "cluster_sim/history.h"
#include "runtime/base/crash_point.h"

namespace mainstay::cluster_sim {
namespace {

constexpr size_t snapshot_part_bytes = 400;

}  // namespace

// --- life and death -------------------------------------------------------------------------------------------------

void History::start(size_t n) {
    Node& node = nodes_[n];
    node.up = true;
    node.paused_until = 0;
    node.life = node.incarnation = ++incarnations_;
    oracle_.restarted(node.disk);
    MemberIdentity identity;
    identity.cluster[0] = 1;
    identity.self = node.disk.name;
    identity.incarnation = node.incarnation;
    node.member = std::make_unique<ShardMember>(identity, node.disk.read(), settings_);
    // The lease is had before anything else; a node that cannot reach the coordinator tries until it can.
    cluster_.advance(now_);
    if (!linked(n, coordinator) || !linked(coordinator, n)) {
        node.up = false;
        return restart_after(n, between(20, 100));
    }
    cluster_.join({node.disk.name, node.incarnation});
    after(between(1, 25), n, node.life, TickDue{});
    if (node.disk.full) input(n, SpaceChanged{true});
    send(n, coordinator, node.life, AskList{false});
}

void History::stop(size_t n) {
    Node& node = nodes_[n];
    if (!node.up) return;
    node.up = node.syncing = false;
    node.member.reset();
    node.changes.clear();
    node.snapshots.clear();
    drop_sessions(n);
    // What was under way arrives in order, and some of it not at all.
    uint64_t first = node.disk.log.last_index() + 1;
    const size_t arrive = random_.below(node.disk.pending.size() + 1);
    const bool torn = arrive < node.disk.pending.size() && random_.below(2) == 0;
    for (size_t left = arrive + torn; left > 0; --left) {
        if (torn && left == 1) node.disk.tear(random_.below(node.disk.pending.front().group.entries.size() + 2));
        counts_.groups_torn += torn && left == 1;
        oracle_.before_sync(node.disk);
        if (node.disk.pending.front().group.truncate_to)
            first = std::min(first, *node.disk.pending.front().group.truncate_to + 1);
        node.disk.sync_one();
        oracle_.synced(node.disk, std::max(first, node.disk.log.base().index), node.disk.log.last_index());
    }
    counts_.groups_lost += node.disk.lose_pending();
}

void History::restart_after(size_t n, TimeMs delay) { after(delay, n, 0, Start{}); }

// --- the member -----------------------------------------------------------------------------------------------------

void History::input(size_t n, const ShardInput& what) {
    // Outputs may lead to inputs of the same node at once (parts of a snapshot), so each depth has its own.
    if (outputs_.size() <= depth_) outputs_.resize(depth_ + 8);
    ShardOutputs& out = outputs_[depth_++];
    nodes_[n].member->step(what, now_, out);
    perform_outputs(n, out);
    --depth_;
}

void History::perform_outputs(size_t n, ShardOutputs& out) {
    Node& node = nodes_[n];
    check(out.halt == nullptr, out.halt ? out.halt : "");
    if (out.step_down) drop_sessions(n);
    for (auto& part : out.staged) {
        if (part.part == 0) node.disk.staged.clear();
        node.disk.staged += *part.bytes;
    }
    for (auto& group : out.writes) write(n, group, out);
    for (auto& message : out.sends) {
        if (const auto* answer = std::get_if<AppendAnswer>(&message.body)) {
            counts_.fenced += answer->status == AppendStatus::fenced;
            if (answer->status == AppendStatus::ok) oracle_.attested(node.disk.name, answer->epoch);
        }
        const size_t to = node_of(message.to.node);
        send(n, to, 0, ToMember{std::move(message)});
    }
    for (auto& change : out.changes) request_change(n, change);
    if (out.list) send(n, coordinator, node.life, AskList{false});
    if (out.trimmed) node.disk.trim(*out.trimmed);
    for (const uint64_t transfer : out.transfers_closed) node.snapshots.erase(transfer);
    if (out.committed) {
        const auto& replica = node.member->replica();
        const auto at = replica.log().at(*out.committed);
        const Epoch epoch = node.member->serving().value_or(replica.promised());
        if (at) oracle_.acknowledged(epoch, node.disk.name, node.incarnation, *at);
        release_writes(n, *out.committed);
    }
    if (out.lead) {
        if (answered_at_ != 0) interruption_ = now_ - answered_at_;
        node.sessions = node.disk.base_state;
        const auto& log = node.member->replica().log();
        for (uint64_t i = log.base().index + 1; i <= log.last_index(); ++i)
            if (log.entry(i).payload)
                check(node.sessions->apply(*log.entry(i).payload), "G4: a request is in the log twice");
    }
    for (const uint64_t token : out.reads_ready) {
        const auto found = node.reads.find(token);
        if (found == node.reads.end()) continue;
        const Waiting waiting = found->second;
        node.reads.erase(found);
        answer(n, waiting);
    }
    const auto wanted = std::exchange(out.parts_wanted, {});
    const auto applicable = out.applicable;
    for (const auto& part : wanted) read_part(n, part);
    if (applicable && node.up) input(n, StateApplied{*applicable});
}

void History::read_part(size_t n, const ShardOutputs::PartWanted& wanted) {
    Node& node = nodes_[n];
    const auto& replica = node.member->replica();
    auto [found, opened] = node.snapshots.try_emplace(wanted.transfer);
    auto& snapshot = found->second;
    if (opened) {
        Registers state = node.disk.base_state;
        const auto& log = replica.log();
        const uint64_t applied = replica.applicable();
        for (uint64_t i = log.base().index + 1; i <= applied; ++i)
            if (log.entry(i).payload) state.apply(*log.entry(i).payload);
        snapshot.at = *log.at(applied);
        snapshot.bytes = state.snapshot();
    }
    const size_t from = wanted.part * snapshot_part_bytes;
    if (from >= snapshot.bytes.size()) return;
    SnapshotData data;
    data.transfer = wanted.transfer;
    data.at = snapshot.at;
    data.part = wanted.part;
    data.last = from + snapshot_part_bytes >= snapshot.bytes.size();
    data.bytes = std::make_shared<const std::string>(snapshot.bytes.substr(from, snapshot_part_bytes));
    input(n, data);
}

// --- the disk -------------------------------------------------------------------------------------------------------

void History::write(size_t n, WriteGroup& group, ShardOutputs&) {
    Node& node = nodes_[n];
    counts_.truncations += group.truncate_to.has_value();
    counts_.snapshots += group.install.has_value();
    Disk::Pending pending{std::move(group), {}};
    if (pending.group.install) pending.snapshot = std::exchange(node.disk.staged, {});
    node.disk.pending.push_back(std::move(pending));
    begin_sync(n);
}

void History::begin_sync(size_t n) {
    Node& node = nodes_[n];
    if (node.syncing || node.disk.pending.empty()) return;
    node.syncing = true;
    after(between(node.disk.sync_ms / 2, node.disk.sync_ms), n, node.life, Sync{});
}

void History::sync(size_t n) {
    Node& node = nodes_[n];
    node.syncing = false;
    auto& group = node.disk.pending.front().group;
    oracle_.before_sync(node.disk);
    const uint64_t ticket = group.ticket;
    uint64_t first = node.disk.log.last_index() + 1;
    if (group.truncate_to) first = *group.truncate_to + 1;
    node.disk.sync_one();
    oracle_.synced(node.disk, std::max(first, node.disk.log.base().index), node.disk.log.last_index());
    begin_sync(n);
    input(n, GroupSynced{ticket});
}

// --- sessions -------------------------------------------------------------------------------------------------------

void History::drop_sessions(size_t n) {
    nodes_[n].sessions.reset();
    nodes_[n].newest.fill(0);
    nodes_[n].writes.clear();
    nodes_[n].reads.clear();
}

void History::serve(size_t n, const Request& request) {
    Node& node = nodes_[n];
    if (!node.sessions || !node.member->serving()) return reply(n, request, false);
    Waiting waiting{request, 0, 0, 0};
    const uint64_t token = ++node.tokens;
    const uint16_t before = request.reads ? 0 : node.sessions->result[request.write.request];
    const uint8_t session = request.write.session;
    if (request.reads || before != 0) {
        // A repeated request is answered with what it did, behind the same gate as any read.
        counts_.repeats += before != 0;
        waiting.version = before != 0 ? before : node.sessions->version[session];
        waiting.hash = node.sessions->hash[session];
        node.reads[token] = waiting;
        input(n, BeginRead{token, node.newest[session]});
        return;
    }
    const auto payload = encode(request.write);
    // Decided and applied before it is durable, as a session does; only the gate keeps it from leaving.
    ShardOutputs out;
    node.member->step(Propose{token, {payload}}, now_, out);
    if (!out.refused.empty()) {
        counts_.refused_full += out.refused.front().why == ProposeRefusal::storage_full;
        reply(n, request, false);
    }
    for (const auto& proposed : out.proposed) {
        check(node.sessions->apply(*payload), "G4: a request is applied twice");
        waiting.index = node.newest[session] = proposed.index;
        waiting.version = node.sessions->result[request.write.request];
        node.writes.push_back(waiting);
    }
    perform_outputs(n, out);
}

void History::release_writes(size_t n, uint64_t committed) {
    Node& node = nodes_[n];
    while (!node.writes.empty() && node.writes.front().index <= committed) {
        const Waiting waiting = node.writes.front();
        node.writes.pop_front();
        answer(n, waiting);
    }
}

/// The gate opens. What leaves is checked here, whether or not the client still listens.
void History::answer(size_t n, const Waiting& waiting) {
    const Request& request = waiting.request;
    if (request.reads) {
        oracle_.answered_read(request.write.session, waiting.version, waiting.hash, request.begun);
        ++counts_.reads;
    } else {
        oracle_.answered_write(request.write, waiting.version, request.begun);
        ++counts_.acknowledged;
        answered_at_ = now_;
    }
    reply(n, request, true);
}

void History::reply(size_t n, const Request& request, bool done) {
    Reply out{request.client, request.attempt, done, {}};
    const auto& record = nodes_[n].member->configurations().record();
    if (!done && record.config_version != 0) out.hint = node_of(record.primary.node);
    if (noisy() && chance(10)) return;
    after(delay(), coordinator, 0, out);
}

}  // namespace mainstay::cluster_sim
