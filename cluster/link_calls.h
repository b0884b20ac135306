#pragma once
// The calls of this node that have not ended. Each ends exactly once: by its answer, its caller, its time or the loss
// of its link. Of the link's thread.

#include <kj/async.h>

#include <cstdint>
#include <map>

#include "cluster/link_connection.h"

namespace mainstay {

class LinkCalls {
  public:
    explicit LinkCalls(LinkContext& context) : context_(context) {}

    void begin(CallUnderWay call);
    /// Of a call that has ended: ignored, and false.
    bool known(uint64_t id) const { return calls_.count(id) != 0; }
    void part(uint64_t id, std::string bytes);
    void end(uint64_t id, std::optional<Error> failure);
    /// Ended from this side: the peer hears of it.
    void abandon(uint64_t id, Error why);
    /// Bytes of its request are on their way.
    void sent(uint64_t id);
    /// Ends all that went that way.
    void lost(const Channel& channel);
    /// Ends all.
    void stop();

  private:
    struct Open {
        CallUnderWay call;
        bool sent = false;
        kj::Promise<void> deadline;
    };
    void end_lost(uint64_t id, const char* why);

    LinkContext& context_;
    std::map<uint64_t, Open> calls_;
    std::map<const Channel*, size_t> per_channel_;
};

}  // namespace mainstay
