// Time, network and coordinator of a simulated cluster, and how a history begins and ends.
#include "cluster_sim/history.h"

#include <algorithm>
#include <utility>

namespace mainstay::cluster_sim {
namespace {

constexpr TimeMs history_ms_max = 240'000;  // virtual; a history that takes longer is stuck
constexpr TimeMs quiet_ms_max = 60'000;     // after the last fault
constexpr size_t coordinator_end = 7;       // of History::cut_

}  // namespace

void Counts::add(const Counts& other) {
    static_assert(sizeof(Counts) % sizeof(uint64_t) == 0);
    auto* mine = reinterpret_cast<uint64_t*>(this);
    const auto* theirs = reinterpret_cast<const uint64_t*>(&other);
    for (size_t i = 0; i < sizeof(Counts) / sizeof(uint64_t); ++i) mine[i] += theirs[i];
}

/// Quick ones, so that a history of some seconds sees many take-overs, and logs that are trimmed early.
void History::choose_settings() {
    settings_.heartbeat_ms = 50;
    settings_.resend_ms = 60;
    settings_.replica_timeout_ms = 200;
    settings_.probation_ms = 300;
    settings_.list_interval_ms = 300;
    settings_.stagger_ms = 30;
    settings_.log_records_kept = between(4, 60);
    settings_.message_records_max = between(2, 16);
    ambush_percent_ = chance(50) ? 30 : 0;
}

History::History(const HistoryOptions& options)
    : options_(options),
      random_(options.seed * 0x9e3779b97f4a7c15 + 1),
      lease_ms_(options.as_shipped ? limits::node_lease_ms : 1000),
      request_timeout_ms_(options.as_shipped ? limits::coordinator_request_timeout_ms : 150),
      cluster_(lease_ms_),
      oracle_(disks_, options.clients_only) {
    if (!options.as_shipped) choose_settings();
    hints_percent_ = options.hints_percent.value_or(static_cast<uint32_t>(random_.below(3) * 50));
    const size_t count = chance(75) ? 3 : 4;
    cut_.assign(8, {});
    nodes_ = std::vector<Node>(count);
    for (size_t i = 0; i < count; ++i) {
        nodes_[i].disk.name.node[0] = static_cast<uint8_t>(i + 1);
        nodes_[i].disk.name.disk[0] = static_cast<uint8_t>(++disks_made_);
        nodes_[i].disk.sync_ms = 3;
        disks_.push_back(&nodes_[i].disk);
    }
    cluster_.on_change([this](const ShardRecord* before, const ShardRecord& after) {
        oracle_.changed(before, after);
        changed_ = true;
        if (before) count_change(*before, after);
    });
    cluster_.advance(now_);
    for (size_t i = 0; i < count; ++i) start(i);
    // Three nodes hold the shard; a fourth is there to be moved to. One in five clusters asks for two replicas at
    // least.
    ShardChange first;
    first.desired.epoch = Epoch(1);
    first.desired.primary = nodes_[0].disk.name;
    first.desired.incarnation = nodes_[0].incarnation;
    first.desired.min_in_sync = chance(80) ? 2 : 1;
    for (size_t i = 0; i < 3; ++i) {
        first.desired.in_sync.push_back(nodes_[i].disk.name);
        first.desired.replicas.push_back(nodes_[i].disk.name.node);
    }
    check(cluster_.change(first).outcome == ChangeOutcome::ok, "the first record is made");
    for (uint32_t client = 0; client < client_count; ++client)
        after(between(1, 50), coordinator, 0, ClientWakes{client, 0});
}

// --- time -----------------------------------------------------------------------------------------------------------

void History::after(TimeMs delay, size_t node, uint64_t life, Work work) {
    size_t slot = slots_.size();
    if (free_.empty()) {
        slots_.emplace_back();
    } else {
        slot = free_.back();
        free_.pop_back();
    }
    slots_[slot] = Event{std::move(work), node, life};
    due_.push({now_ + delay, ++order_, slot});
}

bool History::step_event() {
    if (due_.empty()) return false;
    const Due due = due_.top();
    due_.pop();
    now_ = std::max(now_, due.at);
    Event event = std::move(slots_[due.slot]);
    free_.push_back(due.slot);
    ++counts_.events;
    perform(event);
    return true;
}

/// What a process gets while it stands still waits for it; the disk and the world do not stand still.
void History::perform(Event& event) {
    if (event.node == coordinator) {
        if (auto* wakes = std::get_if<ClientWakes>(&event.work)) client_acts(wakes->client, wakes->attempt);
        if (auto* heard = std::get_if<Reply>(&event.work)) client_hears(*heard);
        if (std::get_if<AmbushEnds>(&event.work)) ambush_percent_ = 30;
        return;
    }
    const size_t n = event.node;
    Node& node = nodes_[n];
    if (auto* ask = std::get_if<AskList>(&event.work)) return coordinate(*ask, n, event.life);
    if (auto* ask = std::get_if<AskChange>(&event.work)) return coordinate(*ask, n, event.life);
    if (std::get_if<Start>(&event.work)) {
        if (!node.up) start(n);
        return;
    }
    if (std::get_if<SpaceReturns>(&event.work)) {
        node.disk.full = false;
        node.disk.sync_ms = 3;
        if (node.up) input(n, SpaceChanged{false});
        return;
    }
    if (!node.up || (event.life != 0 && event.life != node.life)) return;
    if (node.paused_until > now_) {
        after(node.paused_until - now_, n, event.life, std::move(event.work));
        return;
    }
    if (auto* aimed = std::get_if<AimedStrike>(&event.work)) {
        if (healing_) return;
        if (aimed->pauses) {
            node.paused_until = now_ + aimed->back;
        } else {
            stop(n);
            restart_after(n, aimed->back);
        }
        return;
    }
    if (auto* to = std::get_if<ToMember>(&event.work)) return input(n, to->message);
    if (std::get_if<Sync>(&event.work)) return sync(n);
    if (std::get_if<Hint>(&event.work)) return send(n, coordinator, node.life, AskList{false});
    if (auto* request = std::get_if<Request>(&event.work)) return serve(n, *request);
    if (std::get_if<TickDue>(&event.work)) {
        after(25, n, node.life, TickDue{});
        if (now_ >= node.keep_alive_at) {
            node.keep_alive_at = now_ + lease_ms_ / 3;
            send(n, coordinator, node.life, AskList{true});
        }
        return input(n, ShardTick{});
    }
    if (auto* read = std::get_if<ListRead>(&event.work)) {
        if (read->expired) {
            // Somebody else may own by now what this process thinks it owns. It starts anew, or goes on and finds out.
            ++counts_.leases_lost;
            if (chance(50)) {
                cluster_.join({node.disk.name, node.incarnation});
                return;
            }
            stop(n);
            restart_after(n, between(1, 50));
        } else if (!read->keep_alive) {
            input(n, read->read);
        }
        return;
    }
    if (auto* done = std::get_if<ChangeDone>(&event.work)) {
        if (node.changes.erase(done->request) == 0) return;  // given up before
        if (done->answer.outcome == ChangeOutcome::unknown) ++counts_.unknown;
        input(n, ChangeSettled{done->request, done->answer});
    }
}

// --- the network ----------------------------------------------------------------------------------------------------

bool History::linked(size_t from, size_t to) const {
    const size_t a = from == coordinator ? coordinator_end : from, b = to == coordinator ? coordinator_end : to;
    return cut_[a][b] <= now_;
}

TimeMs History::delay() {
    if (noisy() && chance(10)) return between(1, 150);
    return between(1, 3);
}

/// A byte of an entry changes on its way. Only its chain can tell.
bool History::damage(Work& work) {
    auto* to = std::get_if<ToMember>(&work);
    auto* append = to ? std::get_if<AppendEntries>(&to->message.body) : nullptr;
    if (!append || append->entries.empty() || !append->entries.back().payload) return false;
    std::string bytes = *append->entries.back().payload;
    bytes[0] = static_cast<char>(bytes[0] ^ 1);
    append->entries.back().payload = std::make_shared<const std::string>(std::move(bytes));
    return true;
}

/// Messages are sent now and looked at by the network when they leave; order is not kept.
void History::send(size_t from, size_t to, uint64_t life, Work work) {
    if (!linked(from, to) || chance(noisy() ? 15 : 0)) {
        ++counts_.dropped;
        return;
    }
    const size_t node = to == coordinator ? from : to;
    if (noisy() && chance(4)) counts_.damaged += damage(work);
    if (noisy() && chance(8)) {
        ++counts_.doubled;
        Work again = work;
        after(delay(), node, life, std::move(again));
    }
    after(delay(), node, life, std::move(work));
}

// --- the coordinator ------------------------------------------------------------------------------------------------

void History::coordinate(const AskList& ask, size_t node, uint64_t life) {
    cluster_.advance(now_);
    ListRead answer;
    answer.keep_alive = ask.keep_alive;
    // The process that asked is known by its life; its incarnation is that of the node while it lives.
    if (ask.keep_alive) {
        if (life != nodes_[node].life) return;
        const Incarnation who{nodes_[node].disk.name.node, nodes_[node].incarnation};
        answer.expired = !cluster_.keep_alive(who);
    } else {
        ClusterView view = cluster_.list();
        if (!view.shards.empty()) answer.read.record = std::move(view.shards.front());
        answer.read.nodes = std::move(view.nodes);
    }
    if (linked(coordinator, node)) after(delay(), node, life, std::move(answer));
    tell_watches();
}

void History::coordinate(const AskChange& ask, size_t node, uint64_t life) {
    cluster_.advance(now_);
    const ShardRecord* record = cluster_.record(ask.change.desired.shard);
    const ShardRecord before = record ? *record : ShardRecord{};
    const ChangeAnswer answer = cluster_.change(ask.change);
    if (answer.outcome == ChangeOutcome::conflict) ++counts_.conflicts;
    if (answer.outcome == ChangeOutcome::ok) {
        if (ask.late) ++counts_.late_effects;
        if (ask.no_answer) ++counts_.unknown_with_effect;
    }
    tell_watches();
    if (ask.no_answer || !linked(coordinator, node)) return;
    after(delay(), node, life, ChangeDone{ask.request, answer});
}

void History::request_change(size_t n, ShardOutputs::Change& change) {
    Node& node = nodes_[n];
    node.changes[change.request] = node.life;
    after(request_timeout_ms_, n, node.life, ChangeDone{change.request, {}});
    AskChange ask{change.request, std::move(change.change)};
    const ShardRecord* record = cluster_.record(ask.change.desired.shard);
    if (record && !healing_) ambush(n, *record, ask.change);
    TimeMs way = delay();
    if (unknowns_ > 0) {
        --unknowns_;
        ask.no_answer = true;
        if (chance(30)) return;  // never arrives
        if (chance(50)) {
            ask.late = true;
            way += between(request_timeout_ms_, 1500);
        }
    }
    if (linked(n, coordinator)) after(way, n, node.life, std::move(ask));
}

/// Some of them, and some not: nothing may rest on it.
void History::tell_watches() {
    const bool expired = cluster_.leases() < leases_;
    leases_ = cluster_.leases();
    if (!changed_ && !expired) return;
    changed_ = false;
    for (size_t n = 0; n < nodes_.size(); ++n)
        if (nodes_[n].up && linked(coordinator, n) && chance(hints_percent_)) after(delay(), n, nodes_[n].life, Hint{});
}

void History::count_change(const ShardRecord& before, const ShardRecord& after) {
    if (after.primary != before.primary || after.incarnation != before.incarnation) {
        const bool wished =
            before.in_sync == after.in_sync && !cluster_.live({before.primary.node, before.incarnation});
        ++(wished ? counts_.take_overs : counts_.hand_overs);
    }
    bool in = false, out = false;
    for (const auto& name : after.in_sync) in = in || !contains(before.in_sync, name);
    for (const auto& name : before.in_sync) {
        if (contains(after.in_sync, name)) continue;
        out = true;
        counts_.retired +=
            std::find(before.replicas.begin(), before.replicas.end(), name.node) == before.replicas.end();
    }
    counts_.swaps += in && out;
    counts_.grows += in && !out;
    counts_.shrinks += out && !in;
    counts_.confirms += before.epoch == after.epoch && !in && !out && before.target == after.target &&
                        before.replicas == after.replicas;
}

// --- a history ------------------------------------------------------------------------------------------------------

void History::run() {
    const TimeMs begun = now_;
    while (commands_ < options_.commands || strikes_ < options_.faults) {
        check(step_event(), "a cluster never comes to rest");
        if (now_ - begun > history_ms_max) throw Violation("a history does not end" + describe());
    }
    heal();
    const TimeMs healed = now_;
    while (!quiet()) {
        lead_again();
        check(step_event(), "a cluster never comes to rest");
        if (now_ - healed > quiet_ms_max)
            throw Violation("without faults, the cluster does not become whole" + describe());
    }
    finish();
    counts_.histories = 1;
    counts_.commands = commands_;
    counts_.virtual_ms = now_ - begun;
}

TimeMs History::interruption(bool planned) {
    while (commands_ < 50) check(step_event(), "a cluster never comes to rest");
    const TimeMs until = now_ + random_.below(lease_ms_ / 3);  // at any moment between two signs of life
    while (now_ < until) check(step_event(), "a cluster never comes to rest");
    if (planned) {
        const ShardRecord record = *cluster_.record(ShardId());
        cluster_.change(wish(record, nodes_[1].disk.name.node));
        tell_watches();
    } else {
        stop(0);
    }
    while (interruption_ == 0) {
        check(step_event(), "a cluster never comes to rest");
        check(now_ - until < quiet_ms_max, "nobody takes over");
    }
    return interruption_;
}

void History::heal() {
    healing_ = true;
    for (auto& row : cut_) row.fill(0);
    noise_until_ = 0;
    unknowns_ = 0;
    for (size_t n = 0; n < nodes_.size(); ++n) {
        nodes_[n].paused_until = 0;
        nodes_[n].disk.full = false;
        nodes_[n].disk.sync_ms = 3;
        if (!nodes_[n].up)
            start(n);
        else
            input(n, SpaceChanged{false});
    }
}

/// Every client has its answer, every node that is to hold the shard does, and all hold the same.
bool History::quiet() const {
    for (const auto& client : clients_)
        if (client.busy) return false;
    const ShardRecord& record = *cluster_.record(ShardId());
    if (record.target && record.primary.node != *record.target) return false;
    const Node& primary = nodes_[node_of(record.primary.node)];
    if (!primary.up || !primary.member->serving() || primary.member->serving() != record.epoch) return false;
    const auto& log = primary.member->replica().log();
    if (primary.member->replica().commit() != log.last_index()) return false;
    for (const auto& uuid : record.replicas) {
        const Node& node = nodes_[node_of(uuid)];
        if (!contains(record.in_sync, node.disk.name)) return false;
        if (node.disk.log.last() != log.last()) return false;
    }
    return record.in_sync.size() == record.replicas.size();
}

/// The nodes as they stand, for whoever has to find out why they stand so.
std::string History::describe() const {
    const ShardRecord& record = *cluster_.record(ShardId());
    std::string out = "; epoch " + std::to_string(record.epoch.value) + " of node " +
                      std::to_string(node_of(record.primary.node)) + ", min " + std::to_string(record.min_in_sync) +
                      ", in sync";
    for (const auto& name : record.in_sync)
        out += " " + std::to_string(node_of(name.node)) + "/" + std::to_string(name.disk[0]);
    if (record.target) out += ", wish " + std::to_string(node_of(*record.target));
    for (size_t n = 0; n < nodes_.size(); ++n) {
        const Node& node = nodes_[n];
        out += "; node " + std::to_string(n) + "/" + std::to_string(node.disk.name.disk[0]) +
               (node.up ? " up" : " down") + (cluster_.live({node.disk.name.node, node.incarnation}) ? " live" : "") +
               " promised " + std::to_string(node.disk.promised.value) + " log " +
               std::to_string(node.disk.log.base().index) + ".." + std::to_string(node.disk.log.last_index());
        if (node.up)
            out += " commit " + std::to_string(node.member->replica().commit()) +
                   (node.member->serving() ? " serving" : "") +
                   (node.member->configurations().record().primary == node.disk.name ? " named" : "");
    }
    for (const auto& client : clients_)
        if (client.busy) out += "; client waits for " + std::to_string(client.request.write.request);
    return out;
}

void History::finish() {
    const ShardRecord& record = *cluster_.record(ShardId());
    std::optional<std::string> agreed;
    for (const auto& uuid : record.replicas) {
        Disk& disk = nodes_[node_of(uuid)].disk;
        Registers state = disk.base_state;
        for (uint64_t i = disk.log.base().index + 1; i <= disk.log.last_index(); ++i)
            if (disk.log.entry(i).payload)
                check(state.apply(*disk.log.entry(i).payload), "G4: a request is in the log twice");
        const std::string bytes = state.snapshot();
        check(!agreed || *agreed == bytes, "replicas with one log have two states");
        agreed = bytes;
    }
    oracle_.finish(Registers::restore(*agreed));
}

size_t History::node_of(const NodeUuid& uuid) const { return static_cast<size_t>(uuid[0] - 1); }

}  // namespace mainstay::cluster_sim
