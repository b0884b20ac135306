#include "gateway/api.h"

#include "gateway/admin.h"
#include "gateway/conversations.h"
#include "gateway/responses.h"
#include "gateway/workers.h"

namespace mainstay {

struct Api::Handlers {
    Handlers(Bridge& bridge, Routes& routes)
        : responses(bridge, routes), conversations(bridge, routes), admin(bridge, routes), workers(bridge, routes) {}
    Responses responses;
    Conversations conversations;
    Admin admin;
    Workers workers;
};

Api::Api(Bridge& bridge) : handlers_(std::make_unique<Handlers>(bridge, routes_)) {}
Api::~Api() = default;

}  // namespace mainstay
