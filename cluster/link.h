#pragma once
// The links between nodes: replication messages one way, calls with answers in parts. A node dials every peer that it
// is told of, and what it sends goes over the connection that it dialled; answers to its calls come back on the same.
// Cap'n Proto RPC inside mutual TLS from the cluster's own CA (docs/formats/link.md).
//
// Invariants: who speaks is who its certificate says, of this cluster, and no older life of its process than one that
// was seen; nothing else reaches the handler. What waits for a peer and what is on its way to one is bounded in bytes
// (link_queue_bytes_max, link_window_bytes). Replication does not wait behind calls. Messages of one sender arrive in
// order; with a lost connection what it had is gone, so the protocol above repeats. A peer is crash-faulty, not
// hostile; a stranger may be anything.
//
// One thread of its own runs the only KJ event loop of the process; no KJ type leaves this room.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/coordinator.h"
#include "cluster/replication_message.h"
#include "runtime/base/result.h"

namespace mainstay {

struct LinkConfig {
    ClusterUuid cluster{};
    NodeUuid self{};
    uint64_t incarnation = 0;                         // of this process; frames carry it
    std::string host;                                 // that is bound
    uint16_t port = 0;                                // 0: any
    std::string ca_file, certificate_file, key_file;  // PEM (cluster/certificates.h makes them)
    std::string version;                              // of the release, for the peer's log
};

struct LinkPeer {
    NodeUuid node{};
    uint64_t incarnation = 0;  // of its lease; a process that says a lower one is refused
    std::string address;       // host:port
    friend bool operator==(const LinkPeer&, const LinkPeer&) = default;
};

/// What may be asked of another node. The list is closed: another number is refused.
enum class CallKind : uint8_t {
    hop = 1,         // an HTTP request for the owner
    shard = 2,       // an operation on a shard or session at its owner
    model_step = 3,  // a model step on the peer's devices
    kv = 4,          // KV blocks of sessions that are about to move, or are deleted
    left_work = 5,   // what goes on at the peer of a session that it led before
};
/// Whether `kind` is in the list.
constexpr bool known(CallKind kind) { return kind >= CallKind::hop && kind <= CallKind::left_work; }

/// One request of another node, to be answered in parts; from any thread, one at a time. Dropping it unanswered ends it
/// with an error at the caller.
class CallReply {
  public:
    virtual ~CallReply() = default;
    /// Arrives as one piece, in order. At most link_message_bytes_max; an answer that is larger, or that would make
    /// more than link_queue_bytes_max wait for the caller, ends the call with an error and cancels it. Never blocks.
    virtual void part(std::string bytes) = 0;
    /// Nothing follows. `failure` arrives with its code, message and param.
    virtual void end(std::optional<Error> failure = {}) = 0;
    /// Nobody waits for the answer any more: the caller cancelled it, gave up or is gone.
    virtual bool cancelled() const = 0;
};

/// Called on the link thread: must not block.
class LinkHandler {
  public:
    virtual ~LinkHandler() = default;
    /// A batch from `from`, in the order sent. Cluster, sending node and incarnation are those of the connection.
    virtual void replication(const NodeUuid& from, std::vector<ReplicationMessage> messages) = 0;
    /// `kind` is in the list; answered through `reply`, now or later, from any thread.
    virtual void call(const NodeUuid& from, CallKind kind, std::string request, std::shared_ptr<CallReply> reply) = 0;
    /// The connection that this node dialled can be used, or not any more.
    virtual void peer_up(const NodeUuid&, uint64_t /*incarnation*/) {}
    virtual void peer_down(const NodeUuid&) {}
};

/// A call under way. Dropping the handle does not cancel it.
struct LinkCall {
    virtual ~LinkCall() = default;
    /// Any thread. Its end is reported with turn_cancelled unless it had ended already; no part arrives after that.
    virtual void cancel() = 0;
};

/// Asks another node for an answer that is used whole; never blocks. `done` comes once, on any thread.
using AskNode = std::function<void(const NodeUuid& to, std::string request, uint32_t timeout_ms,
                                   std::function<void(Result<std::string>)> done)>;

/// Totals since open(), but for those that stand as they are.
struct LinkStats {
    // as they stand
    uint64_t peers_connected = 0;       // dialled and usable
    uint64_t connections_accepted = 0;  // usable
    uint64_t handshakes = 0;            // accepted and not yet known
    uint64_t calls_under_way = 0;       // asked by this node
    uint64_t calls_served = 0;          // being answered by this node
    uint64_t queue_bytes = 0;           // waiting for a window, both directions
    uint64_t window_bytes = 0;          // sent and not taken by the peer
    uint64_t assembly_bytes = 0;        // received parts of messages that are not whole
    // replication
    uint64_t messages_sent = 0, messages_received = 0;
    uint64_t messages_dropped_no_link = 0, messages_dropped_queue_full = 0, messages_dropped_too_large = 0;
    uint64_t messages_dropped_link_lost = 0;  // were waiting when the connection ended
    // frames, of all kinds
    uint64_t frames_sent = 0, frames_received = 0;
    uint64_t bytes_sent = 0, bytes_received = 0;  // payloads
    // connections
    uint64_t dials = 0, dials_failed = 0, links_lost = 0;
    uint64_t silences = 0;  // cut off after link_silence_ms
    // refused: what was said by whom did not hold. Nothing of it reached the handler.
    uint64_t refused_connections = 0;  // beyond link_connections_max, of all or of one address
    uint64_t refused_tls = 0;          // no TLS, no certificate, or of another CA
    uint64_t refused_handshake = 0;    // said nothing or not enough within link_handshake_ms
    uint64_t refused_identity = 0;     // the certificate is another node's
    uint64_t refused_cluster = 0;
    uint64_t refused_incarnation = 0;
    uint64_t refused_format = 0;
    uint64_t refused_frame = 0;    // unknown type, damaged, beyond a bound: its connection ends
    uint64_t refused_message = 0;  // a replication message in another's name: it is left out
    uint64_t refused_call = 0;     // unknown kind, or beyond link_calls_max
    uint64_t refused() const {
        return refused_connections + refused_tls + refused_handshake + refused_identity + refused_cluster +
               refused_incarnation + refused_format + refused_frame + refused_message + refused_call;
    }
};

class Link {
  public:
    /// Listens and starts the link's thread. `handler` outlives it. Errors: invalid_request for files that cannot be
    /// read or do not belong to `self`, internal for an address that cannot be bound.
    static Result<std::unique_ptr<Link>> open(LinkConfig config, LinkHandler& handler);
    /// Ends every call (their on_end is called) and connection. Not from the link's thread.
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    /// That it listens on.
    uint16_t port() const;

    /// Any thread. Dials them, again and again with back-off (link_reconnect_*), and drops those no longer named. This
    /// node is left out.
    void set_peers(std::vector<LinkPeer> peers);

    /// Any thread; never blocks. Gathered into frames. Dropped and counted where there is no link, the queue is full or
    /// a message is larger than link_message_bytes_max.
    void send(const NodeUuid& to, std::vector<ReplicationMessage> messages);

    /// Asks another node; any thread, never blocks. `on_part` for each part of the answer, in order, then `on_end`
    /// exactly once, both on the link thread, where they must not block. How it may end without an answer of the peer:
    /// misdirected: nothing was sent, because there is no link (any more); body_too_large: `request` is larger than
    /// link_message_bytes_max; shard_unavailable: the link was lost, `timeout_ms` (0: none) is over, or a bound
    /// (link_calls_max, link_queue_bytes_max) was reached, and the peer may have acted or not; turn_cancelled;
    /// peer_refused: the peer does not serve this.
    std::shared_ptr<LinkCall> call(const NodeUuid& to, CallKind kind, std::string request,
                                   std::function<void(std::string part)> on_part,
                                   std::function<void(std::optional<Error>)> on_end, uint32_t timeout_ms);

    /// Any thread.
    bool connected(const NodeUuid& node) const;
    LinkStats stats() const;

  private:
    class Core;
    explicit Link(std::unique_ptr<Core> core);
    std::unique_ptr<Core> core_;
};

}  // namespace mainstay
