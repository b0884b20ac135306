#include "cluster/placement.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

constexpr size_t none = SIZE_MAX;
constexpr uint64_t weight_max = 1'000'000;  // so that products of loads and weights stay small

struct Node {
    NodeUuid uuid{};
    std::optional<LiveNode> process;  // with a lease; of two, none: which one is the newer cannot be told
    bool live = false, draining = false, gone = false;
    uint64_t weight = 1, copies = 0, primaries = 0;
    uint32_t zone = 0;
    std::vector<size_t> holds, leads;  // shards

    bool eligible() const { return live && !draining; }
};

struct Shard {
    const ShardRecord* record = nullptr;  // null: to be born
    std::vector<size_t> replicas;         // nodes
    std::vector<bool> healthy;  // in sync with the disk that it has now, and live; of replicas, in the same order
    size_t primary = none, target = none, leaves = none;
    bool led = false;       // the process on record has a lease
    bool copying = false;   // somebody live who is to stay is not in sync yet
    bool retiring = false;  // somebody live is in sync who is to hold no copy
    bool under_way = false;
    bool handing_over = false;  // under way, and all that is left is a hand-over to a copy in sync
    bool wanting = false;       // takes no writes until another copy is in sync
    bool planned = false;       // by this plan: no more of it
};

/// Whether one more at `to` is less, for its weight, than what `from` has: a move that makes neither trade places.
bool evens(uint64_t from, uint64_t from_weight, uint64_t to, uint64_t to_weight) {
    return from * to_weight > (to + 1) * from_weight;
}

/// Below zero: a is emptier.
int compare_load(uint64_t a, uint64_t a_weight, uint64_t b, uint64_t b_weight) {
    const uint64_t left = a * b_weight, right = b * a_weight;
    return left < right ? -1 : left > right ? 1 : 0;
}

/// Spreads what is otherwise equal, so that not the same nodes share all their shards. splitmix64.
uint64_t scatter(uint16_t shard, const NodeUuid& node) {
    uint64_t x;
    std::memcpy(&x, node.data(), sizeof x);
    uint64_t y;
    std::memcpy(&y, node.data() + sizeof x, sizeof y);
    x ^= y + 0x9e3779b97f4a7c15 * (shard + uint64_t{1});
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

class Planner {
  public:
    Planner(const ClusterMeta& meta, const ClusterView& view, const PlacementWatch& watch,
            const PlacementSettings& settings, TimeMs wall)
        : meta_(meta), view_(view), settings_(settings), wall_(wall) {
        find_nodes(watch);
    }

    void plan_births(TimeMs waited);
    void plan_first_copy(const PlacementSelf& self);
    void plan_steps();
    PlacementPlan take() { return std::move(plan_); }

  private:
    // --- what there is
    void find_nodes(const PlacementWatch& watch);
    void find_shards();
    void describe(Shard& shard);
    void choose_who_leaves();
    size_t node_of(const NodeUuid& uuid) const;
    bool any_unborn() const { return view_.shards.size() < meta_.shards; }
    std::vector<uint16_t> unborn() const;
    size_t zones_of(const std::vector<size_t>& nodes, size_t without = none, size_t with = none) const;
    size_t healthy_without(const Shard& shard, size_t node) const;
    size_t usable(const Shard& shard) const;
    bool may_leave(const Shard& shard, size_t node) const;
    bool settled(const Shard& shard) const;

    // --- what should be
    void rescue();
    void clear_targets();
    void finish_moves();
    void relieve_primaries();
    void replace_copies();
    void spread_zones();
    void even_primaries();
    void even_copies();
    bool even_copies_of(size_t from, const std::vector<size_t>& by_load);
    struct HandOver {
        size_t shard = none, from = none, to = none;
    };
    std::optional<HandOver> next_hand_over() const;
    std::optional<HandOver> last_hand_over_from(size_t from, std::vector<bool>& reached) const;

    size_t best_primary(const Shard& shard, size_t but) const;
    size_t best_holder(const Shard& shard, bool new_zone) const;
    std::vector<size_t> fullest_first(uint64_t Node::*load) const;

    bool step_left() const { return plan_.steps.size() < settings_.moves_max + settings_.hand_overs_max; }
    bool copy_left() const { return step_left() && copies_ < settings_.moves_max; }
    bool hand_over_left() const { return step_left() && hand_overs_ < settings_.hand_overs_max; }
    /// For the sake of order alone: nothing waits for it, and each pauses a shard.
    bool order_left() const { return step_left() && copies_ + hand_overs_ < settings_.moves_max; }
    bool rescue_left() const { return step_left() && rescues_ < settings_.rescues_max; }
    void add(Shard& shard, ShardChange change, std::string what, std::string why);
    bool healthy(const Shard& shard, size_t node) const;
    void wish_for(Shard& shard, size_t node, std::string why);
    void add_copy(Shard& shard, size_t node, std::string why);
    void begin_target(Shard& shard, size_t node);

    const ClusterMeta& meta_;
    const ClusterView& view_;
    const PlacementSettings& settings_;
    const TimeMs wall_;
    std::vector<Node> nodes_;  // by uuid
    std::vector<Shard> shards_;
    size_t copies_ = 0, hand_overs_ = 0, rescues_ = 0;  // under way, those of this plan included
    PlacementPlan plan_;
};

// --- what there is --------------------------------------------------------------------------------------------------

size_t Planner::node_of(const NodeUuid& uuid) const {
    const auto found = std::lower_bound(nodes_.begin(), nodes_.end(), uuid,
                                        [](const Node& node, const NodeUuid& wanted) { return node.uuid < wanted; });
    return found != nodes_.end() && found->uuid == uuid ? static_cast<size_t>(found - nodes_.begin()) : none;
}

void Planner::find_nodes(const PlacementWatch& watch) {
    std::vector<NodeUuid> uuids;
    for (const auto& node : view_.nodes) uuids.push_back(node.name.node);
    for (const auto& record : view_.shards) uuids.insert(uuids.end(), record.replicas.begin(), record.replicas.end());
    for (const auto& record : view_.shards) uuids.push_back(record.primary.node);
    std::sort(uuids.begin(), uuids.end());
    uuids.erase(std::unique(uuids.begin(), uuids.end()), uuids.end());
    nodes_.resize(uuids.size());
    std::vector<std::string> zones;
    for (size_t n = 0; n < uuids.size(); ++n) {
        nodes_[n].uuid = uuids[n];
        nodes_[n].zone = static_cast<uint32_t>(n);  // its own, until it says otherwise
        nodes_[n].gone = watch.absent_ms(uuids[n]) > settings_.gone_ms;
    }
    for (size_t i = 0; i < view_.nodes.size(); ++i) {
        Node& node = nodes_[node_of(view_.nodes[i].name.node)];
        node.process = node.live ? std::nullopt : std::optional(view_.nodes[i]);
        node.live = true;
        node.gone = false;
        const NodeDetails& details = view_.details[i];
        node.weight = std::clamp<uint64_t>(details.capacity, 1, weight_max);
        if (details.zone.empty()) continue;
        const auto zone = std::find(zones.begin(), zones.end(), details.zone);
        node.zone = static_cast<uint32_t>(uuids.size() + static_cast<size_t>(zone - zones.begin()));
        if (zone == zones.end()) zones.push_back(details.zone);
    }
    for (const auto& uuid : view_.draining)
        if (const size_t n = node_of(uuid); n != none) nodes_[n].draining = true;
}

void Planner::find_shards() {
    shards_.reserve(view_.shards.size());
    for (const auto& record : view_.shards) {
        Shard& shard = shards_.emplace_back();
        shard.record = &record;
        describe(shard);
    }
    for (size_t s = 0; s < shards_.size(); ++s) {
        for (const size_t n : shards_[s].replicas) {
            ++nodes_[n].copies;
            nodes_[n].holds.push_back(s);
        }
        // Who is to lead counts as who leads.
        const size_t leader = shards_[s].target != none ? shards_[s].target : shards_[s].primary;
        ++nodes_[leader].primaries;
        nodes_[leader].leads.push_back(s);
    }
    choose_who_leaves();
    for (Shard& shard : shards_) {
        shard.under_way = shard.led && (shard.target != none || shard.copying || shard.retiring ||
                                        (shard.leaves != none && may_leave(shard, shard.leaves)));
        shard.handing_over = shard.under_way && shard.target != none && healthy(shard, shard.target) &&
                             !shard.copying && !shard.retiring && shard.leaves == none;
        plan_.under_way += shard.under_way;
        hand_overs_ += shard.handing_over;
        copies_ += shard.under_way && !shard.handing_over;
        shard.wanting = shard.led && shard.record->in_sync.size() < shard.record->min_in_sync;
        rescues_ += shard.wanting && shard.copying;
    }
}

void Planner::describe(Shard& shard) {
    const ShardRecord& record = *shard.record;
    shard.primary = node_of(record.primary.node);
    const auto is_live = [this](const ReplicaName& name) {
        return std::any_of(view_.nodes.begin(), view_.nodes.end(),
                           [&name](const LiveNode& node) { return node.name == name; });
    };
    for (const auto& uuid : record.replicas) {
        const size_t n = node_of(uuid);
        const auto in_sync = std::find_if(record.in_sync.begin(), record.in_sync.end(), [&](const ReplicaName& name) {
            return name.node == uuid && nodes_[n].live &&
                   (nodes_[n].process ? nodes_[n].process->name == name : is_live(name));
        });
        const bool healthy = in_sync != record.in_sync.end();
        shard.replicas.push_back(n);
        shard.healthy.push_back(healthy);
        shard.copying = shard.copying || (!healthy && nodes_[n].eligible());
    }
    for (const auto& name : record.in_sync) {
        const size_t n = node_of(name.node);
        if (n != none && nodes_[n].live &&
            std::find(shard.replicas.begin(), shard.replicas.end(), n) == shard.replicas.end())
            shard.retiring = true;
    }
    const Node& primary = nodes_[shard.primary];
    shard.led = primary.process
                    ? primary.process->incarnation == record.incarnation
                    : std::any_of(view_.nodes.begin(), view_.nodes.end(), [&record](const LiveNode& node) {
                          return node.name.node == record.primary.node && node.incarnation == record.incarnation;
                      });
    if (record.target && record.target != record.primary.node)
        if (const size_t n = node_of(*record.target); n != none && nodes_[n].live) shard.target = n;
}

/// Of a shard with more copies than it should have: who is of least use. Counted as gone already, so that no second
/// move begins for the same reason.
void Planner::choose_who_leaves() {
    for (Shard& shard : shards_) {
        if (shard.replicas.size() <= meta_.replicas) continue;
        const auto worse = [&](size_t a, size_t b) {
            const Node &x = nodes_[a], &y = nodes_[b];
            if (x.gone != y.gone) return x.gone;
            if (x.draining != y.draining) return x.draining;
            const size_t without_a = zones_of(shard.replicas, a), without_b = zones_of(shard.replicas, b);
            if (without_a != without_b) return without_a > without_b;
            if (const int order = compare_load(x.copies, x.weight, y.copies, y.weight)) return order > 0;
            return a != shard.primary && b == shard.primary;
        };
        for (const size_t n : shard.replicas)
            if (n != shard.target && (shard.leaves == none || worse(n, shard.leaves))) shard.leaves = n;
        if (shard.leaves != none) --nodes_[shard.leaves].copies;
    }
}

std::vector<uint16_t> Planner::unborn() const {
    std::vector<bool> born(meta_.shards);
    for (const auto& record : view_.shards)
        if (record.shard.value < born.size()) born[record.shard.value] = true;
    std::vector<uint16_t> out;
    for (uint16_t s = 0; s < meta_.shards; ++s)
        if (!born[s]) out.push_back(s);
    return out;
}

/// How many zones these nodes are in, one of them left out, one more counted in.
size_t Planner::zones_of(const std::vector<size_t>& nodes, size_t without, size_t with) const {
    uint32_t seen[limits::replicas_max + 1];
    size_t count = 0;
    const auto take = [&](size_t n) {
        if (n == none || n == without || count == std::size(seen)) return;
        if (std::find(seen, seen + count, nodes_[n].zone) == seen + count) seen[count++] = nodes_[n].zone;
    };
    for (const size_t n : nodes) take(n);
    take(with);
    return count;
}

/// Whether `node` is one of its replicas, in sync and live.
bool Planner::healthy(const Shard& shard, size_t node) const {
    for (size_t i = 0; i < shard.replicas.size(); ++i)
        if (shard.replicas[i] == node) return shard.healthy[i];
    return false;
}

size_t Planner::healthy_without(const Shard& shard, size_t node) const {
    size_t count = 0;
    for (size_t i = 0; i < shard.replicas.size(); ++i) count += shard.healthy[i] && shard.replicas[i] != node;
    return count;
}

/// Copies that count for the number that there should be: on nodes that are there, or away for a moment.
size_t Planner::usable(const Shard& shard) const {
    return static_cast<size_t>(std::count_if(shard.replicas.begin(), shard.replicas.end(),
                                             [this](size_t n) { return !nodes_[n].gone && !nodes_[n].draining; }));
}

bool Planner::may_leave(const Shard& shard, size_t node) const {
    return healthy_without(shard, node) >= std::max({meta_.replicas, shard.record->min_in_sync, uint32_t{1}});
}

/// Nothing is wrong with it and nothing goes on: it may be moved for the sake of order.
bool Planner::settled(const Shard& shard) const {
    return shard.led && !shard.under_way && !shard.planned && shard.replicas.size() == meta_.replicas &&
           healthy_without(shard, none) == shard.replicas.size() && usable(shard) == shard.replicas.size();
}

// --- changes --------------------------------------------------------------------------------------------------------

void Planner::add(Shard& shard, ShardChange change, std::string what, std::string why) {
    shard.planned = true;
    plan_.steps.push_back({std::move(change), {wall_, shard.record->shard, std::move(what), std::move(why)}});
}

void Planner::begin_target(Shard& shard, size_t node) {
    const size_t s = static_cast<size_t>(&shard - shards_.data());
    const size_t before = shard.target != none ? shard.target : shard.primary;
    --nodes_[before].primaries;
    std::erase(nodes_[before].leads, s);
    ++nodes_[node].primaries;
    nodes_[node].leads.push_back(s);
    shard.target = node;
}

void Planner::wish_for(Shard& shard, size_t node, std::string why) {
    begin_target(shard, node);
    hand_overs_ += !shard.under_way;
    add(shard, wish(*shard.record, nodes_[node].uuid), "target node " + short_text(nodes_[node].uuid), std::move(why));
}

void Planner::add_copy(Shard& shard, size_t node, std::string why) {
    auto replicas = shard.record->replicas;
    replicas.push_back(nodes_[node].uuid);
    ++nodes_[node].copies;
    copies_ += !shard.under_way;
    add(shard, assign(*shard.record, std::move(replicas)), "copy to node " + short_text(nodes_[node].uuid),
        std::move(why));
}

/// The one in sync that leads least, and takes part.
size_t Planner::best_primary(const Shard& shard, size_t but) const {
    size_t best = none;
    for (size_t i = 0; i < shard.replicas.size(); ++i) {
        const size_t n = shard.replicas[i];
        if (!shard.healthy[i] || n == but || !nodes_[n].eligible()) continue;
        if (best == none ||
            compare_load(nodes_[n].primaries, nodes_[n].weight, nodes_[best].primaries, nodes_[best].weight) < 0)
            best = n;
    }
    return best;
}

/// The emptiest node that could hold another copy; first of all one in a zone that the copies that will stay do not
/// have.
size_t Planner::best_holder(const Shard& shard, bool new_zone) const {
    std::vector<size_t> staying;
    for (const size_t n : shard.replicas)
        if (!nodes_[n].gone && !nodes_[n].draining) staying.push_back(n);
    const size_t zones = zones_of(staying);
    size_t best = none;
    bool best_new = false;
    for (size_t n = 0; n < nodes_.size(); ++n) {
        if (!nodes_[n].eligible()) continue;
        if (std::find(shard.replicas.begin(), shard.replicas.end(), n) != shard.replicas.end()) continue;
        const bool is_new = zones_of(staying, none, n) > zones;
        if ((new_zone && !is_new) || (best != none && best_new && !is_new)) continue;
        const Node &a = nodes_[n], &b = nodes_[best == none ? n : best];
        if (best == none || (is_new && !best_new) || compare_load(a.copies + 1, a.weight, b.copies + 1, b.weight) < 0) {
            best = n;
            best_new = is_new;
        }
    }
    return best;
}

// --- births ---------------------------------------------------------------------------------------------------------

void Planner::plan_first_copy(const PlacementSelf& self) {
    const std::string name = short_text(self.node.name.node);
    for (const uint16_t s : unborn()) {
        const ShardId shard{s};
        plan_.births.push_back(
            {birth(shard, Epoch(self.first_copy->value + 1), {self.node}, meta_.min_in_sync),
             {wall_, shard, "begins on node " + name, "node " + name + " has what the cluster begins with"}});
    }
}

void Planner::plan_births(TimeMs waited) {
    std::vector<size_t> able;
    for (size_t n = 0; n < nodes_.size(); ++n)
        if (nodes_[n].eligible() && nodes_[n].process) able.push_back(n);
    const bool enough = able.size() >= meta_.replicas;
    if (able.empty() || able.size() < meta_.min_in_sync || (!enough && waited < settings_.birth_wait_ms)) return;
    find_shards();  // what is there already counts
    for (Shard& shard : shards_) shard.planned = true;
    const size_t first = shards_.size();
    const auto shards = unborn();
    shards_.resize(first + shards.size());
    for (size_t i = 0; i < shards.size(); ++i) {
        Shard& shard = shards_[first + i];
        const size_t copies = std::min<size_t>(meta_.replicas, able.size());
        while (shard.replicas.size() < copies) {
            size_t best = none, best_zones = 0;
            for (const size_t n : able) {
                if (std::find(shard.replicas.begin(), shard.replicas.end(), n) != shard.replicas.end()) continue;
                const size_t zones = zones_of(shard.replicas, none, n);
                const Node &a = nodes_[n], &b = nodes_[best == none ? n : best];
                const int order = compare_load(a.copies + 1, a.weight, b.copies + 1, b.weight);
                const bool better = zones != best_zones ? zones > best_zones
                                    : order != 0        ? order < 0
                                                        : scatter(shards[i], a.uuid) < scatter(shards[i], b.uuid);
                if (best != none && !better) continue;
                best = n;
                best_zones = zones;
            }
            shard.replicas.push_back(best);
            shard.healthy.push_back(true);
            ++nodes_[best].copies;
        }
        shard.led = true;
        shard.primary = best_primary(shard, none);
        ++nodes_[shard.primary].primaries;
        nodes_[shard.primary].leads.push_back(first + i);
    }
    while (const auto move = next_hand_over()) {
        begin_target(shards_[move->shard], move->to);
        shards_[move->shard].primary = std::exchange(shards_[move->shard].target, none);
    }
    for (size_t i = 0; i < shards.size(); ++i) {
        Shard& shard = shards_[first + i];
        std::iter_swap(shard.replicas.begin(), std::find(shard.replicas.begin(), shard.replicas.end(), shard.primary));
        std::vector<LiveNode> copies;
        std::string names;
        for (const size_t n : shard.replicas) {
            copies.push_back(*nodes_[n].process);
            names += (names.empty() ? "" : ", ") + short_text(nodes_[n].uuid);
        }
        const ShardId id{shards[i]};
        plan_.births.push_back(
            {birth(id, Epoch(1), copies, meta_.min_in_sync),
             {wall_, id, "begins on nodes " + names,
              enough ? "enough nodes are there" : "only " + std::to_string(able.size()) + " nodes have come"}});
    }
}

// --- steps ----------------------------------------------------------------------------------------------------------

void Planner::plan_steps() {
    find_shards();
    rescue();
    clear_targets();
    finish_moves();
    relieve_primaries();
    replace_copies();
    spread_zones();
    even_primaries();
    even_copies();
}

/// A wish that was granted by other means, or never can be. Nobody else takes it off the record.
void Planner::clear_targets() {
    for (Shard& shard : shards_) {
        if (!step_left()) return;
        const auto& target = shard.record->target;
        if (!target || !shard.led) continue;
        const std::string name = "node " + short_text(*target);
        const char* why = nullptr;
        if (*target == shard.record->primary.node)
            why = " leads it";
        else if (shard.target == none)
            why = " has no lease";
        else if (nodes_[shard.target].draining)
            why = " drains";
        else if (shard.replicas.size() >= limits::replicas_max &&
                 std::find(shard.replicas.begin(), shard.replicas.end(), shard.target) == shard.replicas.end())
            why = " would be one copy too many";
        if (!why) continue;
        if (shard.target != none) begin_target(shard, shard.primary);
        shard.target = none;
        shard.under_way = true;  // taking a wish back begins nothing
        add(shard, wish(*shard.record, std::nullopt), "no target", name + why);
    }
}

/// Who is to leave leaves, once enough others are in sync. A primary hands over first.
void Planner::finish_moves() {
    for (Shard& shard : shards_) {
        if (!step_left()) return;
        if (shard.planned || !shard.led || shard.leaves == none || shard.target != none) continue;
        if (!may_leave(shard, shard.leaves)) continue;
        const Node& leaves = nodes_[shard.leaves];
        const char* reason = leaves.gone ? " is gone" : leaves.draining ? " drains" : " has more than others";
        const std::string why = "node " + short_text(leaves.uuid) + reason;
        if (shard.leaves == shard.primary) {
            if (const size_t to = best_primary(shard, shard.primary); to != none) wish_for(shard, to, why);
            continue;
        }
        auto replicas = shard.record->replicas;
        std::erase(replicas, leaves.uuid);
        add(shard, assign(*shard.record, std::move(replicas)), "no copy on node " + short_text(leaves.uuid),
            why + ", and enough others are in sync");
    }
}

/// Primaries leave nodes that drain, and nodes that are not to hold a copy.
void Planner::relieve_primaries() {
    for (Shard& shard : shards_) {
        if (!step_left()) return;
        if (shard.planned || !shard.led || shard.target != none) continue;
        const Node& primary = nodes_[shard.primary];
        const bool holds =
            std::find(shard.replicas.begin(), shard.replicas.end(), shard.primary) != shard.replicas.end();
        if ((holds && !primary.draining) || (!shard.under_way && !hand_over_left())) continue;
        const size_t to = best_primary(shard, shard.primary);
        if (to == none) continue;
        const std::string name = "node " + short_text(primary.uuid);
        wish_for(shard, to, holds ? name + " drains" : name + " is to hold no copy");
    }
}

/// A shard that takes no writes gets all the copies that it lacks, whatever else is under way: the first of them comes
/// in as soon as it has caught up, while another one would wait for its time of good behaviour before the next begins.
void Planner::rescue() {
    for (Shard& shard : shards_) {
        if (!rescue_left()) return;
        if (!shard.wanting || shard.planned || shard.copying) continue;
        auto replicas = shard.record->replicas;
        std::string names;
        while (usable(shard) < meta_.replicas && shard.replicas.size() < limits::replicas_max) {
            const size_t to = best_holder(shard, false);
            if (to == none) break;
            shard.replicas.push_back(to);
            shard.healthy.push_back(false);
            ++nodes_[to].copies;
            replicas.push_back(nodes_[to].uuid);
            names += (names.empty() ? "" : ", ") + short_text(nodes_[to].uuid);
        }
        if (names.empty()) continue;
        ++rescues_;
        copies_ += !shard.under_way;
        add(shard, assign(*shard.record, std::move(replicas)), "copies to nodes " + names,
            "too few copies to take writes");
    }
}

/// A shard with too few copies that count gets one more. Those whose move is stuck need it too, and begin nothing by
/// it.
void Planner::replace_copies() {
    for (Shard& shard : shards_) {
        if (!step_left()) return;
        if (shard.planned || !shard.led || shard.copying || shard.target != none) continue;
        if (!shard.under_way && !copy_left()) continue;
        if (usable(shard) >= meta_.replicas || shard.replicas.size() >= limits::replicas_max) continue;
        const size_t to = best_holder(shard, false);
        if (to == none) continue;
        std::string why = "too few copies";
        for (const size_t n : shard.replicas) {
            if (nodes_[n].gone) why = "node " + short_text(nodes_[n].uuid) + " is gone";
            if (nodes_[n].draining) why = "node " + short_text(nodes_[n].uuid) + " drains";
        }
        add_copy(shard, to, std::move(why));
    }
}

void Planner::spread_zones() {
    for (Shard& shard : shards_) {
        if (!copy_left()) return;
        if (!settled(shard) || shard.replicas.size() >= limits::replicas_max) continue;
        if (zones_of(shard.replicas) == shard.replicas.size()) continue;
        const size_t to = best_holder(shard, true);
        if (to == none) continue;
        std::string why = "in another zone than the others";
        add_copy(shard, to, std::move(why));
    }
}

std::vector<size_t> Planner::fullest_first(uint64_t Node::*load) const {
    std::vector<size_t> out;
    for (size_t n = 0; n < nodes_.size(); ++n)
        if (nodes_[n].eligible()) out.push_back(n);
    std::stable_sort(out.begin(), out.end(), [&](size_t a, size_t b) {
        return compare_load(nodes_[a].*load, nodes_[a].weight, nodes_[b].*load, nodes_[b].weight) > 0;
    });
    return out;
}

void Planner::even_primaries() {
    while (order_left()) {
        const auto move = next_hand_over();
        if (!move) return;
        const Node &from = nodes_[move->from], &to = nodes_[move->to];
        const std::string why = "node " + short_text(from.uuid) + " leads " + std::to_string(from.primaries) +
                                ", node " + short_text(to.uuid) + " leads " + std::to_string(to.primaries);
        wish_for(shards_[move->shard], move->to, why);
    }
}

/// What was reached from a fuller node in vain is not looked at again: what leads on from there was reached too.
std::optional<Planner::HandOver> Planner::next_hand_over() const {
    const auto by_load = fullest_first(&Node::primaries);
    std::vector<bool> reached(nodes_.size());
    for (const size_t from : by_load) {
        const Node& node = nodes_[from];
        const bool fuller = std::any_of(by_load.begin(), by_load.end(), [&](size_t to) {
            return evens(node.primaries, node.weight, nodes_[to].primaries, nodes_[to].weight);
        });
        if (!fuller || reached[from]) continue;
        if (auto move = last_hand_over_from(from, reached)) return move;
    }
    return std::nullopt;
}

/// The two nodes need share no shard: a chain of hand-overs evens them too. Of the shortest such chain, the last link:
/// after it the chain is shorter by one, so plans one after the other get there.
std::optional<Planner::HandOver> Planner::last_hand_over_from(size_t from, std::vector<bool>& reached) const {
    const Node& fuller = nodes_[from];
    std::vector<size_t> queue{from};
    reached[from] = true;
    for (size_t at = 0; at < queue.size(); ++at)
        for (const size_t s : nodes_[queue[at]].leads) {
            const Shard& shard = shards_[s];
            if (!shard.led || shard.under_way || shard.planned || shard.target != none) continue;
            for (size_t i = 0; i < shard.replicas.size(); ++i) {
                const size_t to = shard.replicas[i];
                if (!shard.healthy[i] || !nodes_[to].eligible() || reached[to]) continue;
                if (evens(fuller.primaries, fuller.weight, nodes_[to].primaries, nodes_[to].weight))
                    return HandOver{s, queue[at], to};
                reached[to] = true;
                queue.push_back(to);
            }
        }
    return std::nullopt;
}

void Planner::even_copies() {
    if (meta_.replicas >= limits::replicas_max) return;
    // Who could give none to anybody cannot after another move either: nobody has become emptier than who gave.
    std::vector<bool> tried(nodes_.size());
    for (bool moved = true; moved && copy_left();) {
        moved = false;
        const auto by_load = fullest_first(&Node::copies);
        for (const size_t from : by_load) {
            if (tried[from]) continue;
            moved = even_copies_of(from, by_load);
            if (moved) break;
            tried[from] = true;
        }
    }
}

/// One copy from `from` to the emptiest node that may take one of it.
bool Planner::even_copies_of(size_t from, const std::vector<size_t>& by_load) {
    for (auto candidate = by_load.rbegin(); candidate != by_load.rend(); ++candidate) {
        const size_t to = *candidate;
        Node &fuller = nodes_[from], &emptier = nodes_[to];
        if (!evens(fuller.copies, fuller.weight, emptier.copies, emptier.weight)) continue;
        // Rather a copy that leads nothing: its shard then changes hands for nobody.
        size_t best = none;
        for (const size_t s : fuller.holds) {
            const Shard& shard = shards_[s];
            if (!settled(shard) || (best != none && shard.primary == from)) continue;
            if (std::find(shard.replicas.begin(), shard.replicas.end(), to) != shard.replicas.end()) continue;
            if (fuller.zone != emptier.zone && zones_of(shard.replicas, from, to) < zones_of(shard.replicas)) continue;
            best = s;
            if (shard.primary != from) break;
        }
        if (best == none) continue;
        const std::string why = "node " + short_text(fuller.uuid) + " has " + std::to_string(fuller.copies) +
                                " copies, node " + short_text(emptier.uuid) + " has " + std::to_string(emptier.copies);
        --fuller.copies;
        add_copy(shards_[best], to, why);
        return true;
    }
    return false;
}

}  // namespace

// --- the interface --------------------------------------------------------------------------------------------------

void PlacementWatch::observe(const ClusterMeta& meta, const ClusterView& view, TimeMs now) {
    now_ = std::max(now_, now);
    std::vector<NodeUuid> live, named;
    for (const auto& node : view.nodes) live.push_back(node.name.node);
    for (const auto& record : view.shards) named.insert(named.end(), record.replicas.begin(), record.replicas.end());
    for (auto* uuids : {&live, &named}) {
        std::sort(uuids->begin(), uuids->end());
        uuids->erase(std::unique(uuids->begin(), uuids->end()), uuids->end());
    }
    std::map<NodeUuid, TimeMs> absent;
    for (const auto& uuid : named) {
        if (std::binary_search(live.begin(), live.end(), uuid)) continue;
        const auto known = absent_since_.find(uuid);
        absent[uuid] = known == absent_since_.end() ? now_ : known->second;
    }
    absent_since_ = std::move(absent);
    for (const auto& uuid : view.draining) std::erase(live, uuid);
    if (view.shards.size() >= meta.shards || live.size() < meta.min_in_sync)
        unborn_since_.reset();
    else if (!unborn_since_)
        unborn_since_ = now_;
}

TimeMs PlacementWatch::absent_ms(const NodeUuid& node) const {
    const auto found = absent_since_.find(node);
    return found == absent_since_.end() ? 0 : now_ - found->second;
}

bool places(const ClusterView& view, const LiveNode& self) {
    const auto key = [](const LiveNode& node) { return std::pair(node.name.node, node.incarnation); };
    const auto smallest = std::min_element(view.nodes.begin(), view.nodes.end(),
                                           [&key](const LiveNode& a, const LiveNode& b) { return key(a) < key(b); });
    return smallest != view.nodes.end() && key(*smallest) == key(self);
}

PlacementPlan plan_placement(const ClusterMeta& meta, const ClusterView& view, const PlacementSelf& self,
                             const PlacementWatch& watch, const PlacementSettings& settings, TimeMs wall) {
    INVARIANT(view.details.size() == view.nodes.size(), "a view has details of each live node");
    Planner planner(meta, view, watch, settings, wall);
    const bool unborn = view.shards.size() < meta.shards;
    if (unborn && self.first_copy)
        planner.plan_first_copy(self);
    else if (!places(view, self.node))
        return {};
    else if (unborn)
        planner.plan_births(watch.unborn_ms());
    else
        planner.plan_steps();
    return planner.take();
}

}  // namespace mainstay
