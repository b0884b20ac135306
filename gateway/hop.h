#pragma once
// A request that came to the wrong node is answered by the right one. Every request is authenticated where it arrives
// and runs here first; what says `misdirected` or `shard_unavailable` is not told to the client, but sent on to the
// node that leads the shard, or waits until one does. One hop at most: who is sent on in vain comes back, and this door
// looks again.
//
// A hop whose link breaks may have taken effect. GET and DELETE are repeated all the same; what makes a turn or a
// conversation has a key, the client's or one that is given to it here and that the client never sees; everything else
// is answered with `internal` instead of being done twice. A turn that is lost because this node stepped down, and a
// stream whose node dies, go on in the same way (gateway/stream_splice.h).
//
// Bounds: hop_attempts_max runs without progress, hop_wait_ms of waiting for an owner without progress; then the error
// goes out. Door thread only, but for the callbacks of directory and caller, which come in through the Mailbox. A node
// without a directory has none of this.

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>

#include "cluster/link.h"
#include "cluster/shard_directory.h"
#include "gateway/bridge.h"
#include "gateway/exchange.h"
#include "gateway/hop_message.h"
#include "gateway/routes.h"
#include "gateway/stream_splice.h"

namespace mainstay {

/// How a request gets to another node: the link between nodes, or in tests anything.
class HopCaller {
  public:
    virtual ~HopCaller() = default;
    /// As Link::call with CallKind::hop, without a timeout: the client's own and the link's silence end it.
    virtual std::shared_ptr<LinkCall> call(const NodeUuid& to, std::string request,
                                           std::function<void(std::string part)> on_part,
                                           std::function<void(std::optional<Error>)> on_end) = 0;
};

/// What became of one hop.
enum class HopOutcome : uint8_t {
    answered,     // by the other node
    misdirected,  // the other node does not lead the shard either
    unreachable,  // there was no link, nothing was sent
    lost,         // the link broke, or the node lost the request: it may have taken effect
    refused,      // the other node does not serve hops, or its answer cannot be read
    cancelled,    // the client has gone
};
constexpr std::array<std::string_view, 6> hop_outcome_words = {"answered", "misdirected", "unreachable",
                                                               "lost",     "refused",     "cancelled"};

class HopMetrics {
  public:
    explicit HopMetrics(prometheus::Registry& registry);
    void ended(HopOutcome outcome, double seconds);
    void waiting(size_t requests) { waiting_.Set(static_cast<double>(requests)); }

  private:
    std::array<prometheus::Counter*, hop_outcome_words.size()> outcomes_;
    prometheus::Histogram& seconds_;
    prometheus::Gauge& waiting_;
};

class Hops;

/// One request, from the first door's point of view: between its connection and whoever answers it.
class Hop final : public AnswerPort, public StreamBody, public std::enable_shared_from_this<Hop> {
  public:
    Hop(Hops& hops, const HttpRequest& request, std::shared_ptr<AnswerPort> client, uint64_t serial);
    /// Runs it here for the first time. Gives the label of its route.
    size_t start();
    /// The connection needs nothing more of it: the call, if one is under way, is cancelled.
    void abandon();

    // From the handlers of this node.
    void answer(uint64_t serial, Answer answer) override;
    void begin_stream(uint64_t serial, std::shared_ptr<StreamBody> body) override;
    void stream_ready(uint64_t serial) override;

    // To the connection.
    std::string take() override { return std::exchange(splice_.out(), {}); }
    bool finished() const override { return splice_.finished(); }
    bool overflowed() const override { return overflowed_; }
    void closed() override { abandon(); }

    /// Of a request that waits for an owner.
    void look_again(uint64_t now_ms);

  private:
    bool may_be_repeated() const;
    size_t run_here();
    void run_there(const NodeUuid& node);
    void part_came(uint64_t attempt, const std::string& bytes);
    void call_ended(uint64_t attempt, const std::optional<Error>& failure);
    void end_call(HopOutcome outcome);
    void pump();
    void fed();
    void judge(Answer answer, bool from_peer);
    void look(Answer failed, std::optional<ShardId> shard);
    void deliver(Answer answer);
    void leave_source();
    void stop_waiting();

    Hops& hops_;
    std::shared_ptr<HopRequest> request_;  // gone with the answer
    std::shared_ptr<AnswerPort> client_;
    const uint64_t serial_;
    bool own_key_ = false;  // the request's key is this door's
    bool done_ = false;
    uint64_t attempt_ = 0;                        // tells what still comes of an earlier one
    uint32_t attempts_ = 0;                       // since there was progress last
    std::optional<ShardPlace> forgave_internal_;  // whose internal error was asked about again, last
    bool uncertain_ = false;                      // an earlier attempt may have taken effect, under the request's key
    std::optional<ShardId> shard_;
    ShardPlace tried_;  // last

    // Under way on another node.
    std::shared_ptr<LinkCall> call_;
    uint64_t called_at_us_ = 0;
    bool calling_ = false;
    std::optional<HopHead> head_;
    std::string body_;

    // Streaming.
    StreamSplice splice_;
    std::shared_ptr<StreamBody> local_;
    bool begun_ = false, overflowed_ = false;
    uint64_t events_seen_ = 0;

    // Waiting.
    Answer failed_;
    bool waiting_ = false;
    uint64_t not_before_ms_ = 0, waiting_since_ms_ = 0, waited_ms_ = 0;
    uint32_t looks_ = 0;
};

struct HopTimes {
    uint32_t wait_ms = 0;      // for an owner, without progress
    uint32_t back_off_ms = 0;  // between the first looks
};

/// What the hops of a door share.
class Hops {
  public:
    /// All that is given by reference outlives it.
    Hops(HopTimes times, ShardDirectory& shards, HopCaller& caller, Bridge& bridge, const Routes& routes,
         std::shared_ptr<Mailbox> mailbox, prometheus::Registry& registry);

    /// Runs the request; its answer goes to `client` under `serial`. Null: it was answered already.
    std::shared_ptr<Hop> begin(const HttpRequest& request, std::shared_ptr<AnswerPort> client, uint64_t serial,
                               size_t& route);
    /// Now and then, for what waits.
    void tick();
    bool waiting() const { return !waiting_.empty(); }
    /// Called when a request begins to wait: ticks are due until none does.
    std::function<void()> on_waiting;

  private:
    friend class Hop;
    void watch();
    void look_again();

    const HopTimes times_;
    ShardDirectory& shards_;
    HopCaller& caller_;
    Bridge& bridge_;
    const Routes& routes_;
    std::shared_ptr<Mailbox> mailbox_;
    HopMetrics metrics_;
    std::unordered_set<Hop*> waiting_;  // each kept by its connection
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
    bool watching_ = false;
};

}  // namespace mainstay
