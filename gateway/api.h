#pragma once
// All handlers of the door over one Bridge, joined to the table of routes. Door thread only; callbacks of the bridge
// come back through the Mailbox.

#include <memory>

#include "gateway/bridge.h"
#include "gateway/routes.h"

namespace mainstay {

class ClusterAdmin;

class Api {
  public:
    /// `cluster` null: the node is alone. Both outlive it.
    explicit Api(Bridge& bridge, ClusterAdmin* cluster = nullptr);
    ~Api();
    Api(const Api&) = delete;
    Api& operator=(const Api&) = delete;

    const Routes& routes() const { return routes_; }

  private:
    struct Handlers;
    Routes routes_;  // before the handlers, which register themselves
    std::unique_ptr<Handlers> handlers_;
};

}  // namespace mainstay
