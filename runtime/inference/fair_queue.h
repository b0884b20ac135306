#pragma once
// Whose turn it is. Sequences that wait are taken by class; within a class by the tenant that was served least; within
// the tenant by the root session that was served least; within the root session by deadline, then by arrival. Service
// is what was charged (virtual token counters, VTC): whoever has ten times the sessions gets no more than whoever has
// one. Who comes back after being idle starts at the least count among the active, so that idleness saves nothing up.
// Two exceptions: a sequence that waited long rises by a class, and one whose deadline is near comes before the other
// root sessions of its tenant (of its own tenant only: a deadline takes nothing from others).
//
// No operation looks at all that wait: counters only grow, so heaps keep old keys and correct them at the top.
// Pure; one owner, the scheduler.

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// Monotonic microseconds of this process.
using TimeUs = uint64_t;

enum class PriorityClass : uint8_t { interactive, normal, batch };
constexpr size_t priority_classes = 3;
const char* to_string(PriorityClass priority);

struct FairQueueConfig {
    uint64_t rise_after_us = 30'000'000;  // waiting this long raises by one class
    uint64_t urgent_us = 1'000'000;       // a deadline nearer than this comes first within its tenant
    size_t idle_max = limits::fair_idle_max;
};

/// One that waits.
struct Claim {
    uint64_t sequence = 0;
    SessionKey root;
    PriorityClass priority = PriorityClass::normal;
    TimeUs deadline = 0;   // 0: none
    uint64_t arrival = 0;  // order among equals; what returns to the queue keeps its number
};

class FairQueue {
  public:
    explicit FairQueue(FairQueueConfig config = {}) : config_(config) {}

    /// Share of a tenant relative to others; more than 0. 1 where nothing was said.
    void set_weight(TenantId tenant, double weight);

    /// A root session has one more (or one less) sequence that waits or runs.
    void enter(const SessionKey& root);
    void leave(const SessionKey& root);
    /// Service in thousandths of a weighted token. Precondition: the root session is active.
    void charge(const SessionKey& root, uint64_t milli_tokens);

    void push(const Claim& claim, TimeUs now);
    /// False: it does not wait.
    bool erase(uint64_t sequence);
    /// The next one, with the class that it has risen to; it stays until erased.
    std::optional<Claim> peek(TimeUs now);

    size_t size() const { return waiting_.size(); }
    bool empty() const { return waiting_.empty(); }
    /// What the tenant was charged, divided by its weight. For comparing tenants and for tests.
    uint64_t served(TenantId tenant) const;
    uint64_t served(const SessionKey& root) const;
    /// Tenants with something that waits.
    size_t tenants_waiting() const { return tenants_waiting_; }

  private:
    static constexpr uint32_t none = UINT32_MAX;
    static constexpr size_t active_heap = priority_classes;  // index of the heap of all active ones

    /// Lowest key first. Keys may be older and lower than they are.
    using Heap = std::vector<std::pair<uint64_t, uint32_t>>;
    struct Order {
        TimeUs deadline;
        uint64_t arrival;
        uint64_t sequence;
        friend auto operator<=>(const Order&, const Order&) = default;
    };
    struct Root {
        SessionKey key;
        uint32_t tenant = none;
        uint64_t served = 0;
        uint32_t active = 0;
        uint64_t idle_since = 0;
        std::array<bool, priority_classes + 1> in_heap{};
        std::array<std::set<Order>, priority_classes> waiting;
    };
    struct Tenant {
        uint64_t served = 0;
        double weight = 1;
        uint32_t active = 0;  // sequences of all its root sessions
        std::array<bool, priority_classes + 1> in_heap{};
        std::array<size_t, priority_classes> waiting{};
        std::array<Heap, priority_classes + 1> roots;
        std::array<std::set<Order>, priority_classes> deadlines;
    };
    struct Waiting {
        Claim claim;
        uint32_t root = none;
        uint8_t in_class = 0;
        TimeUs since = 0;
    };
    struct Aged {
        uint64_t sequence = 0;
        TimeUs since = 0;
    };

    uint32_t tenant_of(TenantId id);
    uint32_t root_of(const SessionKey& key);
    void insert(Waiting& waiting);
    void remove(const Waiting& waiting);
    void rise(TimeUs now);
    uint32_t top_tenant(size_t heap);
    uint32_t top_root(Tenant& tenant, size_t heap);
    void forget_idle();

    FairQueueConfig config_;
    std::unordered_map<TenantId, uint32_t> tenant_index_;
    std::vector<Tenant> tenants_;
    std::unordered_map<SessionKey, uint32_t> root_index_;
    std::vector<Root> roots_;
    std::vector<uint32_t> free_roots_;
    std::deque<std::pair<uint32_t, uint64_t>> idle_;  // root and its idle_since
    uint64_t idle_clock_ = 0;
    std::array<Heap, priority_classes + 1> heaps_;  // of tenants
    std::array<std::deque<Aged>, priority_classes> ages_;
    std::unordered_map<uint64_t, Waiting> waiting_;
    size_t tenants_waiting_ = 0;
};

}  // namespace mainstay
