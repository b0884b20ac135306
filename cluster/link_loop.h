#pragma once
// The inside of a link: what its threads share, and the loop that owns peers, connections and calls. Everything of KJ
// is made, used and destroyed on the link's thread; the rest of the process reaches it by commands and channels.

#include <atomic>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "cluster/link.h"
#include "cluster/link_channel.h"
#include "cluster/link_counters.h"

namespace mainstay {

/// A call of this node until its end is reported.
struct CallUnderWay {
    uint64_t id = 0;
    NodeUuid to{};
    std::shared_ptr<Channel> channel;  // that its request went to; null: there was no link
    std::function<void(std::string)> on_part;
    std::function<void(std::optional<Error>)> on_end;
    uint32_t timeout_ms = 0;
};

struct SetPeers {
    std::vector<LinkPeer> peers;
};
struct BeginCall {
    CallUnderWay call;
};
/// Ends it from this side, if it has not ended yet.
struct AbandonCall {
    uint64_t id = 0;
    Error why;
};
struct StopLink {};
using LinkCommand = std::variant<SetPeers, BeginCall, AbandonCall, StopLink>;

/// What every thread may touch.
class LinkShared {
  public:
    LinkShared(LinkConfig given, LinkHandler& receiver) : config(std::move(given)), handler(receiver) {}

    const LinkConfig config;
    LinkHandler& handler;  // of the link's thread only
    const std::shared_ptr<Doorbell> bell = std::make_shared<Doorbell>();
    const std::shared_ptr<LinkCounters> counters = std::make_shared<LinkCounters>();
    std::atomic<uint64_t> calls{0};  // ids given

    void command(LinkCommand one);
    std::vector<LinkCommand> take_commands();

    /// Null where there is no link.
    std::shared_ptr<Channel> channel(const NodeUuid& to) const;
    void set_channel(const NodeUuid& to, std::shared_ptr<Channel> channel);

  private:
    mutable std::mutex mutex_;
    std::vector<LinkCommand> commands_;
    std::map<NodeUuid, std::shared_ptr<Channel>> channels_;
};

/// The link's thread: listens, reports the port or why there is none, runs until StopLink.
void run_link(const std::shared_ptr<LinkShared>& shared, std::promise<Result<uint16_t>> listening);

}  // namespace mainstay
