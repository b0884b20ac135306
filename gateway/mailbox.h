#pragma once
// The way into the door's thread from actors and the store: pushed tasks run in order on the door's thread. A push is
// one compare-and-swap; the door is woken only when the box was empty, so a burst of answers costs one wake. It
// outlives the door: what is pushed after close() is destroyed unrun by whoever pushed it.

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

namespace mainstay {

class MailboxTask {
  public:
    virtual ~MailboxTask() = default;
    virtual void run() = 0;

  private:
    friend class Mailbox;
    MailboxTask* next_ = nullptr;
};

class Mailbox {
  public:
    /// `wake` may be called from any thread, also after the door is gone; it makes the door's thread call drain().
    explicit Mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}
    ~Mailbox() { discard(); }
    Mailbox(const Mailbox&) = delete;
    Mailbox& operator=(const Mailbox&) = delete;

    void push(std::unique_ptr<MailboxTask> task) {
        MailboxTask* raw = task.release();
        MailboxTask* head = head_.load(std::memory_order_relaxed);
        do raw->next_ = head;
        while (!head_.compare_exchange_weak(head, raw, std::memory_order_seq_cst, std::memory_order_relaxed));
        // The closer sets the flag before it takes what is there, so one of the two sees this task.
        if (closed_.load(std::memory_order_seq_cst))
            discard();
        else if (head == nullptr)
            wake_();
    }
    template <class Function>
    void post(Function function) {
        struct Task final : MailboxTask {
            explicit Task(Function&& f) : function(std::move(f)) {}
            void run() override { function(); }
            Function function;
        };
        push(std::make_unique<Task>(std::move(function)));
    }

    /// Door thread: runs everything that is there, oldest first.
    void drain() {
        MailboxTask* list = reversed(head_.exchange(nullptr, std::memory_order_seq_cst));
        while (list != nullptr) {
            std::unique_ptr<MailboxTask> task(std::exchange(list, list->next_));
            task->run();
        }
    }
    void close() {
        closed_.store(true, std::memory_order_seq_cst);
        discard();
    }

  private:
    static MailboxTask* reversed(MailboxTask* list) {
        MailboxTask* out = nullptr;
        while (list != nullptr) {
            MailboxTask* next = list->next_;
            list->next_ = out;
            out = std::exchange(list, next);
        }
        return out;
    }
    void discard() {
        MailboxTask* list = reversed(head_.exchange(nullptr, std::memory_order_seq_cst));
        while (list != nullptr) delete std::exchange(list, list->next_);
    }

    std::function<void()> wake_;
    std::atomic<MailboxTask*> head_{nullptr};
    std::atomic<bool> closed_{false};
};

}  // namespace mainstay
