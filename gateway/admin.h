#pragma once
// What operators and the command line ask: agents, models, sessions with their events, unknown outcomes, health and
// metrics. Door thread only.

#include "gateway/bridge.h"
#include "gateway/routes.h"

namespace mainstay {

class Admin {
  public:
    /// Registers its routes; both outlive it.
    Admin(Bridge& bridge, Routes& routes);

  private:
    void list_models(const HttpRequest& request, const Reply& reply);
    void read_model(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void list_agents(const HttpRequest& request, const Reply& reply);
    void read_agent(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void apply_agent(const HttpRequest& request, const Reply& reply);
    void list_sessions(const HttpRequest& request, const Reply& reply);
    void read_session(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void list_events(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void delete_session(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void resolve_call(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void ready(const Reply& reply);

    Bridge& bridge_;
};

}  // namespace mainstay
