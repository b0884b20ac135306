#pragma once
// The way from any thread into the link's thread: what is to be sent over one connection, and the bell that wakes the
// thread. Bytes are counted from the moment they are put here until they are in a frame, so the bound holds for both.
// After close() nothing is taken.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cluster/link_counters.h"
#include "cluster/link_queue.h"
#include "runtime/base/limits.h"

namespace mainstay {

class Channel;

/// What the link's thread has been told since it last looked. Any thread.
class Doorbell {
  public:
    Doorbell();
    ~Doorbell();
    Doorbell(const Doorbell&) = delete;
    Doorbell& operator=(const Doorbell&) = delete;

    /// Readable while there is something to take.
    int descriptor() const { return descriptor_; }
    /// A channel has something to send.
    void ring(std::shared_ptr<Channel> channel);
    /// Something else has to be done.
    void ring();
    /// Of the link's thread, before it looks.
    std::vector<std::shared_ptr<Channel>> take();

  private:
    const int descriptor_;
    std::mutex mutex_;
    bool rung_ = false;
    std::vector<std::shared_ptr<Channel>> channels_;
};

class Channel : public std::enable_shared_from_this<Channel> {
  public:
    Channel(std::shared_ptr<Doorbell> bell, std::shared_ptr<LinkCounters> counters);
    ~Channel();
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    enum class Put : uint8_t { taken, full, closed };
    /// Any thread.
    Put put(EncodedMessage message);
    /// Any thread. What ends or cancels a call is taken even where the queue is full: there is one for each call.
    Put put(CallItem item);

    struct Inbox {
        std::vector<EncodedMessage> messages;
        std::vector<CallItem> items;
    };
    /// Link's thread: what was put since.
    Inbox take();
    /// Link's thread: this much is in frames, or was dropped.
    void release(size_t bytes);
    /// Link's thread. Returns what was put and not taken.
    Inbox close();
    bool closed() const { return closed_.load(std::memory_order_relaxed); }
    size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  private:
    template <class T>
    Put add(T one, std::vector<T> Inbox::*to, size_t cost, bool always);

    const std::shared_ptr<Doorbell> bell_;
    const std::shared_ptr<LinkCounters> counters_;
    std::atomic<size_t> bytes_{0};
    std::atomic<bool> closed_{false};  // set under the mutex
    std::mutex mutex_;
    bool rung_ = false;
    Inbox inbox_;
};

}  // namespace mainstay
