// Where shards are put: rules by hand, then random histories of nodes that join, leave, drain and die, with members
// that do to a record what real ones do.

#include "cluster/placement.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>

#include "runtime/base/random.h"

namespace mainstay {
namespace {

NodeUuid uuid_of(uint16_t number) {
    NodeUuid uuid{};
    uuid[0] = static_cast<uint8_t>(number >> 8);
    uuid[1] = static_cast<uint8_t>(number);
    uuid[9] = 7;
    return uuid;
}

struct Machine {
    ReplicaName name;
    uint64_t incarnation = 0;
    NodeDetails details;
    bool live = true, draining = false;
    TimeMs died = 0;
};

/// A cluster in which every record is what its members would make of it, without logs: a round is a while in which
/// whoever is assigned catches up.
class World {
  public:
    World(uint16_t shards, uint32_t replicas, uint32_t min_in_sync = 2) {
        meta.shards = shards;
        meta.replicas = replicas;
        meta.min_in_sync = min_in_sync;
    }
    Machine& join(const std::string& zone = {}, uint64_t capacity = 1) {
        Machine machine;
        machine.name.node = uuid_of(static_cast<uint16_t>(machines.size() + 1));
        machine.name.disk[0] = 1;
        machine.incarnation = ++incarnations;
        machine.details.zone = zone;
        machine.details.capacity = capacity;
        machines.push_back(machine);
        return machines.back();
    }
    void die(Machine& machine) {
        machine.live = false;
        machine.died = now;
    }
    void come_back(Machine& machine, bool new_disk) {
        machine.live = true;
        machine.incarnation = ++incarnations;
        if (new_disk) ++machine.name.disk[0];
    }
    Machine& at(const NodeUuid& uuid) {
        return *std::find_if(machines.begin(), machines.end(),
                             [&uuid](const Machine& one) { return one.name.node == uuid; });
    }
    ClusterView view() const {
        ClusterView out;
        out.shards = records;
        for (const auto& machine : machines) {
            if (machine.draining) out.draining.push_back(machine.name.node);
            if (!machine.live) continue;
            out.nodes.push_back({machine.name, machine.incarnation});
            out.details.push_back(machine.details);
        }
        return out;
    }
    const Machine* leader() const {
        for (const auto& machine : machines)
            if (machine.live) return &machine;
        return nullptr;
    }
    PlacementPlan plan() {
        const Machine* machine = leader();
        const ClusterView seen = view();
        watch.observe(meta, seen, now);
        if (!machine) return {};
        return plan_placement(meta, seen, {{machine->name, machine->incarnation}, std::nullopt}, watch, settings, 1);
    }
    bool carry_out(const ShardChange& change) {
        if (change.expected_version == 0) {
            ShardRecord record = change.desired;
            record.config_version = ++versions;
            records.push_back(record);
            return true;
        }
        ShardRecord& before = records[change.desired.shard.value];
        if (before.config_version != change.expected_version) return false;
        ShardRecord after = change.desired;
        after.config_version = ++versions;
        const char* broken = broken_rule(before, after);
        REQUIRE_MESSAGE(broken == nullptr, broken);
        before = after;
        return true;
    }
    /// Every member does what it may. Who is assigned and live catches up with `percent`.
    void members_act(SeededRandom* random, uint64_t percent) {
        for (auto& record : records) {
            const auto live = [this](const ReplicaName& name) {
                const Machine& machine = at(name.node);
                return machine.live && machine.name == name;
            };
            const Machine& primary = at(record.primary.node);
            if (!live(record.primary) || primary.incarnation != record.incarnation) {
                for (const auto& name : record.in_sync) {
                    if (!live(name)) continue;
                    carry_out(take_over(record, {name, at(name.node).incarnation}));
                    break;
                }
                continue;
            }
            std::vector<ReplicaName> keep;
            for (const auto& name : record.in_sync)
                if (live(name)) keep.push_back(name);
            const auto assigned = [&record](const NodeUuid& node) {
                return std::find(record.replicas.begin(), record.replicas.end(), node) != record.replicas.end() ||
                       record.target == node;
            };
            std::vector<LiveNode> incoming;
            for (const auto& machine : machines)
                if (machine.live && assigned(machine.name.node) && !contains(keep, machine.name) &&
                    (!random || random->below(100) < percent)) {
                    keep.push_back(machine.name);
                    incoming.push_back({machine.name, machine.incarnation});
                }
            for (size_t i = 0; i < keep.size();)
                if (keep.size() > record.min_in_sync && keep[i] != record.primary && !assigned(keep[i].node))
                    keep.erase(keep.begin() + static_cast<ptrdiff_t>(i));
                else
                    ++i;
            const bool may = keep.size() >= record.min_in_sync && keep.size() <= limits::replicas_max;
            if (may && keep != record.in_sync) carry_out(resize(record, keep, incoming));
            if (record.target && *record.target != record.primary.node)
                for (const auto& name : record.in_sync)
                    if (name.node == *record.target && live(name)) {
                        carry_out(hand_over(record, {name, at(name.node).incarnation}));
                        break;
                    }
        }
    }
    /// Plan, carry out, let the members act; the rules of every plan are checked.
    PlacementPlan round(SeededRandom* random = nullptr, uint64_t percent = 100) {
        now += 2000;
        auto planned = plan();
        check_plan(planned);
        for (const auto& step : planned.births) carry_out(step.change);
        std::sort(records.begin(), records.end(),
                  [](const ShardRecord& a, const ShardRecord& b) { return a.shard < b.shard; });
        for (const auto& step : planned.steps) CHECK(carry_out(step.change));
        members_act(random, percent);
        return planned;
    }
    /// Rounds until there is nothing to do; how many.
    size_t settle(size_t rounds_max) {
        for (size_t round_number = 1; round_number <= rounds_max; ++round_number) {
            const uint64_t before = versions;
            const auto planned = round();
            if (versions == before && planned.under_way == 0) return round_number;
        }
        return 0;
    }

    void check_plan(const PlacementPlan& planned) {
        REQUIRE(planned.steps.size() <= settings.moves_max + settings.hand_overs_max);
        std::set<uint16_t> shards;
        size_t begun = 0, handed = 0;
        for (const auto& step : planned.steps) {
            CAPTURE(step.decision.what);
            CAPTURE(step.decision.why);
            CHECK_FALSE(step.decision.what.empty());
            CHECK_FALSE(step.decision.why.empty());
            CHECK(step.decision.at == 1);
            REQUIRE(shards.insert(step.change.desired.shard.value).second);
            const ShardRecord& before = records[step.change.desired.shard.value];
            const ShardRecord& after = step.change.desired;
            // Neither who leads, nor who is in sync, nor the epoch: those are for the members.
            CHECK(after.primary == before.primary);
            CHECK(after.in_sync == before.in_sync);
            CHECK(after.epoch == before.epoch);
            const auto in_sync_of = [this](const ShardRecord& record) {
                size_t count = 0;
                for (const auto& uuid : record.replicas) {
                    const Machine& machine = at(uuid);
                    count += machine.live && contains(record.in_sync, machine.name);
                }
                return count;
            };
            if (after.replicas.size() < before.replicas.size()) {
                CHECK(before.replicas.size() - after.replicas.size() == 1);
                CHECK(in_sync_of(after) >= meta.replicas);
                CHECK(std::find(after.replicas.begin(), after.replicas.end(), before.primary.node) !=
                      after.replicas.end());
            }
            for (const auto& uuid : after.replicas)
                if (std::find(before.replicas.begin(), before.replicas.end(), uuid) == before.replicas.end()) {
                    CHECK(at(uuid).live);
                    CHECK_FALSE(at(uuid).draining);
                    CHECK(after.replicas.size() <= limits::replicas_max);
                }
            if (after.target != before.target && after.target) {
                CHECK(at(*after.target).live);
                CHECK_FALSE(at(*after.target).draining);
                CHECK(contains(before.in_sync, at(*after.target).name));
            }
            // Something is wanted of it that was not before.
            const bool was_moving = (before.target && before.target != before.primary.node) ||
                                    before.replicas.size() > meta.replicas ||
                                    in_sync_of(before) != before.replicas.size();
            const bool wants = after.replicas.size() > before.replicas.size() || (after.target && !before.target);
            const bool rescue = before.in_sync.size() < before.min_in_sync;  // out of service: bounded by rescues_max
            const bool copies = after.replicas.size() > before.replicas.size();
            begun += wants && copies && !was_moving && !rescue;
            handed += wants && !copies && !was_moving;
        }
        size_t handing = 0;  // all that is left of their move is a hand-over to a copy in sync
        for (const auto& record : records) {
            const Machine& primary = at(record.primary.node);
            const auto is_in_sync = [&](const NodeUuid& node) {
                return at(node).live && contains(record.in_sync, at(node).name);
            };
            const auto holds = [&record](const NodeUuid& node) {
                return std::find(record.replicas.begin(), record.replicas.end(), node) != record.replicas.end();
            };
            bool only = primary.live && primary.incarnation == record.incarnation && record.target &&
                        *record.target != record.primary.node && holds(*record.target) && is_in_sync(*record.target) &&
                        record.replicas.size() <= meta.replicas;
            for (const auto& node : record.replicas)
                only = only && (is_in_sync(node) || !at(node).live || at(node).draining);
            for (const auto& name : record.in_sync) only = only && (holds(name.node) || !at(name.node).live);
            handing += only;
        }
        CHECK((begun == 0 || planned.under_way - handing + begun <= settings.moves_max));
        CHECK((handed == 0 || handing + handed <= settings.hand_overs_max));
    }

    struct Load {
        uint64_t copies = 0, primaries = 0;
    };
    Load load(const Machine& machine) const {
        Load out;
        for (const auto& record : records) {
            out.copies +=
                static_cast<uint64_t>(std::count(record.replicas.begin(), record.replicas.end(), machine.name.node));
            out.primaries += record.primary.node == machine.name.node;
        }
        return out;
    }
    size_t zones_of(const std::vector<NodeUuid>& nodes) {
        std::set<std::string> zones;
        for (const auto& uuid : nodes) {
            const auto& zone = at(uuid).details.zone;
            zones.insert(zone.empty() ? to_text(uuid) : zone);
        }
        return zones.size();
    }
    /// What a cluster at rest must look like, found by trying every move there is.
    void check_rest() {
        std::vector<Machine*> able;
        std::set<std::string> zones;
        for (auto& machine : machines)
            if (machine.live && !machine.draining) {
                able.push_back(&machine);
                zones.insert(machine.details.zone.empty() ? to_text(machine.name.node) : machine.details.zone);
            }
        const bool all = able.size() >= meta.replicas;
        bool zoned = false, weighed = false;
        for (const auto* machine : able) {
            zoned = zoned || !machine->details.zone.empty();
            weighed = weighed || machine->details.capacity != able[0]->details.capacity;
        }
        for (const auto& record : records) {
            CHECK_FALSE(record.target.has_value());
            if (!all) continue;
            CHECK(record.replicas.size() == meta.replicas);
            CHECK(record.in_sync.size() == meta.replicas);
            CHECK_FALSE(at(record.primary.node).draining);
            for (const auto& uuid : record.replicas) {
                CHECK(at(uuid).live);
                CHECK_FALSE(at(uuid).draining);
                CHECK(contains(record.in_sync, at(uuid).name));
            }
            CHECK(zones_of(record.replicas) == std::min<size_t>(meta.replicas, zones.size()));
        }
        if (!all) return;
        uint64_t copies_min = UINT64_MAX, copies_max = 0, primaries_min = UINT64_MAX, primaries_max = 0;
        std::vector<Load> loads;
        for (const auto* machine : able) {
            loads.push_back(load(*machine));
            copies_min = std::min(copies_min, loads.back().copies);
            copies_max = std::max(copies_max, loads.back().copies);
            primaries_min = std::min(primaries_min, loads.back().primaries);
            primaries_max = std::max(primaries_max, loads.back().primaries);
        }
        if (!zoned && !weighed) {
            CHECK(copies_max - copies_min <= 1);
            CHECK(primaries_max - primaries_min <= 1);
        }
        size_t improving = 0;
        for (size_t a = 0; a < able.size(); ++a)
            for (size_t b = 0; b < able.size(); ++b) {
                const uint64_t x = able[a]->details.capacity, y = able[b]->details.capacity;
                const bool copies = loads[a].copies * y > (loads[b].copies + 1) * x;
                const bool primaries = loads[a].primaries * y > (loads[b].primaries + 1) * x;
                if (!copies && !primaries) continue;
                for (const auto& record : records) {
                    auto moved = record.replicas;
                    const auto from = std::find(moved.begin(), moved.end(), able[a]->name.node);
                    if (from == moved.end()) continue;
                    const bool there = std::find(moved.begin(), moved.end(), able[b]->name.node) != moved.end();
                    improving += primaries && there && record.primary == able[a]->name;
                    if (there) continue;
                    *from = able[b]->name.node;
                    improving += copies && zones_of(moved) >= zones_of(record.replicas);
                }
            }
        CHECK(improving == 0);
    }

    ClusterMeta meta;
    PlacementSettings settings;
    PlacementWatch watch;
    std::vector<ShardRecord> records;
    std::vector<Machine> machines;
    TimeMs now = 1000;
    uint64_t incarnations = 0, versions = 0;
};

World settled_world(size_t nodes, uint16_t shards, uint32_t replicas = 3) {
    World world(shards, replicas);
    for (size_t i = 0; i < nodes; ++i) world.join();
    REQUIRE(world.settle(5000) > 0);
    world.check_rest();
    return world;
}

}  // namespace

TEST_CASE("placement: the smallest live node does it, and of two lives of a node the smaller") {
    ClusterView view;
    const LiveNode one{{uuid_of(1), {}}, 5}, again{{uuid_of(1), {}}, 9}, two{{uuid_of(2), {}}, 1};
    view.nodes = {two, again, one};
    CHECK(places(view, one));
    CHECK_FALSE(places(view, again));
    CHECK_FALSE(places(view, two));
    CHECK_FALSE(places({}, one));
    World world(8, 3);
    for (int i = 0; i < 3; ++i) world.join();
    world.watch.observe(world.meta, world.view(), 0);
    const auto& second = world.machines[1];
    CHECK(plan_placement(world.meta, world.view(), {{second.name, second.incarnation}, {}}, world.watch, {}, 1)
              .births.empty());
    CHECK(world.plan().births.size() == 8);
}

TEST_CASE("placement: shards are born on as many nodes as they want copies, evenly, and not before") {
    World world(64, 3);
    world.join();
    CHECK(world.plan().births.empty());
    world.join();
    CHECK(world.plan().births.empty());
    for (int i = 0; i < 7; ++i) world.join();
    const auto planned = world.round();
    REQUIRE(planned.births.size() == 64);
    for (size_t s = 0; s < 64; ++s) {
        const ShardRecord& record = world.records[s];
        CHECK(record.shard.value == s);
        CHECK(record.epoch == Epoch(1));
        CHECK(record.in_sync.size() == 3);
        CHECK(record.min_in_sync == 2);
        CHECK(contains(record.in_sync, record.primary));
    }
    world.check_rest();
    CHECK(world.plan().steps.empty());
    // Not the same three nodes over and over: who shares a shard with the first.
    std::set<NodeUuid> others;
    for (const auto& record : world.records)
        if (std::find(record.replicas.begin(), record.replicas.end(), uuid_of(1)) != record.replicas.end())
            others.insert(record.replicas.begin(), record.replicas.end());
    CHECK(others.size() >= 7);
}

TEST_CASE("placement: with too few nodes for a while, shards are born on those that are there, and grow later") {
    World world(16, 3);
    world.join();
    for (int i = 0; i < 60; ++i) CHECK(world.round().births.empty());  // one is fewer than min_in_sync
    world.join();
    for (TimeMs begun = world.now; world.now - begun < placement_birth_wait_ms - 2000;)
        CHECK(world.round().births.empty());
    size_t births = 0;
    for (int i = 0; i < 3 && births == 0; ++i) births = world.round().births.size();
    CHECK(births == 16);
    for (const auto& record : world.records) CHECK(record.in_sync.size() == 2);
    CHECK(world.settle(100) > 0);
    world.join();
    CHECK(world.settle(1000) > 0);
    world.check_rest();
    for (const auto& record : world.records) CHECK(record.in_sync.size() == 3);
}

TEST_CASE("placement: births that were cut short go on, and count what is there") {
    World world(32, 3);
    for (int i = 0; i < 6; ++i) world.join();
    auto planned = world.plan();
    for (size_t i = 0; i < 10; ++i) world.carry_out(planned.births[i].change);
    planned = world.plan();
    CHECK(planned.births.size() == 22);
    CHECK(planned.steps.empty());
    world.round();
    CHECK(world.records.size() == 32);
    CHECK(world.settle(1000) > 0);
    world.check_rest();
}

TEST_CASE("placement: what was adopted is led by the node that has it, alone, in the epoch after") {
    World world(8, 3);
    for (int i = 0; i < 3; ++i) world.join();
    const auto view = world.view();
    world.watch.observe(world.meta, view, 0);
    const auto& third = world.machines[2];  // not the one that places
    const auto planned =
        plan_placement(world.meta, view, {{third.name, third.incarnation}, Epoch(41)}, world.watch, world.settings, 1);
    REQUIRE(planned.births.size() == 8);
    for (const auto& step : planned.births) {
        CHECK(step.change.expected_version == 0);
        CHECK(step.change.desired.epoch == Epoch(42));
        CHECK(step.change.desired.in_sync == std::vector<ReplicaName>{third.name});
        CHECK(step.change.desired.min_in_sync == 2);
        world.carry_out(step.change);
    }
    CHECK(world.settle(1000) > 0);
    world.check_rest();
    const auto after = plan_placement(world.meta, world.view(), {{third.name, third.incarnation}, Epoch(41)},
                                      world.watch, world.settings, 1);
    CHECK(after.births.empty());
}

TEST_CASE("placement: a shard that takes no writes gets all copies that it lacks at once, beside other moves") {
    World world(64, 3);
    world.join();
    const auto& first = world.machines[0];
    world.watch.observe(world.meta, world.view(), 0);
    const auto planned = plan_placement(world.meta, world.view(), {{first.name, first.incarnation}, Epoch(41)},
                                        world.watch, world.settings, 1);
    for (const auto& step : planned.births) world.carry_out(step.change);
    world.join();
    world.join();
    // Nobody catches up: a bounded number is under way, each with both copies that it lacks.
    SeededRandom random(7);
    for (int i = 0; i < 20; ++i) world.round(&random, 0);
    const auto whole = [&] {
        return std::count_if(world.records.begin(), world.records.end(),
                             [](const ShardRecord& record) { return record.replicas.size() == 3; });
    };
    CHECK(whole() == static_cast<ptrdiff_t>(world.settings.rescues_max));
    // The second copy alone is in sync, the third waits: writes are taken, and that holds no other shard up.
    for (int i = 0; i < 20; ++i) {
        world.round(&random, 0);
        for (auto& record : world.records) {
            if (record.replicas.size() < 3 || record.in_sync.size() > 1) continue;
            const Machine& second = world.machines[1];
            world.carry_out(
                resize(record, {record.in_sync[0], second.name}, {LiveNode{second.name, second.incarnation}}));
        }
    }
    CHECK(whole() == 64);
    CHECK(world.settle(1000) > 0);
    world.check_rest();
}

TEST_CASE("placement: zones come first, then capacity") {
    World world(48, 3);
    for (const auto* zone : {"a", "a", "a", "b", "b", "c"}) world.join(zone);
    CHECK(world.settle(2000) > 0);
    world.check_rest();
    CHECK(world.load(world.machines[5]).copies == 48);  // alone in its zone
    CHECK(world.load(world.machines[0]).copies == 16);
    World weighed(60, 1, 1);
    weighed.join({}, 1);
    weighed.join({}, 2);
    weighed.join({}, 3);
    CHECK(weighed.settle(2000) > 0);
    weighed.check_rest();
    CHECK(weighed.load(weighed.machines[0]).primaries == 10);
    CHECK(weighed.load(weighed.machines[1]).primaries == 20);
    CHECK(weighed.load(weighed.machines[2]).primaries == 30);
    // A zone that comes later is used for every shard that lacked it.
    World later(24, 3);
    for (const auto* zone : {"a", "a", "b", "b"}) later.join(zone);
    CHECK(later.settle(2000) > 0);
    later.check_rest();
    later.join("c");
    CHECK(later.settle(2000) > 0);
    later.check_rest();
    CHECK(later.load(later.machines[4]).copies == 24);
}

TEST_CASE(
    "placement: a node that is gone for long is replaced; one that is away for a moment, or has a new disk, is not") {
    World world = settled_world(5, 20);
    const auto before = world.records;
    Machine& lost = world.machines[4];
    world.die(lost);
    for (TimeMs begun = world.now; world.now - begun < placement_gone_ms - 4000;) {
        const auto planned = world.round();
        for (const auto& step : planned.steps) CHECK(step.change.desired.replicas.size() == 3);
    }
    for (size_t s = 0; s < 20; ++s) CHECK(world.records[s].replicas == before[s].replicas);
    world.come_back(lost, true);  // the same node with an empty disk: its members come in by themselves
    CHECK(world.settle(100) > 0);
    world.check_rest();
    for (size_t s = 0; s < 20; ++s) CHECK(world.records[s].replicas == before[s].replicas);
    world.die(lost);
    world.now += placement_gone_ms;  // nobody planned meanwhile: that is no observation
    world.round();
    for (size_t s = 0; s < 20; ++s) CHECK(world.records[s].replicas == before[s].replicas);
    world.now += placement_gone_ms;
    CHECK(world.settle(1000) > 0);
    world.check_rest();
    CHECK(world.load(lost).copies == 0);
}

TEST_CASE("placement: a node that drains gives up its primaries first, then its copies, and takes part again after") {
    World world = settled_world(6, 90);
    Machine& node = world.machines[2];
    node.draining = true;
    // Copies take their time, here for ever: what only changes hands does not wait for them.
    SeededRandom random(1);
    REQUIRE(world.load(node).primaries == 15);
    world.settings.hand_overs_max = 4;
    for (int i = 0; i < 4; ++i) world.round(&random, 0);
    CHECK(world.load(node).primaries == 0);
    CHECK(world.load(node).copies == 45);
    for (int i = 0; i < 200; ++i) world.round();
    CHECK(world.load(node).copies == 0);
    world.check_rest();
    node.draining = false;
    CHECK(world.settle(1000) > 0);
    world.check_rest();
    CHECK(world.load(node).copies == 45);
    // Where no other node can take a copy, it stays: only the primaries go.
    World small = settled_world(3, 12);
    small.machines[0].draining = true;
    for (int i = 0; i < 50; ++i) small.round();
    CHECK(small.load(small.machines[0]).primaries == 0);
    CHECK(small.load(small.machines[0]).copies == 12);
    CHECK(small.plan().steps.empty());
}

TEST_CASE("placement: for order alone few shards change hands at a time, for a drain more") {
    World world(48, 3);
    for (int i = 0; i < 3; ++i) world.join();
    CHECK(world.settle(1000) > 0);
    Machine& full = world.machines[0];
    for (auto& record : world.records) {
        record.primary = full.name;
        record.incarnation = full.incarnation;
        record.config_version = ++world.versions;
    }
    const auto hand_overs = [&] {
        const auto plan = world.plan();
        return std::count_if(plan.steps.begin(), plan.steps.end(),
                             [](const PlacementStep& step) { return step.change.desired.target.has_value(); });
    };
    CHECK(hand_overs() == static_cast<ptrdiff_t>(world.settings.moves_max));
    full.draining = true;
    CHECK(hand_overs() == static_cast<ptrdiff_t>(world.settings.hand_overs_max));
    full.draining = false;
    CHECK(world.settle(1000) > 0);
    world.check_rest();
}

TEST_CASE("placement: a target is taken back when it is reached, gone, draining, or one copy too many") {
    World world = settled_world(8, 8);
    ShardRecord& record = world.records[3];
    const auto changed = [&](std::optional<NodeUuid> target) {
        world.carry_out(wish(record, target));
        const auto planned = world.plan();
        world.check_plan(planned);
        for (const auto& step : planned.steps)
            if (step.change.desired.shard == record.shard) {
                CHECK_FALSE(step.change.desired.target.has_value());
                return step.decision.why;
            }
        return std::string();
    };
    Machine* outside = nullptr;
    for (auto& machine : world.machines)
        if (std::find(record.replicas.begin(), record.replicas.end(), machine.name.node) == record.replicas.end())
            outside = &machine;
    CHECK(changed(record.primary.node).find("leads it") != std::string::npos);
    CHECK(changed(outside->name.node).empty());
    outside->draining = true;
    CHECK(changed(outside->name.node).find("drains") != std::string::npos);
    outside->draining = false;
    world.die(*outside);
    CHECK(changed(outside->name.node).find("no lease") != std::string::npos);
    CHECK(changed(uuid_of(999)).find("no lease") != std::string::npos);
    world.come_back(*outside, false);
    record.replicas.clear();
    for (const auto& machine : world.machines)
        if (&machine != outside) record.replicas.push_back(machine.name.node);
    REQUIRE(record.replicas.size() == limits::replicas_max);
    CHECK(changed(outside->name.node).find("too many") != std::string::npos);
}

TEST_CASE("placement: the operator's move to any node is carried through, and the copy too many goes") {
    World world = settled_world(6, 6);
    ShardRecord& record = world.records[0];
    NodeUuid to{};
    for (const auto& machine : world.machines)
        if (std::find(record.replicas.begin(), record.replicas.end(), machine.name.node) == record.replicas.end())
            to = machine.name.node;
    world.carry_out(wish(record, to));
    world.members_act(nullptr, 100);
    CHECK(record.primary.node == to);
    CHECK(record.replicas.size() == 4);
    CHECK(world.settle(200) > 0);
    world.check_rest();
}

TEST_CASE("placement: a primary that is to hold no copy any more hands over") {
    World world = settled_world(4, 4);
    ShardRecord& record = world.records[1];
    std::erase(record.replicas, record.primary.node);
    const auto planned = world.round();
    REQUIRE_FALSE(planned.steps.empty());
    CHECK(planned.steps[0].change.desired.target.has_value());
    CHECK(planned.steps[0].decision.why.find("no copy") != std::string::npos);
    CHECK(world.settle(200) > 0);
    world.check_rest();
}

TEST_CASE("placement: shards that nobody can lead hold up nothing else") {
    World world = settled_world(8, 40);
    // All three copies of some shards are lost; another node drains.
    for (size_t n : {0, 1, 2}) world.die(world.machines[n]);
    world.now += 1;
    world.round();
    world.now += placement_gone_ms + 1;
    world.machines[3].draining = true;
    for (int i = 0; i < 400; ++i) world.round();
    size_t lost = 0;
    for (const auto& record : world.records) {
        const bool led = world.at(record.primary.node).live;
        lost += !led;
        if (!led) continue;
        CHECK(record.replicas.size() == 3);
        CHECK(record.primary.node != world.machines[3].name.node);
        for (const auto& uuid : record.replicas) CHECK(world.at(uuid).live);
    }
    CHECK(lost < 8);
}

TEST_CASE("placement: with as many copies as there may be, none moves, and primaries do") {
    World world(16, limits::replicas_max, 2);
    for (size_t i = 0; i < limits::replicas_max; ++i) world.join();
    CHECK(world.settle(100) > 0);
    world.check_rest();
    world.join();
    CHECK(world.settle(100) > 0);
    CHECK(world.load(world.machines.back()).copies == 0);
    world.machines[0].draining = true;
    for (int i = 0; i < 50; ++i) world.round();
    CHECK(world.load(world.machines[0]).primaries == 0);
}

TEST_CASE("placement: one node more among hundreds moves no more than its share, a few at a time") {
    World world = settled_world(60, 512);
    const auto before = world.records;
    world.join();
    size_t added = 0;
    for (int i = 0; i < 2000; ++i) {
        const auto planned = world.round();
        for (const auto& step : planned.steps) added += step.change.desired.replicas.size() > 3;
        if (planned.steps.empty() && planned.under_way == 0) break;
    }
    world.check_rest();
    CHECK(added >= 512 * 3 / 61);
    CHECK(added <= 512 * 3 / 61 + 1);
}

TEST_CASE("placement: any history of nodes that join, leave, drain, die and come back ends in order") {
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        CAPTURE(seed);
        SeededRandom random(seed);
        const uint32_t replicas = 1 + static_cast<uint32_t>(random.below(4));
        World world(static_cast<uint16_t>(8 + random.below(56)), replicas,
                    1 + static_cast<uint32_t>(random.below(replicas)));
        const size_t zones = random.below(5);  // 0: none
        const bool weighed = random.below(3) == 0;
        const auto join = [&] {
            world.join(zones == 0 ? std::string() : std::string(1, static_cast<char>('a' + random.below(zones))),
                       weighed ? 1 + random.below(3) : 1);
        };
        for (uint64_t i = replicas + random.below(12); i > 0; --i) join();
        for (int i = 0; i < 40; ++i) world.round(&random, 30);
        for (int event = 0; event < 25; ++event) {
            Machine& one = world.machines[random.below(world.machines.size())];
            size_t dead = 0;
            for (const auto& machine : world.machines) dead += !machine.live;
            switch (random.below(6)) {
                case 0:
                    if (world.machines.size() < 200) join();
                    break;
                case 1: one.draining = !one.draining; break;
                case 2:  // one at a time: that copies are left to go on with is the shards' affair
                    if (one.live && dead == 0) world.die(one);
                    break;
                case 3:
                    if (!one.live) world.come_back(one, world.meta.replicas > 1 && random.below(3) == 0);
                    break;
                case 4:
                    if (!world.records.empty())
                        world.carry_out(wish(world.records[random.below(world.records.size())], one.name.node));
                    break;
                case 5: world.now += random.below(2) * placement_gone_ms; break;
            }
            for (uint64_t i = random.below(12); i > 0; --i) world.round(&random, 30);
        }
        // From here on nobody fails, and whoever drains is there, so that a shard can go elsewhere.
        for (auto& machine : world.machines) {
            if (!machine.live) world.come_back(machine, false);
            if (random.below(2) == 0) machine.draining = false;
        }
        size_t able = 0;
        for (const auto& machine : world.machines) able += !machine.draining;
        if (able < replicas)
            for (auto& machine : world.machines) machine.draining = false;
        CHECK(world.settle(20'000) > 0);
        world.check_rest();
    }
}

TEST_CASE("placement: hundreds of nodes are evened out") {
    World world(1024, 3);
    for (size_t i = 0; i < 200; ++i) world.join(std::string(1, static_cast<char>('a' + i % 4)));
    CHECK(world.settle(3000) > 0);
    world.check_rest();
    for (size_t i = 0; i < 10; ++i) world.machines[i * 7].draining = true;
    for (size_t i = 0; i < 5; ++i) world.join(std::string(1, static_cast<char>('a' + i % 4)));
    world.die(world.machines[3]);
    world.round();
    world.now += placement_gone_ms;
    CHECK(world.settle(3000) > 0);
    world.check_rest();
}

TEST_CASE("placement: what a plan costs") {
    const struct {
        size_t nodes;
        uint16_t shards;
    } sizes[] = {{100, 1024}, {128, 4096}};
    for (const auto& [nodes, shards] : sizes) {
        World world(shards, 3);
        for (size_t i = 0; i < nodes; ++i) world.join(std::string(1, static_cast<char>('a' + i % 3)));
        const auto timed = [&world](const char* what) {
            std::vector<double> took;
            size_t steps = 0;
            for (int i = 0; i < 21; ++i) {
                const ClusterView view = world.view();
                const Machine& machine = *world.leader();
                const auto begun = std::chrono::steady_clock::now();
                world.watch.observe(world.meta, view, world.now);
                const auto planned = plan_placement(world.meta, view, {{machine.name, machine.incarnation}, {}},
                                                    world.watch, world.settings, 1);
                took.push_back(
                    std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun).count());
                steps = planned.steps.size() + planned.births.size();
            }
            std::sort(took.begin(), took.end());
            std::printf("placement, %zu nodes, %u shards, %s: %zu changes, %.2f ms (median of 21)\n",
                        world.machines.size(), unsigned{world.meta.shards}, what, steps, took[10]);
            return steps;
        };
        CHECK(timed("births") == shards);
        CHECK(world.settle(200) > 0);
        CHECK(timed("at rest") == 0);
        world.join("a");
        CHECK(timed("one node more") > 0);
        world.machines.back().live = false;
        world.machines[5].draining = true;
        CHECK(timed("one drains") > 0);
    }
}

}  // namespace mainstay
