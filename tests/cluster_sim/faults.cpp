// Clients that repeat what was not answered, and what goes wrong around them: at random, and aimed.
#include <algorithm>
#include <utility>

#include "cluster_sim/history.h"

namespace mainstay::cluster_sim {
namespace {

constexpr size_t coordinator_end = 7;

}  // namespace

// --- clients --------------------------------------------------------------------------------------------------------

void History::client_acts(uint32_t number, uint64_t attempt) {
    Client& client = clients_[number];
    if (attempt != client.attempts) return;  // of an attempt that was answered meanwhile
    if (!client.busy) {
        if (healing_) return;
        ++commands_;
        if (strikes_ < options_.faults && commands_ * (options_.faults + 1) >= options_.commands * (strikes_ + 1))
            strike();
        if (commands_ == options_.commands / 2 && chance(70)) wish_for_move();
        if (commands_ == options_.commands / 4 && chance(50)) assign_other();
        client.busy = true;
        client.first = client.attempts + 1;
        client.request = Request{};
        client.request.client = number;
        client.request.reads = chance(30) || requests_ + 1 >= requests_max;
        client.request.write.session = static_cast<uint8_t>(random_.below(session_count));
        if (!client.request.reads) client.request.write.request = static_cast<uint16_t>(++requests_);
        client.request.begun = oracle_.told();
        // Some readers know no better than a list of nodes: they are who meets a primary of the past.
        if (client.request.reads && chance(40)) client.guess = random_.below(nodes_.size());
    } else {
        // A write goes on as the same request. A read that was given up is another read.
        if (client.request.reads) client.request.begun = oracle_.told();
        client.guess = random_.below(nodes_.size());
    }
    client_sends(number);
}

void History::client_sends(uint32_t number) {
    Client& client = clients_[number];
    client.request.attempt = ++client.attempts;
    if (!noisy() || !chance(10)) after(delay(), client.guess, 0, client.request);
    // Some are patient enough to meet a process that stood still.
    after(chance(80) ? between(60, 300) : between(500, 3000), coordinator, 0, ClientWakes{number, client.attempts});
}

void History::client_hears(const Reply& reply) {
    Client& client = clients_[reply.client];
    if (!client.busy) return;
    if (reply.done && reply.attempt >= client.first) {
        client.busy = false;
        after(between(0, 6), coordinator, 0, ClientWakes{reply.client, ++client.attempts});
        return;
    }
    if (reply.attempt != client.attempts) return;
    client.guess = reply.hint && chance(80) ? *reply.hint : random_.below(nodes_.size());
    after(between(5, 30), coordinator, 0, ClientWakes{reply.client, ++client.attempts});
}

// --- faults ---------------------------------------------------------------------------------------------------------

/// Mostly the primary: what happens to the others is seldom as interesting.
size_t History::victim() {
    if (chance(60)) return node_of(cluster_.record(ShardId())->primary.node);
    return random_.below(nodes_.size());
}

/// G1 promises nothing when all disks of an in-sync set are lost. One lost disk for each history, where every set has
/// two members: a change that is under way, or late, can then make no set of the lost one alone.
bool History::may_lose_disk() const {
    return cluster_.record(ShardId())->min_in_sync >= 2 && counts_.struck[static_cast<size_t>(Fault::disk_lost)] == 0;
}

void History::strike() {
    const auto fault = static_cast<Fault>(random_.below(fault_count));
    const size_t n = victim();
    Node& node = nodes_[n];
    ++strikes_;
    ++counts_.struck[static_cast<size_t>(fault)];
    switch (fault) {
        case Fault::disk_lost:
            --counts_.struck[static_cast<size_t>(fault)];  // counted below, as what it comes to
            if (may_lose_disk()) {
                ++counts_.struck[static_cast<size_t>(fault)];
                stop(n);
                Disk empty;
                empty.name = node.disk.name;
                empty.name.disk[0] = static_cast<uint8_t>(++disks_made_);
                empty.sync_ms = 3;
                node.disk = std::move(empty);
                return restart_after(n, between(10, 1500));
            }
            ++counts_.struck[static_cast<size_t>(Fault::crash)];
            [[fallthrough]];
        case Fault::disk_error:
        case Fault::crash:
            stop(n);
            if (chance(33)) {  // it comes back, and dies again before it is any use
                restart_after(n, between(1, 40));
                return after(between(41, 160), n, 0, AimedStrike{false, between(1, 500)});
            }
            return restart_after(n, chance(50) ? between(1, 200) : between(200, 2500));
        case Fault::pause: node.paused_until = now_ + between(50, lease_ms_ * 5 / 2); return;
        case Fault::isolate: {
            const TimeMs until = now_ + between(100, 2500);
            for (size_t i = 0; i < cut_.size(); ++i) cut_[n][i] = cut_[i][n] = until;
            return;
        }
        case Fault::one_way: {
            const size_t other = random_.below(nodes_.size());
            (chance(50) ? cut_[n][other] : cut_[other][n]) = now_ + between(100, 2500);
            return;
        }
        case Fault::no_coordinator: {
            const TimeMs until = now_ + between(100, 2500);
            const bool all = chance(40);
            for (size_t i = 0; i < nodes_.size(); ++i)
                if (all || i == n) {
                    if (chance(70)) cut_[i][coordinator_end] = until;
                    if (chance(70)) cut_[coordinator_end][i] = until;
                }
            return;
        }
        case Fault::noise: noise_until_ = now_ + between(200, 2000); return;
        case Fault::disk_full:
            node.disk.full = true;
            if (node.up) input(n, SpaceChanged{true});
            return after(between(200, 2000), n, 0, SpaceReturns{});
        case Fault::disk_slow:
            node.disk.sync_ms = static_cast<uint32_t>(between(50, 600));
            return after(between(200, 2000), n, 0, SpaceReturns{});
        case Fault::unknown: unknowns_ = static_cast<uint32_t>(between(1, 4)); return;
    }
}

void History::wish_for_move() {
    const ShardRecord record = *cluster_.record(ShardId());
    cluster_.change(wish(record, nodes_[random_.below(nodes_.size())].disk.name.node));
}

/// Another node is to hold a copy in the place of one that does: with its copy in sync first, or, a harder case than
/// placement makes, both at once.
void History::assign_other() {
    const ShardRecord record = *cluster_.record(ShardId());
    auto replicas = record.replicas;
    const auto holds = [&replicas](const NodeUuid& node) {
        return std::find(replicas.begin(), replicas.end(), node) != replicas.end();
    };
    const auto& comes = nodes_[random_.below(nodes_.size())].disk.name.node;
    const auto goes = replicas[random_.below(replicas.size())];
    if (goes == record.primary.node || goes == comes) return;
    if (!holds(comes)) replicas.push_back(comes);
    if (replicas.size() > 3 || chance(30)) std::erase(replicas, goes);
    if (replicas.size() >= record.min_in_sync) cluster_.change(assign(record, std::move(replicas)));
}

/// What placement does for a primary that is no longer to hold a copy, because it took over before it was let go.
void History::lead_again() {
    const ShardRecord& record = *cluster_.record(ShardId());
    const auto& replicas = record.replicas;
    if (record.target && record.target != record.primary.node) return;
    if (std::find(replicas.begin(), replicas.end(), record.primary.node) != replicas.end()) return;
    cluster_.change(wish(record, replicas[random_.below(replicas.size())]));
    tell_watches();
}

/// A change of the in-sync set or of the primary is on its way: the moment in which a wrong rule loses something. Its
/// answer is lost or it comes late, then the proposer stands still or dies, and whom the change was about is the only
/// one that can reach the coordinator.
void History::ambush(size_t proposer, const ShardRecord& before, const ShardChange& change) {
    if (change.gone || !chance(ambush_percent_)) return;
    std::optional<size_t> favoured;
    for (const auto& name : change.desired.in_sync)
        if (!contains(before.in_sync, name)) favoured = node_of(name.node);
    for (const auto& name : before.in_sync)
        if (!contains(change.desired.in_sync, name)) favoured = node_of(name.node);
    if (change.desired.primary != before.primary) favoured = node_of(change.desired.primary.node);
    if (!favoured || *favoured == proposer) return;
    ambush_percent_ = 0;
    ++counts_.ambushes;
    after(3000, coordinator, 0, AmbushEnds{});
    unknowns_ = chance(80) ? static_cast<uint32_t>(between(1, 2)) : 0;
    const TimeMs until = now_ + lease_ms_ + between(300, 2500);
    if (chance(80)) cut_[proposer][*favoured] = now_ + between(200, 2000);
    if (chance(50)) cut_[*favoured][proposer] = now_ + between(200, 2000);
    // The proposer hears nothing of the coordinator for a while: what it does not know, it does not learn by reading.
    if (chance(50)) cut_[coordinator_end][proposer] = now_ + between(200, 1200);
    for (size_t i = 0; i < nodes_.size(); ++i)
        if (i != *favoured && i != proposer && chance(80)) cut_[i][coordinator_end] = until;
    after(between(20, 600), proposer, nodes_[proposer].life, AimedStrike{chance(50), lease_ms_ + between(100, 1500)});
}

}  // namespace mainstay::cluster_sim
