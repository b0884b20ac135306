#include "gateway/api.h"

#include "gateway/admin.h"
#include "gateway/cluster.h"
#include "gateway/conversations.h"
#include "gateway/responses.h"
#include "gateway/workers.h"

namespace mainstay {

struct Api::Handlers {
    Handlers(Bridge& bridge, ClusterAdmin* admin_of_cluster, Routes& routes)
        : responses(bridge, routes),
          conversations(bridge, routes),
          admin(bridge, routes),
          workers(bridge, routes),
          cluster(admin_of_cluster, routes) {}
    Responses responses;
    Conversations conversations;
    Admin admin;
    Workers workers;
    ClusterRoutes cluster;
};

Api::Api(Bridge& bridge, ClusterAdmin* cluster) : handlers_(std::make_unique<Handlers>(bridge, cluster, routes_)) {}
Api::~Api() = default;

}  // namespace mainstay
