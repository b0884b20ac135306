#pragma once
// Nodes with links in one process: certificates of one cluster, handlers that remember what they were told, and waiting
// for a condition instead of for a time.

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "cluster/certificates.h"
#include "cluster/link.h"
#include "support/scratch_directory.h"

namespace mainstay {

inline NodeUuid link_node(uint8_t number) {
    NodeUuid node{};
    node[0] = number;
    node[15] = uint8_t(255 - number);
    return node;
}

/// Whether it became true; the bound is for what hangs, not for what is slow.
inline bool eventually(const std::function<bool()>& condition, int seconds = 60) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > until) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

/// A CA, and folders of nodes that it has certified.
struct LinkCluster {
    ScratchDirectory directory;
    ClusterUuid uuid{};

    LinkCluster() {
        auto made = make_cluster(directory / "ca");
        REQUIRE(made);
        uuid = *made;
    }
    std::string folder(uint8_t node) {
        const std::string out = directory / ("node" + std::to_string(node));
        if (!read_certificate(out + "/node.pem"))
            REQUIRE(make_node_certificate(directory / "ca", link_node(node), out));
        return out;
    }
    LinkConfig config(uint8_t node, uint64_t incarnation = 1, uint16_t port = 0) {
        const std::string at = folder(node);
        return {uuid,           link_node(node),  incarnation,      "127.0.0.1", port,
                at + "/ca.pem", at + "/node.pem", at + "/node.key", "1"};
    }
};

/// Counts and keeps what it is told; a call is answered by `serve`.
class LinkWitness : public LinkHandler {
  public:
    using Serve = std::function<void(CallKind, std::string, std::shared_ptr<CallReply>)>;
    Serve serve = [](CallKind, std::string request, std::shared_ptr<CallReply> reply) {
        reply->part(std::move(request));
        reply->end();
    };
    std::function<void(const std::vector<ReplicationMessage>&)> look;  // link thread

    void replication(const NodeUuid& from, std::vector<ReplicationMessage> messages) override {
        if (look) look(messages);
        const std::lock_guard lock(mutex_);
        for (ReplicationMessage& message : messages) messages_[from].push_back(std::move(message));
    }
    void call(const NodeUuid&, CallKind kind, std::string request, std::shared_ptr<CallReply> reply) override {
        ++calls;
        serve(kind, std::move(request), std::move(reply));
    }
    void peer_up(const NodeUuid& node, uint64_t incarnation) override {
        const std::lock_guard lock(mutex_);
        up_[node] = incarnation;
    }
    void peer_down(const NodeUuid& node) override {
        const std::lock_guard lock(mutex_);
        up_.erase(node);
        ++downs;
    }

    std::vector<ReplicationMessage> from(uint8_t node) const {
        const std::lock_guard lock(mutex_);
        const auto found = messages_.find(link_node(node));
        return found == messages_.end() ? std::vector<ReplicationMessage>() : found->second;
    }
    size_t count(uint8_t node) const {
        const std::lock_guard lock(mutex_);
        const auto found = messages_.find(link_node(node));
        return found == messages_.end() ? 0 : found->second.size();
    }
    /// 0: it is not up.
    uint64_t up(uint8_t node) const {
        const std::lock_guard lock(mutex_);
        const auto found = up_.find(link_node(node));
        return found == up_.end() ? 0 : found->second;
    }
    std::atomic<size_t> calls{0}, downs{0};

  private:
    mutable std::mutex mutex_;
    std::map<NodeUuid, std::vector<ReplicationMessage>> messages_;
    std::map<NodeUuid, uint64_t> up_;
};

/// One node with its link.
struct LinkNode {
    LinkWitness witness;
    LinkConfig config;
    std::unique_ptr<Link> link;

    explicit LinkNode(LinkConfig given) : config(std::move(given)) { open(); }
    void open() {
        auto opened = Link::open(config, witness);
        REQUIRE_MESSAGE(opened, (opened ? "" : opened.error().message));
        link = std::move(opened).value();
    }
    LinkPeer peer() const { return {config.self, config.incarnation, "127.0.0.1:" + std::to_string(link->port())}; }
    LinkStats stats() const { return link->stats(); }
};

inline void meet(std::vector<LinkNode*> nodes) {
    std::vector<LinkPeer> peers;
    for (const LinkNode* node : nodes) peers.push_back(node->peer());
    for (LinkNode* node : nodes) node->link->set_peers(peers);
    for (LinkNode* one : nodes)
        for (LinkNode* other : nodes)
            if (one != other)
                // The handler is told just after the link is there for senders.
                REQUIRE(eventually([&] {
                    return one->link->connected(other->config.self) && one->witness.up(other->config.self[0]) != 0;
                }));
}

/// Numbered, with `bytes` of payload, from one node to another.
inline ReplicationMessage numbered(const LinkNode& from, const LinkNode& to, uint64_t number, size_t bytes = 100) {
    AppendEntries body;
    body.epoch = Epoch(1);
    body.round = number;
    body.entries.push_back({Epoch(1), number + 1, EntryKind::record, number,
                            std::make_shared<const std::string>(bytes, char('a' + number % 26))});
    return {from.config.cluster,     ShardId(1),     {from.config.self, {}}, {to.config.self, {}},
            from.config.incarnation, std::move(body)};
}

inline uint64_t number_of(const ReplicationMessage& message) { return std::get<AppendEntries>(message.body).round; }

/// A call and what came of it.
class CallWitness {
  public:
    std::shared_ptr<LinkCall> start(Link& link, const NodeUuid& to, CallKind kind, std::string request,
                                    uint32_t timeout_ms = 0) {
        handle_ = link.call(
            to, kind, std::move(request),
            [this](std::string bytes) {
                if (slow) slow();
                const std::lock_guard lock(mutex_);
                ++parts_;
                bytes_ += bytes.size();
                if (keep) text_ += bytes;
                after_end_ = after_end_ || ends_ != 0;
            },
            [this](std::optional<Error> failure) {
                const std::lock_guard lock(mutex_);
                ++ends_;
                failure_ = std::move(failure);
            },
            timeout_ms);
        return handle_;
    }
    bool ended() const {
        const std::lock_guard lock(mutex_);
        return ends_ != 0;
    }
    /// Once, nothing after it, and with this code (nothing: with success).
    bool ended_with(std::optional<ErrorCode> code) const {
        if (!eventually([&] { return ended(); })) return false;
        const std::lock_guard lock(mutex_);
        if (ends_ != 1 || after_end_ || failure_.has_value() != code.has_value()) return false;
        return !failure_ || failure_->code == *code;
    }
    std::string text() const {
        const std::lock_guard lock(mutex_);
        return text_;
    }
    std::string message() const {
        const std::lock_guard lock(mutex_);
        return failure_ ? failure_->message : "";
    }
    size_t bytes() const {
        const std::lock_guard lock(mutex_);
        return bytes_;
    }
    size_t parts() const {
        const std::lock_guard lock(mutex_);
        return parts_;
    }
    bool keep = true;
    std::function<void()> slow;

  private:
    mutable std::mutex mutex_;
    std::shared_ptr<LinkCall> handle_;
    std::string text_;
    size_t parts_ = 0, bytes_ = 0, ends_ = 0;
    bool after_end_ = false;
    std::optional<Error> failure_;
};

}  // namespace mainstay
