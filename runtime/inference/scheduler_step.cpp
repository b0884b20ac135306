// Admission and the composition of steps.
#include <algorithm>
#include <utility>

#include "runtime/base/invariant.h"
#include "runtime/inference/scheduler.h"
#include "runtime/inference/scheduler_state.h"

namespace mainstay {
namespace {

constexpr uint64_t milli_cached = 100;     // service of a token that was cached
constexpr size_t set_aside_max = 4;        // that fit nowhere, in one call
constexpr int releases_per_placement = 8;  // pauses that end early for one admission

uint32_t smallest_bucket(const std::vector<uint32_t>& buckets, uint32_t at_least) {
    const auto found = std::lower_bound(buckets.begin(), buckets.end(), at_least);
    INVARIANT(found != buckets.end(), "what is composed fits a bucket");
    return *found;
}

}  // namespace

std::vector<DeviceWork> Scheduler::step(TimeUs now) {
    std::vector<DeviceWork> out;
    if (!pool_) return out;
    expire(now);
    admit(now);
    // Making way on one device may give another one, that was passed already, something to do.
    for (uint64_t placed = counts_.placed - 1, rounds = 0; placed != counts_.placed && rounds < 3; ++rounds) {
        placed = counts_.placed;
        step_devices(out, now);
    }
    return out;
}

void Scheduler::step_devices(std::vector<DeviceWork>& out, TimeUs now) {
    for (const auto& device : devices_) {
        if (!device || device->busy || device->retry_at > now) continue;
        device->retry_at = 0;
        make_way(*device, now);
        DeviceWork work;
        work.device = device->id;
        work.step = compose(*device, work.masked_rows, now);
        work.effects = pool_->take_device_effects(device->id);
        if (!work.step && work.effects.empty()) continue;
        device->busy = true;
        out.push_back(std::move(work));
    }
}

void Scheduler::expire(TimeUs now) {
    while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
        Sequence& sequence = *find(deadlines_.begin()->second);
        end(sequence, SequenceEnd::deadline, ErrorCode::turn_deadline_exceeded,
            "the deadline passed after " + std::to_string(sequence.usage.generated_tokens) + " tokens", now);
    }
    while (!rest_until_.empty() && rest_until_.begin()->first <= now) {
        const SessionKey session = rest_until_.begin()->second;
        rest_until_.erase(rest_until_.begin());
        let_go(*rests_.at(session));
    }
}

bool Scheduler::has_room(const DeviceRun& device) const {
    return !device.draining && device.running.size() < device.running_max(config_);
}

void Scheduler::admit(TimeUs now) {
    std::vector<Sequence*> aside;
    admission_cut_ = false;
    for (size_t n = 0; !queue_.empty(); ++n) {
        if (!std::any_of(devices_.begin(), devices_.end(), [&](const auto& d) { return d && has_room(*d); })) break;
        if (admission_cut_ = n >= limits::scheduler_admissions_per_step_max; admission_cut_) break;
        const Claim claim = *queue_.peek(now);
        Sequence& next = *find(claim.sequence);
        next.priority = claim.priority;
        if (place(next, now)) continue;
        // It fits nowhere yet. A few others may overtake it, but not for ever.
        queue_.erase(next.request.sequence);
        aside.push_back(&next);
        if (++next.bypassed > limits::scheduler_bypass_max || aside.size() >= set_aside_max) break;
    }
    for (Sequence* sequence : aside) {
        const TokenRequest& request = sequence->request;
        queue_.push({request.sequence, request.root, request.priority, request.deadline, sequence->arrival},
                    sequence->waiting_since);
    }
}

/// Where it costs least: tokens to compute or load there, and who is there already.
bool Scheduler::place(Sequence& sequence, TimeUs now) {
    const TokenRequest& request = sequence.request;
    const uint32_t n = uint32_t(sequence.tokens.size());
    const uint32_t room_for = n + std::min(sequence.new_tokens_left(), config_.reserve_tokens);
    PrefixMatch match;
    pool_->match(sequence.chain, (n - 1) / block_tokens_, match);
    std::vector<const PrefixMatch::OnDevice*> on_device(devices_.size(), nullptr);
    for (const auto& on : match.devices) on_device[on.device.value] = &on;
    const auto rest = rests_.find(request.session);

    for (int tries = 0; tries <= releases_per_placement; ++tries) {
        DeviceRun *best = nullptr, *crowded = nullptr;
        double best_cost = 0, next_cost = -1;
        for (const auto& device : devices_) {
            if (!device || !has_room(*device) || n >= device->caps.context_max) continue;
            const PrefixMatch::OnDevice on = on_device[device->id.value]
                                                 ? *on_device[device->id.value]
                                                 : PrefixMatch::OnDevice{device->id, match.reach, 0, 0};
            const uint32_t blocks = (std::min(room_for, device->caps.context_max) + block_tokens_ - 1) / block_tokens_;
            if (blocks > pool_->total_blocks(device->id)) {
                if (n / block_tokens_ + 1 > pool_->total_blocks(device->id)) continue;
            }
            if (std::min(blocks, pool_->total_blocks(device->id)) > pool_->available_blocks(device->id) + on.hits) {
                crowded = device.get();
                continue;
            }
            const uint32_t disk = match.disk_loads(on), host = on.reach - on.hits - disk;
            double cost =
                double(n) - block_tokens_ * (on.hits + config_.host_credit * host + config_.disk_credit * disk);
            cost += device->load;
            if (rest != rests_.end() && rest->second->device == device->id) cost -= config_.sticky_tokens;
            if (!best || cost < best_cost) {
                if (best) next_cost = best_cost;
                best = device.get();
                best_cost = cost;
            } else if (next_cost < 0 || cost < next_cost) {
                next_cost = cost;
            }
        }
        if (!best) {
            if (!crowded || !release_one_rest(crowded->id)) return false;
            continue;
        }
        const double compute_us = best->us_per_token * block_tokens_;
        const bool known = best->us_per_token > 0;
        const auto got =
            pool_->acquire(best->id, request.session, sequence.chain, sequence.tokens,
                           !known || config_.host_load_us < compute_us, !known || config_.disk_load_us < compute_us);
        const uint32_t wanted =
            std::min({room_for, best->caps.context_max, pool_->total_blocks(best->id) * block_tokens_});
        if (pool_->blocks_missing(got.table, wanted) > pool_->available_blocks(best->id)) {
            // What is cached was in use, so it did not count twice.
            pool_->drop(got.table);
            if (!release_one_rest(best->id)) return false;
            continue;
        }
        if (rest != rests_.end()) {
            rest_until_.erase({rest->second->pin_until, request.session});
            let_go(*rest->second);
        }
        dequeue(sequence);
        sequence.placed = true;
        sequence.device = best->id;
        sequence.table = got.table;
        sequence.epoch = ++epochs_;
        sequence.sampled_here = 0;
        sequence.bypassed = 0;
        sequence.last_token_at = now;
        best->running.push_back(&sequence);
        sequence.load = std::max<double>(config_.decode_cost_tokens, n - got.tokens);
        best->load += sequence.load;
        sequence.usage.queue_us += now - sequence.waiting_since;
        if (!std::exchange(sequence.placed_before, true)) {
            sequence.usage.cached_device = got.device_tokens;
            sequence.usage.cached_host = got.host_tokens;
            sequence.usage.cached_disk = got.disk_tokens;
            sequence.counts_cached = true;
            counts_.cached_tokens += got.tokens;
        }
        queue_.charge(request.root, uint64_t(got.tokens) * milli_cached);
        ++counts_.placed;
        std::string reason = "worker " + std::to_string(best->id.value) + ": " + std::to_string(got.tokens) + " of " +
                             std::to_string(n) + " tokens cached";
        if (got.host_tokens || got.disk_tokens)
            reason += " (host " + std::to_string(got.host_tokens) + ", disk " + std::to_string(got.disk_tokens) + ")";
        reason +=
            ", " + std::to_string(best->running.size()) + " run there; cost " + std::to_string(int64_t(best_cost));
        if (next_cost >= 0) reason += ", next best " + std::to_string(int64_t(next_cost));
        decide(SchedulerDecision::Kind::placed, sequence, best->id, std::move(reason));
        return true;
    }
    return false;
}

/// A device that is full gives a place to who is more urgent, or was served much less; and one that is drained sends
/// away what others can take.
void Scheduler::make_way(DeviceRun& device, TimeUs now) {
    if (device.draining) {
        const bool others =
            std::any_of(devices_.begin(), devices_.end(), [](const auto& d) { return d && !d->draining; });
        while (others && !device.running.empty())
            requeue(*device.running.back(), SchedulerDecision::Kind::requeued,
                    "worker " + std::to_string(device.id.value) + " is being drained", now);
        if (others) admit(now);
        return;
    }
    if (queue_.empty() || device.running.empty()) return;
    if (std::any_of(devices_.begin(), devices_.end(), [&](const auto& d) { return d && has_room(*d); })) return;
    const auto claim = queue_.peek(now);
    Sequence* victim = nullptr;
    uint64_t victim_served = 0;
    const uint64_t served = queue_.served(claim->root.tenant);
    for (Sequence* sequence : device.running) {
        const TokenRequest& request = sequence->request;
        const bool less_urgent = sequence->priority > claim->priority;
        const uint64_t theirs = queue_.served(request.root.tenant);
        const bool served_more = sequence->priority == claim->priority && request.root.tenant != claim->root.tenant &&
                                 sequence->sampled_here >= config_.preempt_after_tokens &&
                                 theirs > served + config_.preempt_lead_milli;
        if (!less_urgent && !served_more) continue;
        if (victim && (victim->priority > sequence->priority ||
                       (victim->priority == sequence->priority && victim_served >= theirs)))
            continue;
        victim = sequence;
        victim_served = theirs;
    }
    if (!victim) return;
    ++victim->usage.preemptions;
    requeue(*victim, SchedulerDecision::Kind::preempted,
            victim->priority > claim->priority
                ? std::string("a step of class ") + to_string(claim->priority) + " waits, this one is " +
                      to_string(victim->priority)
                : "its tenant was served " + std::to_string((victim_served - served) / 1000) +
                      " weighted tokens more than one that waits",
            now);
    admit(now);
}

/// Who leaves when blocks run out: the least urgent class, of it who came last.
Scheduler::Sequence* Scheduler::victim_on(DeviceRun& device, const Sequence* keep) {
    Sequence* victim = nullptr;
    for (Sequence* sequence : device.running) {
        if (sequence == keep || sequence->in_flight > 0) continue;
        if (!victim || std::pair(sequence->priority, sequence->arrival) > std::pair(victim->priority, victim->arrival))
            victim = sequence;
    }
    return victim;
}

bool Scheduler::make_room(DeviceRun& device, Sequence& sequence, uint32_t tokens, TimeUs now) {
    while (!pool_->reserve(sequence.table, tokens)) {
        if (release_one_rest(device.id)) continue;
        Sequence* victim = victim_on(device, &sequence);
        // Only who is behind gives way, so that two do not take turns at taking each other's blocks.
        if (!victim || std::pair(victim->priority, victim->arrival) < std::pair(sequence.priority, sequence.arrival))
            return false;
        ++victim->usage.preemptions;
        requeue(*victim, SchedulerDecision::Kind::preempted,
                "worker " + std::to_string(device.id.value) + " has no KV block left for who came before", now);
    }
    return true;
}

bool Scheduler::add_row(DeviceRun& device, Step& step, Sequence& sequence, uint32_t tokens, TimeUs now) {
    const uint32_t valid = pool_->valid_tokens(sequence.table);
    if (!make_room(device, sequence, valid + tokens, now)) return false;
    if (std::exchange(sequence.counts_cached, false)) {
        // A load that failed ended the cached part before it, in whichever tier the rest was.
        SequenceUsage& usage = sequence.usage;
        uint32_t missing = usage.cached_device + usage.cached_host + usage.cached_disk;
        missing -= std::min(missing, valid);
        counts_.cached_tokens -= missing;
        for (uint32_t* tier : {&usage.cached_disk, &usage.cached_host, &usage.cached_device}) {
            const uint32_t from_here = std::min(*tier, missing);
            *tier -= from_here;
            missing -= from_here;
        }
    }
    StepRow row;
    row.sequence = sequence.request.sequence;
    row.epoch = sequence.epoch;
    row.tokens.assign(sequence.tokens.begin() + valid, sequence.tokens.begin() + valid + tokens);
    row.position = valid;
    row.want_token = valid + tokens == sequence.tokens.size();
    row.sampling = sequence.request.sampling;
    row.seed = sequence.request.seed;
    const auto& blocks = pool_->blocks(sequence.table);
    row.block_table.assign(blocks.begin(),
                           blocks.begin() + ptrdiff_t((valid + tokens + block_tokens_ - 1) / block_tokens_));
    sequence.in_flight = tokens;
    device.rows.emplace_back(row.sequence, row.epoch);
    device.row_tokens.push_back(tokens);
    step.rows.push_back(std::move(row));
    return true;
}

bool Scheduler::wants_prefill(const DeviceRun& device, const std::vector<Sequence*>& decodes, uint32_t tokens,
                              TimeUs now) const {
    if (decodes.empty() || device.decodes_since_prefill >= config_.decodes_per_prefill_max) return true;
    TimeUs oldest = now;
    for (const Sequence* sequence : decodes) oldest = std::min(oldest, sequence->last_token_at);
    return double(now - oldest) + tokens * device.us_per_token <= double(config_.between_tokens_us);
}

void Scheduler::fit_buckets(const DeviceRun& device, Step& step) const {
    uint32_t context = 0;
    for (const StepRow& row : step.rows) context = std::max(context, row.position + uint32_t(row.tokens.size()));
    step.context_bucket = smallest_bucket(device.caps.context_buckets, context);
    for (StepRow& row : step.rows) row.block_table.resize(step.context_bucket / block_tokens_, block_none);
    if (step.kind == StepKind::prefill) {
        step.token_bucket = smallest_bucket(device.caps.prefill_buckets, uint32_t(step.rows[0].tokens.size()));
    } else {
        step.row_bucket = smallest_bucket(device.caps.decode_buckets, uint32_t(step.rows.size()));
    }
}

std::optional<Step> Scheduler::compose(DeviceRun& device, std::vector<uint32_t>& masked, TimeUs now) {
    std::vector<Sequence*> decodes, prefills;
    Sequence* alone = nullptr;
    for (Sequence* sequence : device.running) {
        if (!pool_->settled(sequence->table)) continue;
        const uint32_t left = uint32_t(sequence->tokens.size()) - pool_->valid_tokens(sequence->table);
        (left == 1 ? decodes : prefills).push_back(sequence);
        if (sequence->alone && !alone) alone = sequence;
    }
    if (alone) {
        std::erase_if(decodes, [&](const Sequence* s) { return s != alone; });
        std::erase_if(prefills, [&](const Sequence* s) { return s != alone; });
    }
    const auto by_urgency = [](const Sequence* a, const Sequence* b) { return a->priority < b->priority; };
    std::stable_sort(prefills.begin(), prefills.end(), by_urgency);
    const uint32_t rows_max = device.running_max(config_);
    uint32_t tokens_left = device.tokens_max(config_);
    if (decodes.size() > std::min(rows_max, tokens_left))
        std::stable_sort(decodes.begin(), decodes.end(),
                         [](const Sequence* a, const Sequence* b) { return a->last_token_at < b->last_token_at; });

    uint32_t chunk_max = tokens_left;
    if (device.caps.strict) chunk_max = std::min(chunk_max, device.caps.prefill_buckets.back());
    const auto left_of = [&](const Sequence* s) { return uint32_t(s->tokens.size()) - pool_->valid_tokens(s->table); };
    const bool mixed = device.caps.mixed_steps;
    const bool prefill_now =
        !prefills.empty() &&
        (mixed || wants_prefill(device, decodes, std::min(chunk_max, left_of(prefills.front())), now));

    Step step;
    device.rows.clear();
    device.row_tokens.clear();
    const auto add_decodes = [&] {
        for (Sequence* sequence : decodes) {
            if (step.rows.size() >= rows_max || tokens_left == 0) break;
            // Who gave way to another one meanwhile is not here any more.
            if (sequence->placed && sequence->device == device.id && add_row(device, step, *sequence, 1, now))
                --tokens_left;
        }
    };
    if (mixed || !prefill_now) add_decodes();
    uint32_t chunks = 0;
    if (prefill_now) {
        for (Sequence* sequence : prefills) {
            if (step.rows.size() >= rows_max || tokens_left == 0 || chunks >= device.caps.prefills_max) break;
            if (!sequence->placed || sequence->device != device.id) continue;
            uint32_t tokens = std::min({left_of(sequence), tokens_left, chunk_max});
            if (!add_row(device, step, *sequence, tokens, now)) {
                // As much as there are blocks for.
                const size_t room = pool_->blocks(sequence->table).size() + pool_->available_blocks(device.id);
                const size_t fits = room * block_tokens_ - pool_->valid_tokens(sequence->table);
                if (fits == 0 || fits >= tokens) continue;
                tokens = uint32_t(fits);
                if (!add_row(device, step, *sequence, tokens, now)) continue;
            }
            tokens_left -= tokens;
            ++chunks;
            if (!mixed) break;
        }
    }
    if (step.rows.empty() && !mixed && prefill_now) add_decodes();  // no prompt got blocks
    if (step.rows.empty()) {
        // Nobody could get a block, and everybody else has left: then the first one alone is too much for the device.
        if (device.running.size() == 1) {
            Sequence& sequence = *device.running.front();
            if (pool_->settled(sequence.table) &&
                !pool_->reserve(sequence.table, pool_->valid_tokens(sequence.table) + 1))
                end(sequence, SequenceEnd::failed, ErrorCode::context_overflow,
                    "worker " + std::to_string(device.id.value) + " has " +
                        std::to_string(pool_->total_blocks(device.id)) + " KV blocks, too few for " +
                        std::to_string(sequence.tokens.size()) + " tokens",
                    now);
        }
        return std::nullopt;
    }
    step.id = ++steps_;
    step.kind = chunks == 0 ? StepKind::decode : mixed ? StepKind::mixed : StepKind::prefill;
    device.decodes_since_prefill = chunks == 0 ? device.decodes_since_prefill + 1 : 0;
    device.step_id = step.id;
    if (device.caps.strict) fit_buckets(device, step);
    for (uint32_t i = 0; i < step.rows.size(); ++i)
        if (step.rows[i].want_token && find(step.rows[i].sequence)->request.masked) masked.push_back(i);
    return step;
}

}  // namespace mainstay
