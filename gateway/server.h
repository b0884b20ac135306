#pragma once
// The HTTP door: one thread, one io_context, one coroutine a connection. It owns sockets, framing, deadlines and
// bounds; what a request means is Routes' business. Everything of a connection happens on the thread that calls run();
// answers from other threads come in through the Mailbox. Requests of a connection are answered in order, each by one
// write.
//
// Deadlines cost nothing per request: a connection only notes when it must have moved, and one tick looks at all.

#include <prometheus/registry.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gateway/bridge.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"

namespace mainstay {

class ClusterAdmin;
class HopCaller;
class HopServer;
class ShardDirectory;

struct DoorConfig {
    std::string host = "127.0.0.1";  // address, or localhost
    uint16_t port = 0;               // 0: any free one
    std::string admin_key;
    std::vector<std::string> allowed_hosts;  // names in Host beside localhost, 127.0.0.1 and [::1]
    bool public_health = true;  // /healthz /readyz /metrics without a key; only ever on a loopback listener
    size_t body_bytes_max = limits::http_body_bytes_max;
    size_t connections_max = limits::http_connections_max;
    uint32_t header_timeout_ms = limits::http_header_timeout_ms;
    uint32_t body_timeout_ms = limits::http_body_timeout_ms;
    uint32_t write_timeout_ms = limits::http_write_timeout_ms;
    uint32_t idle_timeout_ms = limits::http_idle_timeout_ms;
    uint32_t sse_comment_interval_ms = limits::sse_comment_interval_ms;
    uint32_t drain_ms = 30'000;  // how long stop() waits for requests in flight
    uint32_t tick_ms = 100;      // deadlines are late by at most this
    /// Of a node that is not alone: where requests belong, and how they get there (gateway/hop.h). Both or neither;
    /// they outlive the door.
    ShardDirectory* shards = nullptr;
    HopCaller* hop_caller = nullptr;
    uint32_t hop_wait_ms = limits::hop_wait_ms;
    uint32_t hop_back_off_ms = 50;  // between the first looks for an owner; doubled up to forty times that
    /// What operators ask of the cluster (gateway/cluster.h); outlives the door. Null: the node is alone.
    ClusterAdmin* cluster = nullptr;
};

class Door {
  public:
    /// `bridge` and `registry` outlive the door. Names in the registry begin with mainstay_http_.
    Door(DoorConfig config, Bridge& bridge, prometheus::Registry& registry);
    ~Door();
    Door(const Door&) = delete;
    Door& operator=(const Door&) = delete;

    /// Binds and listens; connections wait until run(). Errors: invalid_request (an address that is none, a port that
    /// is taken).
    Result<void> start();
    /// Serves on the calling thread until stop() was called and the last connection is gone. Call once.
    void run();
    /// From any thread: no new connections, requests in flight are answered, then run() returns. A second call cuts off
    /// what is left.
    void stop();
    /// The port that is listened on; 0 before start().
    uint16_t port() const;
    /// Where calls of other doors end; takes them from construction on, answers them while the door runs. Null: the
    /// node is alone.
    const std::shared_ptr<HopServer>& hop_server() const;

    class Core;  // the implementation, named here for its connections

  private:
    std::shared_ptr<Core> core_;
};

}  // namespace mainstay
