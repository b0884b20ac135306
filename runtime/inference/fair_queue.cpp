#include "runtime/inference/fair_queue.h"

#include <algorithm>
#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

constexpr size_t rises_per_peek_max = 64;

struct LowestFirst {
    bool operator()(const auto& a, const auto& b) const { return a > b; }
};

void heap_push(auto& heap, uint64_t key, uint32_t index) {
    heap.emplace_back(key, index);
    std::push_heap(heap.begin(), heap.end(), LowestFirst{});
}

/// The lowest one that is wanted; keys that grew since are corrected, what is not wanted any more leaves.
uint32_t heap_top(auto& heap, auto&& key_of, auto&& wanted, auto&& left) {
    while (!heap.empty()) {
        const auto [key, index] = heap.front();
        if (!wanted(index) || key_of(index) != key) {
            std::pop_heap(heap.begin(), heap.end(), LowestFirst{});
            heap.pop_back();
            if (wanted(index)) {
                heap_push(heap, key_of(index), index);
            } else {
                left(index);
            }
            continue;
        }
        return index;
    }
    return UINT32_MAX;
}

}  // namespace

const char* to_string(PriorityClass priority) {
    switch (priority) {
        case PriorityClass::interactive: return "interactive";
        case PriorityClass::normal: return "normal";
        case PriorityClass::batch: return "batch";
    }
    return "?";
}

uint32_t FairQueue::tenant_of(TenantId id) {
    const auto [slot, made] = tenant_index_.try_emplace(id, uint32_t(tenants_.size()));
    if (made) tenants_.emplace_back();
    return slot->second;
}

uint32_t FairQueue::root_of(const SessionKey& key) {
    const auto [slot, made] = root_index_.try_emplace(key, 0);
    if (!made) return slot->second;
    if (free_roots_.empty()) {
        slot->second = uint32_t(roots_.size());
        roots_.emplace_back();
    } else {
        slot->second = free_roots_.back();
        free_roots_.pop_back();
        roots_[slot->second] = Root{};
    }
    Root& root = roots_[slot->second];
    root.key = key;
    root.tenant = tenant_of(key.tenant);
    return slot->second;
}

void FairQueue::set_weight(TenantId tenant, double weight) {
    INVARIANT(weight > 0, "a tenant's share is positive");
    tenants_[tenant_of(tenant)].weight = weight;
}

uint32_t FairQueue::top_tenant(size_t heap) {
    return heap_top(
        heaps_[heap], [&](uint32_t t) { return tenants_[t].served; },
        [&](uint32_t t) { return heap == active_heap ? tenants_[t].active > 0 : tenants_[t].waiting[heap] > 0; },
        [&](uint32_t t) { tenants_[t].in_heap[heap] = false; });
}

uint32_t FairQueue::top_root(Tenant& tenant, size_t heap) {
    return heap_top(
        tenant.roots[heap], [&](uint32_t r) { return roots_[r].served; },
        [&](uint32_t r) { return heap == active_heap ? roots_[r].active > 0 : !roots_[r].waiting[heap].empty(); },
        [&](uint32_t r) { roots_[r].in_heap[heap] = false; });
}

void FairQueue::enter(const SessionKey& key) {
    const uint32_t r = root_of(key);
    Root& root = roots_[r];
    Tenant& tenant = tenants_[root.tenant];
    if (tenant.active == 0) {
        if (const uint32_t least = top_tenant(active_heap); least != none)
            tenant.served = std::max(tenant.served, tenants_[least].served);
    }
    if (root.active == 0) {
        if (const uint32_t least = top_root(tenant, active_heap); least != none)
            root.served = std::max(root.served, roots_[least].served);
    }
    ++tenant.active;
    ++root.active;
    if (!std::exchange(tenant.in_heap[active_heap], true)) heap_push(heaps_[active_heap], tenant.served, root.tenant);
    if (!std::exchange(root.in_heap[active_heap], true)) heap_push(tenant.roots[active_heap], root.served, r);
}

void FairQueue::leave(const SessionKey& key) {
    const uint32_t r = root_of(key);
    Root& root = roots_[r];
    INVARIANT(root.active > 0, "who leaves had entered");
    --tenants_[root.tenant].active;
    if (--root.active > 0) return;
    root.idle_since = ++idle_clock_;
    idle_.emplace_back(r, root.idle_since);
    forget_idle();
}

void FairQueue::forget_idle() {
    // A few at a time: one that a heap still knows is tried again later.
    for (int tries = 0; idle_.size() > config_.idle_max && tries < 4; ++tries) {
        const auto [r, since] = idle_.front();
        idle_.pop_front();
        Root& root = roots_[r];
        if (root.active > 0 || root.idle_since != since) continue;
        if (std::find(root.in_heap.begin(), root.in_heap.end(), true) != root.in_heap.end()) {
            idle_.emplace_back(r, since);
            continue;
        }
        root_index_.erase(root.key);
        root.idle_since = 0;
        free_roots_.push_back(r);
    }
}

void FairQueue::charge(const SessionKey& key, uint64_t milli_tokens) {
    const auto found = root_index_.find(key);
    INVARIANT(found != root_index_.end(), "who is charged is known");
    Root& root = roots_[found->second];
    root.served += milli_tokens;
    Tenant& tenant = tenants_[root.tenant];
    tenant.served += tenant.weight == 1 ? milli_tokens : uint64_t(double(milli_tokens) / tenant.weight);
}

uint64_t FairQueue::served(TenantId tenant) const {
    const auto found = tenant_index_.find(tenant);
    return found == tenant_index_.end() ? 0 : tenants_[found->second].served;
}

uint64_t FairQueue::served(const SessionKey& root) const {
    const auto found = root_index_.find(root);
    return found == root_index_.end() ? 0 : roots_[found->second].served;
}

void FairQueue::insert(Waiting& waiting) {
    Root& root = roots_[waiting.root];
    Tenant& tenant = tenants_[root.tenant];
    const size_t c = waiting.in_class;
    const Claim& claim = waiting.claim;
    const Order order{claim.deadline ? claim.deadline : UINT64_MAX, claim.arrival, claim.sequence};
    root.waiting[c].insert(order);
    if (claim.deadline) tenant.deadlines[c].insert(order);
    bool waited = false;
    for (const size_t count : tenant.waiting) waited |= count > 0;
    tenants_waiting_ += !waited;
    ++tenant.waiting[c];
    if (!std::exchange(tenant.in_heap[c], true)) heap_push(heaps_[c], tenant.served, root.tenant);
    if (!std::exchange(root.in_heap[c], true)) heap_push(tenant.roots[c], root.served, waiting.root);
    if (c > 0) ages_[c].push_back({claim.sequence, waiting.since});
}

void FairQueue::remove(const Waiting& waiting) {
    Root& root = roots_[waiting.root];
    Tenant& tenant = tenants_[root.tenant];
    const size_t c = waiting.in_class;
    const Claim& claim = waiting.claim;
    const Order order{claim.deadline ? claim.deadline : UINT64_MAX, claim.arrival, claim.sequence};
    root.waiting[c].erase(order);
    if (claim.deadline) tenant.deadlines[c].erase(order);
    --tenant.waiting[c];
    bool waits = false;
    for (const size_t count : tenant.waiting) waits |= count > 0;
    tenants_waiting_ -= !waits;
}

void FairQueue::push(const Claim& claim, TimeUs now) {
    const auto found = root_index_.find(claim.root);
    INVARIANT(found != root_index_.end() && roots_[found->second].active > 0, "who waits has entered");
    const auto [slot, made] = waiting_.try_emplace(claim.sequence);
    INVARIANT(made, "a sequence waits once");
    slot->second = {claim, found->second, uint8_t(claim.priority), now};
    insert(slot->second);
}

bool FairQueue::erase(uint64_t sequence) {
    const auto found = waiting_.find(sequence);
    if (found == waiting_.end()) return false;
    remove(found->second);
    waiting_.erase(found);
    // What ages_ still names is passed over when it comes to the front, or here where nothing waits any more.
    if (waiting_.empty())
        for (auto& ages : ages_) ages.clear();
    return true;
}

void FairQueue::rise(TimeUs now) {
    for (size_t c = 1; c < priority_classes; ++c) {
        auto& ages = ages_[c];
        for (size_t n = 0; n < rises_per_peek_max && !ages.empty(); ++n) {
            const Aged oldest = ages.front();
            const auto found = waiting_.find(oldest.sequence);
            const bool stands =
                found != waiting_.end() && found->second.in_class == c && found->second.since == oldest.since;
            if (stands && now < oldest.since + config_.rise_after_us) break;
            ages.pop_front();
            if (!stands) continue;
            remove(found->second);
            --found->second.in_class;
            found->second.since = now;
            insert(found->second);
        }
    }
}

std::optional<Claim> FairQueue::peek(TimeUs now) {
    if (waiting_.empty()) return std::nullopt;
    rise(now);
    for (size_t c = 0; c < priority_classes; ++c) {
        const uint32_t t = top_tenant(c);
        if (t == none) continue;
        Tenant& tenant = tenants_[t];
        uint64_t sequence;
        if (!tenant.deadlines[c].empty() && tenant.deadlines[c].begin()->deadline <= now + config_.urgent_us) {
            sequence = tenant.deadlines[c].begin()->sequence;
        } else {
            sequence = roots_[top_root(tenant, c)].waiting[c].begin()->sequence;
        }
        const Waiting& next = waiting_.at(sequence);
        Claim claim = next.claim;
        claim.priority = PriorityClass(next.in_class);
        return claim;
    }
    return std::nullopt;
}

}  // namespace mainstay
