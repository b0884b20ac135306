#include "cluster/link_channel.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/invariant.h"

namespace mainstay {

Doorbell::Doorbell() : descriptor_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    INVARIANT(descriptor_ >= 0, "no descriptor for the link's bell");
}

Doorbell::~Doorbell() { ::close(descriptor_); }

void Doorbell::ring(std::shared_ptr<Channel> channel) {
    const std::lock_guard lock(mutex_);
    if (channel) channels_.push_back(std::move(channel));
    if (std::exchange(rung_, true)) return;
    const uint64_t one = 1;
    // Fails only where the counter is full, and then it is readable.
    [[maybe_unused]] const auto written = ::write(descriptor_, &one, sizeof one);
}

void Doorbell::ring() { ring(nullptr); }

std::vector<std::shared_ptr<Channel>> Doorbell::take() {
    const std::lock_guard lock(mutex_);
    uint64_t count = 0;
    if (std::exchange(rung_, false)) [[maybe_unused]]
        const auto read = ::read(descriptor_, &count, sizeof count);
    return std::exchange(channels_, {});
}

Channel::Channel(std::shared_ptr<Doorbell> bell, std::shared_ptr<LinkCounters> counters)
    : bell_(std::move(bell)), counters_(std::move(counters)) {}

Channel::~Channel() { release(bytes()); }

void Channel::release(size_t bytes) {
    bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    counters_->queue_bytes -= bytes;
}

template <class T>
Channel::Put Channel::add(T one, std::vector<T> Inbox::*to, size_t cost, bool always) {
    bool ring = false;
    {
        const std::lock_guard lock(mutex_);
        if (closed_) return Put::closed;
        if (!always && bytes() + cost > limits::link_queue_bytes_max) return Put::full;
        bytes_.fetch_add(cost, std::memory_order_relaxed);
        counters_->queue_bytes += cost;
        (inbox_.*to).push_back(std::move(one));
        ring = !std::exchange(rung_, true);
    }
    if (ring) bell_->ring(shared_from_this());
    return Put::taken;
}

Channel::Put Channel::put(EncodedMessage message) {
    const size_t cost = LinkQueue::cost(message);
    return add(std::move(message), &Inbox::messages, cost, false);
}

Channel::Put Channel::put(CallItem item) {
    const size_t cost = item.cost();
    const bool always = item.type == FrameType::end || item.type == FrameType::cancel;
    return add(std::move(item), &Inbox::items, cost, always);
}

Channel::Inbox Channel::take() {
    const std::lock_guard lock(mutex_);
    rung_ = false;
    return std::exchange(inbox_, {});
}

Channel::Inbox Channel::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    return std::exchange(inbox_, {});
}

}  // namespace mainstay
