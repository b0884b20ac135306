#pragma once
// /v1/conversations: a conversation is a session, one id. Made, read, given metadata or items, deleted. Door thread
// only.

#include "gateway/bridge.h"
#include "gateway/routes.h"

namespace mainstay {

class Conversations {
  public:
    /// Registers its routes; both outlive it.
    Conversations(Bridge& bridge, Routes& routes);

  private:
    void create(const HttpRequest& request, const Reply& reply);
    void read(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void update(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void remove(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void list_items(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void add_items(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void read_item(const HttpRequest& request, const PathParams& params, const Reply& reply);

    Bridge& bridge_;
};

}  // namespace mainstay
