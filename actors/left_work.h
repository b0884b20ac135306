#pragma once
// Tool calls and steps of upstream models that were under way when their session's shard left: they stay where they
// are, and whoever leads the shard next takes their outcomes (DECISIONS 21, docs/decisions/0025).
//
// One node: a session's actor that is told to go while something of it is under way stays as LeftBehind
// (actors/left_behind.h), without state of the session. Another, or the same again: an actor that begins with work
// under way asks every node for it before it recovers, and takes what is there as if it had begun it itself.
//
// Fenced by name and epoch: work is named by turn, number and attempt, was begun for something that is committed, and
// is given to the highest epoch that asked, above the one that it began in. The journal takes one outcome of each.
//
// Any thread; never blocks.

#include <prometheus/counter.h>
#include <prometheus/registry.h>

#include <array>
#include <atomic>
#include <caf/actor.hpp>
#include <caf/allowed_unsafe_message_type.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "actors/left_work_message.h"
#include "cluster/link.h"
#include "runtime/base/id.h"
#include "runtime/base/limits.h"

namespace mainstay {

/// What becomes of left work, for metrics.
enum class LeftCount : uint8_t {
    left,    // stayed behind here
    given,   // its outcome was given to who leads the session now
    kept,    // nobody asked for its outcome
    taken,   // of another node or an earlier epoch, by a session that begins here
    missed,  // taken, and its outcome did not come
};

/// The answer of a node that was asked. The last reference that goes ends it.
class LeftAnswer {
  public:
    explicit LeftAnswer(std::shared_ptr<CallReply> reply) : reply_(std::move(reply)) {}
    ~LeftAnswer() { reply_->end(); }
    LeftAnswer(const LeftAnswer&) = delete;
    LeftAnswer& operator=(const LeftAnswer&) = delete;

    void part(const LeftPart& part) {
        std::lock_guard lock(mutex_);
        reply_->part(encode_left_part(part));
    }
    /// In deltas that a message can hold.
    void said(const LeftName& work, std::string_view text);

  private:
    std::mutex mutex_;
    const std::shared_ptr<CallReply> reply_;
};

/// A question on its way to whoever may have something. When all of them have seen it, it says that it is answered.
struct LeftAsk {
    LeftAsk(ClaimLeftWork of, std::shared_ptr<CallReply> reply)
        : claim(std::move(of)), answer(std::make_shared<LeftAnswer>(std::move(reply))) {}
    ~LeftAsk() { answer->part(LeftListed{}); }
    LeftAsk(const LeftAsk&) = delete;
    LeftAsk& operator=(const LeftAsk&) = delete;

    const ClaimLeftWork claim;
    const std::shared_ptr<LeftAnswer> answer;
};
using LeftAskPtr = std::shared_ptr<const LeftAsk>;

/// To a session that asked: what a node answers.
struct LeftNews {
    uint64_t claim = 0;            // which asking
    uint32_t source = 0;           // which of its nodes
    std::optional<LeftPart> part;  // absent: nothing follows
    bool failed = false;           // ... because the link or the node did
};
using LeftNewsPtr = std::shared_ptr<LeftNews>;

struct LeftWorkConfig {
    NodeUuid self{};
    std::function<std::vector<NodeUuid>()> others;  // that live
    /// Asks another node, with calls of kind `left_work`; the rest as ClusterNode::call_node.
    std::function<std::shared_ptr<LinkCall>(const NodeUuid& to, std::string request,
                                            std::function<void(std::string part)> on_part,
                                            std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms)>
        call;
    std::function<caf::actor()> supervisor;  // of this node
    prometheus::Registry* registry = nullptr;
};

class LeftWork {
  public:
    explicit LeftWork(LeftWorkConfig config);

    /// A call of kind `left_work` of another node.
    void serve(std::string_view request, std::shared_ptr<CallReply> reply);

    /// Asks every node, this one first, on behalf of a session; the answers are LeftNews to `to`.
    struct Asked {
        NodeUuid node{};
        std::shared_ptr<LinkCall> call;  // null: of this node, or it has ended
    };
    std::vector<Asked> claim(const SessionKey& session, Epoch epoch, uint64_t claim, const caf::actor& to);
    /// One of them again, after its answer failed. Null: it does not live any more, and no news comes.
    std::shared_ptr<LinkCall> claim_again(const NodeUuid& node, const SessionKey& session, Epoch epoch, uint64_t claim,
                                          uint32_t source, const caf::actor& to);
    void cancel(const NodeUuid& at, const CancelLeftWork& cancel);

    /// Room for an outcome that is kept here; false: there is none.
    bool keep(size_t bytes) {
        if (kept_bytes_.fetch_add(bytes) + bytes <= limits::left_work_bytes_max) return true;
        kept_bytes_.fetch_sub(bytes);
        return false;
    }
    void let_go(size_t bytes) { kept_bytes_.fetch_sub(bytes); }

    void count(LeftCount what, size_t by = 1) { counters_[size_t(what)]->Increment(double(by)); }

  private:
    void ask_here(const ClaimLeftWork& claim, std::shared_ptr<CallReply> reply);
    std::shared_ptr<LinkCall> ask(const NodeUuid& node, const ClaimLeftWork& wanted, uint64_t claim, uint32_t source,
                                  const caf::actor& to);

    const LeftWorkConfig config_;
    std::array<prometheus::Counter*, 5> counters_{};
    std::atomic<size_t> kept_bytes_{0};
};

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::LeftAskPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::LeftNewsPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::CancelLeftWork)
