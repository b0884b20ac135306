#include "cluster/link_calls.h"

#include <vector>

#include "runtime/base/limits.h"

namespace mainstay {

void LinkCalls::begin(CallUnderWay call) {
    const std::string to = to_text(call.to);
    if (!call.channel || call.channel->closed())
        return call.on_end(Error{ErrorCode::misdirected, "no link to node " + to, {}});
    size_t& under_way = per_channel_[call.channel.get()];
    if (under_way >= limits::link_calls_max) {
        call.channel->put(CallItem{call.id, FrameType::cancel, 0, {}, false, {}, true});
        return call.on_end(Error{ErrorCode::shard_unavailable, "link_calls_max are under way with node " + to, {}});
    }
    ++under_way;
    ++context_.counters.calls_under_way;
    const uint64_t id = call.id;
    const uint32_t timeout_ms = call.timeout_ms;
    Open open{std::move(call), false, nullptr};
    if (timeout_ms != 0)
        open.deadline = context_.timer.afterDelay(timeout_ms * kj::MILLISECONDS)
                            .then([this, id, timeout_ms] {
                                // Not from within the promise that is destroyed with the call.
                                context_.later(kj::evalLater([this, id, timeout_ms] {
                                    abandon(id, {ErrorCode::shard_unavailable,
                                                 "no answer within " + std::to_string(timeout_ms) + " ms",
                                                 {}});
                                }));
                            })
                            .eagerlyEvaluate(nullptr);
    calls_.emplace(id, std::move(open));
}

void LinkCalls::part(uint64_t id, std::string bytes) {
    const auto found = calls_.find(id);
    if (found != calls_.end()) found->second.call.on_part(std::move(bytes));
}

void LinkCalls::end(uint64_t id, std::optional<Error> failure) {
    const auto found = calls_.find(id);
    if (found == calls_.end()) return;
    const Open open = std::move(found->second);
    calls_.erase(found);
    const auto counted = per_channel_.find(open.call.channel.get());
    if (--counted->second == 0) per_channel_.erase(counted);
    --context_.counters.calls_under_way;
    open.call.on_end(std::move(failure));
}

void LinkCalls::abandon(uint64_t id, Error why) {
    const auto found = calls_.find(id);
    if (found == calls_.end()) return;
    const auto channel = found->second.call.channel;
    channel->put(CallItem{id, FrameType::cancel, 0, {}, false, {}, true});
    end(id, std::move(why));
}

void LinkCalls::sent(uint64_t id) {
    const auto found = calls_.find(id);
    if (found != calls_.end()) found->second.sent = true;
}

void LinkCalls::end_lost(uint64_t id, const char* why) {
    const Open& open = calls_.at(id);
    const std::string to = to_text(open.call.to);
    if (open.sent) return end(id, Error{ErrorCode::shard_unavailable, why + (" to node " + to), {}});
    end(id, Error{ErrorCode::misdirected, "no link to node " + to, {}});
}

void LinkCalls::lost(const Channel& channel) {
    std::vector<uint64_t> ids;
    for (const auto& [id, open] : calls_)
        if (open.call.channel.get() == &channel) ids.push_back(id);
    for (const uint64_t id : ids) end_lost(id, "lost the link");
}

void LinkCalls::stop() {
    while (!calls_.empty()) end_lost(calls_.begin()->first, "this node closes its link");
}

}  // namespace mainstay
