#pragma once
// What operators ask of a cluster: its state, its nodes and shards, why something is where it is; and to drain, to
// move, and in the last resort to let one copy lead alone. Only with an admin's key. A node is named by its uuid or a
// unique beginning of it. On a node that is alone every route answers not_found and says why. Door thread only.

#include <functional>
#include <string>
#include <vector>

#include "cluster/cluster_admin.h"
#include "gateway/routes.h"

namespace mainstay {

class ClusterRoutes {
  public:
    /// Registers its routes; both outlive it. `cluster` null: there is none.
    ClusterRoutes(ClusterAdmin* cluster, Routes& routes);

  private:
    using Checked = void (ClusterRoutes::*)(const HttpRequest&, const PathParams&, const Reply&);
    void add(Routes& routes, HttpMethod method, std::string pattern, Checked handler);

    void status(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void list_nodes(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void read_node(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void drain(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void undrain(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void set_draining(const HttpRequest& request, const PathParams& params, const Reply& reply, bool on);
    void list_shards(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void read_shard(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void move(const HttpRequest& request, const PathParams& params, const Reply& reply);
    /// A session goes where its shard goes (docs/decisions/0021-a-session-moves-with-its-shard.md).
    void migrate(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void place(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void show_shard(std::string name, const Reply& reply);
    void move_to(ShardId shard, std::string to, const Reply& reply);
    void force_lead(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void decisions(const HttpRequest& request, const PathParams& params, const Reply& reply);

    /// Finds the node that `name` means among those of now, then calls `then` with it on the door's thread. Whatever is
    /// wrong with the name is told to `done`.
    template <class T>
    void with_node(const Reply& reply, std::string name, std::string param, ClusterAdmin::Answer<T> done,
                   std::function<void(const NodeUuid&, ClusterAdmin::Answer<T>)> then);

    ClusterAdmin* const cluster_;
};

/// The one node of `nodes` whose uuid begins with `name`, of at least 4 characters. node_not_found: none;
/// invalid_request: more than one, or no beginning of a uuid. Names what there is.
Result<ClusterNodeInfo> node_named(const std::vector<ClusterNodeInfo>& nodes, const std::string& name,
                                   const std::string& param);

}  // namespace mainstay
