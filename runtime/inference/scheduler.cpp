#include "runtime/inference/scheduler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <utility>

#include "runtime/base/invariant.h"
#include "runtime/inference/scheduler_state.h"

namespace mainstay {
namespace {

constexpr uint64_t milli_prefill = 1000, milli_decode = 2000;  // service of one token
constexpr double smoothing = 0.2;
constexpr double ends_window_us = 5e6;

std::string name_of(DeviceId device) { return "worker " + std::to_string(device.value); }

}  // namespace

const char* to_string(SequenceEnd end) {
    switch (end) {
        case SequenceEnd::stop_token: return "stop_token";
        case SequenceEnd::stopped: return "stopped";
        case SequenceEnd::length: return "length";
        case SequenceEnd::cancelled: return "cancelled";
        case SequenceEnd::deadline: return "deadline";
        case SequenceEnd::failed: return "failed";
    }
    return "?";
}

const char* to_string(SchedulerDecision::Kind kind) {
    switch (kind) {
        case SchedulerDecision::Kind::placed: return "placed";
        case SchedulerDecision::Kind::refused: return "refused";
        case SchedulerDecision::Kind::preempted: return "preempted";
        case SchedulerDecision::Kind::requeued: return "requeued";
        case SchedulerDecision::Kind::kept: return "kept";
        case SchedulerDecision::Kind::released: return "released";
        case SchedulerDecision::Kind::failed: return "failed";
    }
    return "?";
}

Scheduler::Scheduler(SchedulerConfig config) : config_(config), queue_(config.fair) {}
Scheduler::~Scheduler() = default;

Scheduler::Sequence* Scheduler::find(SequenceHandle handle) {
    const auto found = sequences_.find(handle);
    return found == sequences_.end() ? nullptr : found->second.get();
}

Scheduler::DeviceRun* Scheduler::device_at(DeviceId device) {
    return device.value < devices_.size() ? devices_[device.value].get() : nullptr;
}

void Scheduler::decide(SchedulerDecision::Kind kind, const Sequence& sequence, std::optional<DeviceId> device,
                       std::string reason) {
    out_.decisions.push_back({kind, sequence.request.sequence, sequence.request.session, device, std::move(reason)});
}

// --- devices --------------------------------------------------------------------------------------------------------

bool Scheduler::add_device(DeviceId id, const DeviceCaps& caps, TimeUs) {
    INVARIANT(id.value < limits::scheduler_devices_max, "a device's number is within its bound");
    INVARIANT(!device_at(id), "a device is added once");
    if (!pool_) {
        model_hash_ = caps.model_hash;
        kv_format_ = caps.kv_format;
        block_tokens_ = caps.block_tokens;
        pool_ = std::make_unique<BlockPool>(BlockPoolConfig{block_tokens_, config_.host_blocks_max, config_.disk});
    }
    // One name of a block must mean the same bits everywhere.
    if (caps.model_hash != model_hash_ || caps.kv_format != kv_format_ || caps.block_tokens != block_tokens_)
        return false;
    if (id.value >= devices_.size()) devices_.resize(id.value + 1);
    auto device = std::make_unique<DeviceRun>();
    device->id = id;
    device->caps = caps;
    if (caps.strict) device->caps.context_max = std::min(caps.context_max, caps.context_buckets.back());
    context_max_ = std::max(context_max_, device->caps.context_max);
    pool_->add_device(id, caps.block_count);
    devices_[id.value] = std::move(device);
    return true;
}

void Scheduler::device_lost(DeviceId id, const std::string& why, TimeUs now) {
    DeviceRun* device = device_at(id);
    if (!device) return;
    for (auto& [session, rest] : rests_) {
        if (!rest->pin || rest->device != id) continue;
        rest_until_.erase({rest->pin_until, session});
        rest->pin.reset();
    }
    const std::vector<Sequence*> running = device->running;
    pool_->remove_device(id);
    const std::unique_ptr<DeviceRun> gone = std::move(devices_[id.value]);
    for (Sequence* sequence : running) {
        sequence->placed = false;  // with its table
        sequence->epoch = 0;
        sequence->in_flight = 0;
        if (++sequence->usage.redispatches > limits::scheduler_redispatch_max) {
            end(*sequence, SequenceEnd::failed, ErrorCode::model_unavailable,
                name_of(id) + " was lost (" + why + "), the last of " +
                    std::to_string(limits::scheduler_redispatch_max + 1) + " that this step ran on",
                now);
        } else {
            requeue(*sequence, SchedulerDecision::Kind::requeued,
                    name_of(id) + " was lost (" + why + "): goes on elsewhere from its " +
                        std::to_string(sequence->tokens.size()) + " tokens",
                    now);
        }
    }
}

void Scheduler::drain(DeviceId id, bool on, TimeUs) {
    if (DeviceRun* device = device_at(id)) device->draining = on;
}

bool Scheduler::drained(DeviceId id) const {
    const DeviceRun* device = const_cast<Scheduler*>(this)->device_at(id);
    return !device || (device->draining && device->running.empty() && !device->busy);
}

// --- sequences ------------------------------------------------------------------------------------------------------

std::optional<Refusal> Scheduler::refuse_early(const TokenRequest& request) const {
    const size_t n = request.tokens.size();
    if (n == 0) return Refusal{ErrorCode::invalid_request, "a step without tokens", 0};
    if (request.stop_tokens.size() > limits::scheduler_stop_tokens_max)
        return Refusal{ErrorCode::invalid_request,
                       std::to_string(request.stop_tokens.size()) + " stop tokens, at most " +
                           std::to_string(limits::scheduler_stop_tokens_max) + " (scheduler_stop_tokens_max)",
                       0};
    bool any = false;
    uint32_t context = 0, blocks = 0;
    for (const auto& device : devices_) {
        if (!device) continue;
        any = true;
        context = std::max(context, device->caps.context_max);
        blocks = std::max(blocks, pool_->total_blocks(device->id));
    }
    if (!any) return Refusal{ErrorCode::model_unavailable, "no worker of this model is up", 1'000'000};
    if (n >= context)
        return Refusal{ErrorCode::context_overflow,
                       std::to_string(n) + " tokens, and the context holds " + std::to_string(context), 0};
    if (n / block_tokens_ + 1 > blocks)
        return Refusal{ErrorCode::context_overflow,
                       std::to_string(n) + " tokens need " + std::to_string(n / block_tokens_ + 1) +
                           " KV blocks, and the largest worker has " + std::to_string(blocks),
                       0};
    const double us_per_end = ends_per_us_ > 0 ? 1 / ends_per_us_ : 100'000;
    if (queue_.size() >= config_.waiting_max)
        return Refusal{ErrorCode::model_rate_limited,
                       std::to_string(queue_.size()) + " steps wait, the bound is " +
                           std::to_string(config_.waiting_max) + " (scheduler_waiting_max)",
                       uint64_t(std::max(1000.0, us_per_end * 16))};
    const auto load = tenants_.find(request.session.tenant);
    if (load != tenants_.end() && load->second.waiting >= config_.waiting_tenant_max)
        return Refusal{ErrorCode::model_rate_limited,
                       std::to_string(load->second.waiting) + " steps of the tenant wait, the bound is " +
                           std::to_string(config_.waiting_tenant_max) + " (scheduler_waiting_tenant_max)",
                       uint64_t(std::max(1000.0, us_per_end * 16))};
    if (request.first_token_within_us == 0) return std::nullopt;
    const double predicted = predicted_first_token_us(request);
    if (predicted <= double(request.first_token_within_us)) return std::nullopt;
    return Refusal{ErrorCode::model_rate_limited,
                   "the first token is predicted in " + std::to_string(uint64_t(predicted / 1000)) + " ms, and " +
                       std::to_string(request.first_token_within_us / 1000) + " ms are allowed; " +
                       std::to_string(queue_.size()) + " steps wait",
                   uint64_t(predicted) - request.first_token_within_us};
}

/// From what devices were measured to do and what is ahead under fair shares. 0 where nothing was measured yet.
double Scheduler::predicted_first_token_us(const TokenRequest& request) const {
    double rate = 0, best_us = 0;  // tokens of prefill per microsecond, of all; of the best one
    bool room = false;
    for (const auto& device : devices_) {
        if (!device || device->draining) continue;
        room |= has_room(*device);
        if (device->us_per_token <= 0) continue;
        rate += 1 / device->us_per_token;
        best_us = best_us > 0 ? std::min(best_us, device->us_per_token) : device->us_per_token;
    }
    if (rate <= 0) return 0;
    const auto found = tenants_.find(request.session.tenant);
    const TenantLoad mine = found == tenants_.end() ? TenantLoad{} : found->second;
    const double sharers = double(queue_.tenants_waiting() + (mine.waiting == 0));
    const double tokens_ahead = std::min(double(waiting_tokens_), double(mine.tokens) * sharers);
    const double steps_ahead = std::min(double(queue_.size()), double(mine.waiting) * sharers);
    double wait = tokens_ahead / rate;
    if (!room && ends_per_us_ > 0) wait = std::max(wait, (steps_ahead + 1) / ends_per_us_);
    KvChain chain{kv_root(model_hash_, kv_format_, request.session.tenant), {}};
    extend_chain(chain, request.tokens, block_tokens_);
    PrefixMatch match;
    pool_->match(chain, uint32_t(chain.blocks.size()), match);
    uint32_t cached = match.reach;
    for (const auto& on : match.devices) cached = std::max(cached, on.reach);
    return wait + double(request.tokens.size() - std::min<size_t>(request.tokens.size() - 1, cached * block_tokens_)) *
                      best_us;
}

std::optional<Refusal> Scheduler::submit(TokenRequest request, TimeUs now) {
    INVARIANT(request.root.tenant == request.session.tenant, "a session and its root are of one tenant");
    INVARIANT(!find(request.sequence), "a sequence is submitted once");
    ++counts_.submitted;
    if (auto refusal = refuse_early(request)) {
        ++counts_.refused;
        out_.decisions.push_back(
            {SchedulerDecision::Kind::refused, request.sequence, request.session, std::nullopt, refusal->reason});
        return refusal;
    }
    auto made = std::make_unique<Sequence>();
    Sequence& sequence = *made;
    sequence.tokens = std::move(request.tokens);
    sequence.prompt_size = uint32_t(sequence.tokens.size());
    sequence.request = std::move(request);
    TokenRequest& kept = sequence.request;
    const uint32_t room = context_max_ - sequence.prompt_size;
    kept.max_new_tokens = kept.max_new_tokens ? std::min(kept.max_new_tokens, room) : room;
    sequence.tokens.reserve(sequence.tokens.size() + std::min<uint32_t>(kept.max_new_tokens, 256));
    sequence.chain.root = kv_root(model_hash_, kv_format_, kept.session.tenant);
    extend_chain(sequence.chain, sequence.tokens, block_tokens_);
    sequence.arrival = ++arrivals_;
    sequence.submitted = now;
    sequence.usage.prompt_tokens = sequence.prompt_size;
    if (const auto rest = rests_.find(kept.session); rest != rests_.end() && rest->second->paused_at) {
        tools_.record(rest->second->tool, now - rest->second->paused_at);
        rest->second->paused_at = 0;
    }
    if (kept.deadline) deadlines_.insert({kept.deadline, kept.sequence});
    by_session_[kept.session].insert(kept.sequence);
    queue_.enter(kept.root);
    sequences_.emplace(kept.sequence, std::move(made));
    enqueue(sequence, now);
    return std::nullopt;
}

void Scheduler::enqueue(Sequence& sequence, TimeUs now) {
    const TokenRequest& request = sequence.request;
    sequence.waiting = true;
    sequence.waiting_since = now;
    sequence.counted_tokens = uint32_t(sequence.tokens.size());
    TenantLoad& load = tenants_[request.session.tenant];
    ++load.waiting;
    load.tokens += sequence.counted_tokens;
    waiting_tokens_ += sequence.counted_tokens;
    queue_.push({request.sequence, request.root, request.priority, request.deadline, sequence.arrival}, now);
}

void Scheduler::dequeue(Sequence& sequence) {
    queue_.erase(sequence.request.sequence);
    sequence.waiting = false;
    const auto load = tenants_.find(sequence.request.session.tenant);
    load->second.tokens -= sequence.counted_tokens;
    waiting_tokens_ -= sequence.counted_tokens;
    if (--load->second.waiting == 0) tenants_.erase(load);
}

void Scheduler::cancel(SequenceHandle handle, TimeUs now) {
    if (Sequence* sequence = find(handle))
        end(*sequence, SequenceEnd::cancelled, ErrorCode::turn_cancelled, "cancelled", now);
}

void Scheduler::stop(SequenceHandle handle, TimeUs now) {
    if (Sequence* sequence = find(handle)) end(*sequence, SequenceEnd::stopped, ErrorCode::internal, "", now);
}

/// The sequence leaves its device: what was computed of it becomes cache, or its table goes with the device.
void Scheduler::leave_device(Sequence& sequence, bool keep_blocks) {
    if (!sequence.placed) return;
    DeviceRun& device = *devices_[sequence.device.value];
    if (keep_blocks) {
        pool_->close(sequence.table, sequence.request.session, sequence.chain, sequence.tokens);
    } else {
        pool_->drop(sequence.table);
    }
    std::erase(device.running, &sequence);
    device.load -= sequence.load;
    sequence.placed = false;
    sequence.epoch = 0;
    sequence.in_flight = 0;
}

void Scheduler::requeue(Sequence& sequence, SchedulerDecision::Kind kind, std::string reason, TimeUs now) {
    ++(kind == SchedulerDecision::Kind::preempted ? counts_.preempted : counts_.requeued);
    decide(kind, sequence, sequence.device, std::move(reason));
    leave_device(sequence, true);
    enqueue(sequence, now);
}

void Scheduler::end(Sequence& sequence, SequenceEnd how, ErrorCode code, std::string message, TimeUs now) {
    const TokenRequest& request = sequence.request;
    if (sequence.waiting) {
        sequence.usage.queue_us += now - sequence.waiting_since;  // it gave up waiting: that counts, too
        dequeue(sequence);
    }
    if (sequence.placed) {
        Rest& rest = rest_of(request.session);
        rest_until_.erase({rest.pin_until, request.session});
        let_go(rest);
        rest.device = sequence.device;
        const size_t named = pool_->valid_tokens(sequence.table) / block_tokens_;
        leave_device(sequence, true);
        rest.chain = std::move(sequence.chain);
        rest.chain.blocks.resize(std::min(rest.chain.blocks.size(), named));
    }
    queue_.leave(request.root);
    if (request.deadline) deadlines_.erase({request.deadline, request.sequence});
    const auto session = by_session_.find(request.session);
    session->second.erase(request.sequence);
    if (session->second.empty()) by_session_.erase(session);

    if (how == SequenceEnd::failed) decide(SchedulerDecision::Kind::failed, sequence, sequence.device, message);
    sequence.usage.total_us = now - sequence.submitted;
    SequenceEnded ended{request.sequence, how, code, std::move(message), {}, sequence.usage};
    ended.generated.assign(sequence.tokens.begin() + sequence.prompt_size, sequence.tokens.end());
    out_.ended.push_back(std::move(ended));
    ++counts_.ended;
    // How fast sequences end: a count that fades, over the time that it covers. The first one only starts the clock.
    if (last_end_ == 0) {
        first_end_ = now;
    } else {
        ends_ = ends_ * std::exp(-double(now - std::min(now, last_end_)) / ends_window_us) + 1;
        ends_per_us_ = ends_ / std::clamp(double(now - std::min(now, first_end_)), 1.0, ends_window_us);
    }
    last_end_ = now;
    sequences_.erase(request.sequence);
}

// --- sessions -------------------------------------------------------------------------------------------------------

Scheduler::Rest& Scheduler::rest_of(const SessionKey& session) {
    auto& slot = rests_[session];
    if (!slot) slot = std::make_unique<Rest>();
    slot->stamp = ++rest_clock_;
    rest_order_.emplace_back(session, slot->stamp);
    while (rests_.size() > config_.rests_max || rest_order_.size() > 4 * config_.rests_max) {
        const auto [oldest, stamp] = rest_order_.front();
        rest_order_.pop_front();
        const auto found = rests_.find(oldest);
        if (found == rests_.end() || found->second->stamp != stamp) continue;
        let_go(*found->second);
        rest_until_.erase({found->second->pin_until, oldest});
        rests_.erase(found);
    }
    return *slot;
}

void Scheduler::let_go(Rest& rest) {
    if (!rest.pin) return;
    pool_->drop(*rest.pin);
    rest.pin.reset();
}

/// Under pressure: of the pauses on this device the one that was to end first.
bool Scheduler::release_one_rest(DeviceId device) {
    for (const auto& [until, session] : rest_until_) {
        Rest& rest = *rests_.at(session);
        if (rest.device != device) continue;
        out_.decisions.push_back({SchedulerDecision::Kind::released, 0, session, device,
                                  "blocks kept for a call of " + rest.tool + " are needed for others"});
        let_go(rest);
        rest_until_.erase({until, session});
        return true;
    }
    return false;
}

void Scheduler::tool_paused(const SessionKey& session, std::string_view tool, TimeUs now) {
    const auto found = rests_.find(session);
    if (found == rests_.end()) return;
    Rest& rest = *found->second;
    rest.tool = std::string(tool.substr(0, limits::name_bytes_max));
    rest.paused_at = now;
    DeviceRun* device = device_at(rest.device);
    if (!device || rest.pin || rest.chain.blocks.empty()) return;
    const double blocks = double(rest.chain.blocks.size());
    const double total = double(pool_->total_blocks(rest.device));
    const double compute_us = blocks * block_tokens_ * device->us_per_token;
    PauseTerms terms;
    terms.keep_max_us = config_.pause_keep_max_us;
    terms.saved_us = config_.host_blocks_max ? std::min(compute_us, blocks * config_.host_load_us) : compute_us;
    // Pressure: nothing while an eighth is free; then the share of the device that the blocks take from who waits.
    const bool tight = pool_->free_blocks(rest.device) * 8 < pool_->total_blocks(rest.device) && !queue_.empty();
    terms.cost_us_per_us = tight ? blocks / total : 0;
    const uint64_t keep = tools_.keep_us(rest.tool, terms);
    if (keep == 0) {
        out_.decisions.push_back({SchedulerDecision::Kind::released, 0, session, rest.device,
                                  "blocks are not kept for a call of " + rest.tool + ": memory is tight, and of " +
                                      std::to_string(tools_.samples(tool)) + " calls too few were short"});
        return;
    }
    rest.pin = pool_->pin(rest.device, rest.chain);
    rest.pin_until = now + keep;
    rest_until_.insert({rest.pin_until, session});
    out_.decisions.push_back({SchedulerDecision::Kind::kept, 0, session, rest.device,
                              std::to_string(rest.chain.blocks.size()) + " blocks are kept up to " +
                                  std::to_string(keep / 1000) + " ms for a call of " + rest.tool});
}

void Scheduler::session_deleted(const SessionKey& session, TimeUs now) {
    if (const auto found = by_session_.find(session); found != by_session_.end()) {
        const std::set<SequenceHandle> running = found->second;
        for (const SequenceHandle handle : running) cancel(handle, now);
    }
    if (const auto rest = rests_.find(session); rest != rests_.end()) {
        let_go(*rest->second);
        rest_until_.erase({rest->second->pin_until, session});
        rests_.erase(rest);
    }
    if (pool_) pool_->delete_session(session);
}

void Scheduler::session_idle(const SessionKey& session) {
    if (pool_) pool_->settle_to_disk(session);
}

bool Scheduler::offer(KvTier tier, const KvHash& hash, uint32_t tokens, const SessionKey& owner) {
    return pool_ && pool_->offer(tier, hash, tokens, owner);
}

std::vector<BlockName> Scheduler::holdings(const std::function<bool(const SessionKey&)>& wanted,
                                           size_t blocks_max) const {
    std::vector<BlockName> out;
    if (!pool_) return out;
    std::unordered_set<SessionKey> done;
    const auto take = [&](const SessionKey& session, const KvChain& chain) {
        if (out.size() < blocks_max && done.insert(session).second) pool_->holdings(session, chain, out);
    };
    for (const auto& [session, running] : by_session_)
        if (wanted(session)) take(session, sequences_.at(*running.rbegin())->chain);
    std::vector<std::pair<uint64_t, const SessionKey*>> rested;
    for (const auto& [session, rest] : rests_)
        if (wanted(session)) rested.emplace_back(rest->stamp, &session);
    std::sort(rested.begin(), rested.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (const auto& [stamp, session] : rested) take(*session, rests_.at(*session)->chain);
    // Of a session that was not served since the start nothing says which blocks of definitions its context begins
    // with.
    std::unordered_set<TenantId> tenants;
    pool_->visit_sessions([&](const SessionKey& session) {
        if (out.size() >= blocks_max || done.contains(session) || !wanted(session)) return;
        if (tenants.insert(session.tenant).second) pool_->definitions(session.tenant, out);
        take(session, {});
    });
    return out;
}

// --- results --------------------------------------------------------------------------------------------------------

void Scheduler::take_token(Sequence& sequence, TokenId token, TimeUs now) {
    const TokenRequest& request = sequence.request;
    out_.tokens.push_back({request.sequence, token, uint32_t(sequence.tokens.size())});
    sequence.tokens.push_back(token);
    extend_chain(sequence.chain, sequence.tokens, block_tokens_);
    sequence.last_token_at = now;
    if (sequence.usage.generated_tokens++ == 0) sequence.usage.first_token_us = now - sequence.submitted;
    if (sequence.sampled_here++ == 0) {
        devices_[sequence.device.value]->load += config_.decode_cost_tokens - sequence.load;
        sequence.load = config_.decode_cost_tokens;
    }
    ++counts_.generated_tokens;
    const auto& stops = request.stop_tokens;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
        end(sequence, SequenceEnd::stop_token, ErrorCode::internal, "", now);
    } else if (sequence.new_tokens_left() == 0 ||
               sequence.tokens.size() >= devices_[sequence.device.value]->caps.context_max) {
        end(sequence, SequenceEnd::length, ErrorCode::internal, "", now);
    }
}

void Scheduler::completed(DeviceId id, const StepResult& result, TimeUs now) {
    DeviceRun* device = device_at(id);
    if (!device || device->step_id != result.step) return;  // of a device that was given up
    device->busy = false;
    device->step_id = 0;
    const auto rows = std::exchange(device->rows, {});
    const auto row_tokens = std::exchange(device->row_tokens, {});
    INVARIANT(rows.size() == result.rows.size(), "a result for each row");
    const StepCost& cost = result.cost;
    DeviceView& totals = device->totals;
    ++totals.steps;
    totals.rows += rows.size();
    totals.tokens += cost.tokens;
    totals.padded_tokens += cost.padded_tokens;
    totals.wall_s += cost.wall_s;
    totals.device_s += cost.device_s;
    totals.joules += cost.joules;
    uint32_t all = 0;
    for (const uint32_t n : row_tokens) all += n;
    if (all > rows.size() && cost.wall_s > 0) {
        const double us = cost.wall_s * 1e6 / double(all);
        device->us_per_token = device->us_per_token > 0 ? (1 - smoothing) * device->us_per_token + smoothing * us : us;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        Sequence* sequence = find(rows[i].first);
        if (!sequence || sequence->epoch != rows[i].second || !sequence->placed || sequence->device != id) {
            ++counts_.stale_results;
            continue;
        }
        const uint32_t n = row_tokens[i];
        const double share = double(n) / double(all);
        sequence->in_flight = 0;
        sequence->alone = false;
        sequence->usage.wall_s += share * cost.wall_s;
        sequence->usage.device_s += share * cost.device_s;
        sequence->usage.joules += share * cost.joules;
        const uint32_t before = pool_->valid_tokens(sequence->table);
        const bool decode = n == 1 && before >= sequence->prompt_size;
        queue_.charge(sequence->request.root, n * (decode ? milli_decode : milli_prefill));
        if (!decode) {
            sequence->usage.prefilled_tokens += n;
            counts_.prefilled_tokens += n;
        }
        pool_->computed(sequence->table, before + n, sequence->chain, sequence->request.session,
                        sequence->request.definition_tokens);
        if (result.rows[i].token && before + n == sequence->tokens.size()) {
            take_token(*sequence, *result.rows[i].token, now);
        }
    }
}

void Scheduler::failed(DeviceId id, const DeviceError& error, TimeUs now) {
    DeviceRun* device = device_at(id);
    if (!device) return;
    if (error.action == DeviceAction::restart_worker) {
        device_lost(id, error.message, now);
        return;
    }
    device->busy = false;
    device->step_id = 0;
    const auto rows = std::exchange(device->rows, {});
    device->row_tokens.clear();
    std::vector<Sequence*> there;
    for (size_t i = 0; i < rows.size(); ++i) {
        Sequence* sequence = find(rows[i].first);
        const bool current = sequence && sequence->epoch == rows[i].second && sequence->placed;
        if (current) sequence->in_flight = 0;
        there.push_back(current ? sequence : nullptr);
    }
    if (error.action == DeviceAction::retry) {
        device->retry_at = now + config_.retry_device_us;
        return;
    }
    std::optional<uint32_t> blamed = error.row;
    if (!blamed && rows.size() == 1) blamed = 0;
    if (blamed && *blamed < there.size()) {
        if (Sequence* sequence = there[*blamed])
            end(*sequence, SequenceEnd::failed,
                error.fault == DeviceFault::numeric ? ErrorCode::model_protocol_error : ErrorCode::internal,
                name_of(id) + ": " + to_string(error.fault) + ": " + error.message, now);
        return;
    }
    // One of them is to blame and nobody said which: they run one by one, once.
    for (Sequence* sequence : there)
        if (sequence) sequence->alone = true;
}

void Scheduler::idle(DeviceId id) {
    if (DeviceRun* device = device_at(id); device && device->step_id == 0) device->busy = false;
}

SchedulerOutputs Scheduler::outputs() {
    SchedulerOutputs out = std::exchange(out_, {});
    if (pool_) out.tiers = pool_->take_tier_effects();
    return out;
}

TimeUs Scheduler::wake_at() const {
    if (admission_cut_) return 1;
    TimeUs at = UINT64_MAX;
    if (!deadlines_.empty()) at = std::min(at, deadlines_.begin()->first);
    if (!rest_until_.empty()) at = std::min(at, rest_until_.begin()->first);
    for (const auto& device : devices_)
        if (device && device->retry_at) at = std::min(at, device->retry_at);
    return at == UINT64_MAX ? 0 : at;
}

SchedulerView Scheduler::view() const {
    SchedulerView out = counts_;
    out.waiting = queue_.size();
    out.running = 0;
    if (pool_) out.pool = pool_->stats();
    for (const auto& device : devices_) {
        if (!device) continue;
        DeviceView one = device->totals;
        one.device = device->id;
        one.kind = device->caps.kind;
        one.hardware = device->caps.hardware;
        one.simulated = device->caps.simulated;
        one.draining = device->draining;
        one.busy = device->busy;
        one.running = uint32_t(device->running.size());
        one.rows_max = device->caps.rows_max;
        one.blocks_total = pool_->total_blocks(device->id);
        one.blocks_free = pool_->free_blocks(device->id);
        one.blocks_cached = pool_->evictable_blocks(device->id);
        out.running += one.running;
        out.devices.push_back(std::move(one));
    }
    return out;
}

}  // namespace mainstay
