#include "cluster/link.h"

#include <doctest/doctest.h>

#include "cluster/link_fixture.h"
#include "runtime/base/limits.h"

using namespace mainstay;

TEST_CASE("link: two nodes exchange messages and calls both ways") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2, 7));
    meet({&one, &two});
    CHECK(one.witness.up(2) == 7);
    one.link->send(two.config.self, {numbered(one, two, 1), numbered(one, two, 2)});
    two.link->send(one.config.self, {numbered(two, one, 3)});
    REQUIRE(eventually([&] { return two.witness.count(1) == 2 && one.witness.count(2) == 1; }));
    CHECK(number_of(two.witness.from(1)[1]) == 2);
    CHECK(std::get<AppendEntries>(one.witness.from(2)[0].body).entries[0].bytes() == std::string(100, 'd'));
    CallWitness there, back;
    there.start(*one.link, two.config.self, CallKind::hop, "question");
    back.start(*two.link, one.config.self, CallKind::model_step, "");
    CHECK(there.ended_with({}));
    CHECK(there.text() == "question");
    CHECK(back.ended_with({}));
    CHECK(back.parts() == 1);
    CHECK(one.stats().messages_sent == 2);
    CHECK(two.stats().messages_received == 2);
    CHECK(one.stats().refused() + two.stats().refused() == 0);
    REQUIRE(eventually([&] {
        return one.stats().queue_bytes + one.stats().window_bytes + two.stats().queue_bytes +
                   two.stats().window_bytes ==
               0;
    }));
    CHECK(one.stats().calls_under_way + one.stats().calls_served + two.stats().calls_under_way +
              two.stats().calls_served ==
          0);
}

TEST_CASE("link: three nodes, each message once, from whom it is, and in order") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2)), three(cluster.config(3));
    const std::vector<LinkNode*> nodes{&one, &two, &three};
    meet(nodes);
    constexpr uint64_t rounds = 3000;
    for (uint64_t i = 0; i < rounds; ++i)
        for (LinkNode* from : nodes)
            for (LinkNode* to : nodes)
                if (from != to)
                    from->link->send(to->config.self, {numbered(*from, *to, i, i % 50 == 0 ? 400'000 : 20)});
    for (size_t to = 0; to < 3; ++to)
        for (uint8_t from = 1; from <= 3; ++from) {
            if (from == to + 1) continue;
            REQUIRE(eventually([&] { return nodes[to]->witness.count(from) == rounds; }));
            const auto messages = nodes[to]->witness.from(from);
            for (uint64_t i = 0; i < rounds; ++i) REQUIRE(number_of(messages[i]) == i);
        }
}

TEST_CASE("link: a node that starts again is met again, in its new life only") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1));
    auto two = std::make_unique<LinkNode>(cluster.config(2, 5));
    meet({&one, two.get()});
    const uint16_t port = two->link->port();
    two.reset();
    REQUIRE(eventually([&] { return !one.link->connected(link_node(2)); }));
    REQUIRE(eventually([&] { return one.witness.downs == 1; }));
    CHECK(one.stats().links_lost == 1);
    LinkNode again(cluster.config(2, 6, port));  // one finds it where it was, without being told
    REQUIRE(eventually([&] { return one.witness.up(2) == 6; }));
    again.link->set_peers({one.peer()});
    REQUIRE(eventually([&] { return again.link->connected(one.config.self); }));
    one.link->send(again.config.self, {numbered(one, again, 1)});
    REQUIRE(eventually([&] { return again.witness.count(1) == 1; }));
    // The old life comes back from the dead, at another port: nobody listens to it, and it is not dialled.
    LinkNode ghost(cluster.config(2, 5));
    ghost.link->set_peers({one.peer()});
    REQUIRE(eventually([&] { return one.stats().refused_incarnation >= 1; }));
    CHECK_FALSE(ghost.link->connected(one.config.self));
    one.link->set_peers({ghost.peer()});
    REQUIRE(eventually([&] { return !one.link->connected(link_node(2)) && one.stats().dials_failed >= 1; }));
    CHECK_FALSE(one.link->connected(link_node(2)));
    CHECK(ghost.witness.count(1) == 0);
}

TEST_CASE("link: peers that are no longer named are dropped, and what is sent to nobody is counted") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    meet({&one, &two});
    one.link->set_peers({one.peer()});  // itself is no peer
    REQUIRE(eventually([&] { return !one.link->connected(two.config.self); }));
    one.link->send(two.config.self, {numbered(one, two, 1), numbered(one, two, 2)});
    CHECK(one.stats().messages_dropped_no_link == 2);
    CallWitness call;
    call.start(*one.link, two.config.self, CallKind::hop, "x");
    CHECK(call.ended_with(ErrorCode::misdirected));
    CHECK(one.stats().peers_connected == 0);
    CHECK(two.witness.calls == 0);
}

TEST_CASE("link: messages of 4 MiB and of a record more pass whole, larger ones are dropped and counted") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    meet({&one, &two});
    ReplicationMessage large = numbered(one, two, 1, limits::replication_message_bytes_max);
    auto& body = std::get<AppendEntries>(large.body);
    std::string bytes(limits::record_bytes_max, '\0');
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(i * 2654435761u >> 13);
    body.entries.push_back({Epoch(1), 3, EntryKind::record, 3, std::make_shared<const std::string>(bytes)});
    ReplicationMessage huge = numbered(one, two, 2, limits::link_message_bytes_max);
    one.link->send(two.config.self, {huge, large, numbered(one, two, 3)});
    REQUIRE(eventually([&] { return two.witness.count(1) == 2; }));
    const auto messages = two.witness.from(1);
    const auto& entries = std::get<AppendEntries>(messages[0].body).entries;
    REQUIRE(entries.size() == 2);
    CHECK(entries[0].bytes() == body.entries[0].bytes());
    CHECK(entries[1].bytes() == bytes);
    CHECK(number_of(messages[1]) == 3);
    CHECK(one.stats().messages_dropped_too_large == 1);
    CallWitness call;
    call.start(*one.link, two.config.self, CallKind::hop, std::string(limits::link_message_bytes_max + 1, 'x'));
    CHECK(call.ended_with(ErrorCode::body_too_large));
    CallWitness fits;
    fits.start(*one.link, two.config.self, CallKind::hop, std::string(limits::link_message_bytes_max, 'x'));
    CHECK(fits.ended_with({}));
    CHECK(fits.bytes() == limits::link_message_bytes_max);
}

TEST_CASE("link: an answer comes in its parts, in order, and ends once, with the error that it was given") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    two.witness.serve = [](CallKind, std::string request, std::shared_ptr<CallReply> reply) {
        std::thread([request = std::move(request), reply = std::move(reply)] {
            for (int i = 0; i < 100; ++i)
                reply->part(request + std::to_string(i) + std::string(i % 10 == 0 ? 700'000 : 0, '.') + ";");
            reply->end(Error{ErrorCode::session_busy, "words", "field"});
            reply->part("too late");
            reply->end();
        }).detach();
    };
    meet({&one, &two});
    CallWitness first, second;
    first.start(*one.link, two.config.self, CallKind::shard, "a");
    second.start(*one.link, two.config.self, CallKind::shard, "b");
    CHECK(first.ended_with(ErrorCode::session_busy));
    CHECK(second.ended_with(ErrorCode::session_busy));
    CHECK(first.message() == "words");
    CHECK(first.parts() == 100);
    std::string expected;
    for (int i = 0; i < 100; ++i)
        expected += "b" + std::to_string(i) + std::string(i % 10 == 0 ? 700'000 : 0, '.') + ";";
    CHECK(second.text() == expected);
}

TEST_CASE("link: a call that its server drops, cancels, times out or loses ends once with an error") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1));
    auto two = std::make_unique<LinkNode>(cluster.config(2));
    std::mutex mutex;
    std::vector<std::shared_ptr<CallReply>> held;
    two->witness.serve = [&](CallKind kind, std::string, std::shared_ptr<CallReply> reply) {
        const std::lock_guard lock(mutex);
        if (kind == CallKind::hop) held.push_back(std::move(reply));  // else dropped here
    };
    const auto holds = [&](size_t count) {
        return eventually([&] {
            const std::lock_guard lock(mutex);
            return held.size() == count;
        });
    };
    meet({&one, two.get()});
    CallWitness dropped, cancelled, late, lost;
    dropped.start(*one.link, two->config.self, CallKind::shard, "x");
    CHECK(dropped.ended_with(ErrorCode::internal));

    const auto handle = cancelled.start(*one.link, two->config.self, CallKind::hop, "x");
    REQUIRE(holds(1));
    CHECK_FALSE(held[0]->cancelled());
    held[0]->part("some");
    REQUIRE(eventually([&] { return cancelled.parts() == 1; }));
    handle->cancel();
    CHECK(cancelled.ended_with(ErrorCode::turn_cancelled));
    REQUIRE(eventually([&] { return held[0]->cancelled(); }));
    held[0]->part("nobody hears it");
    held[0]->end();
    handle->cancel();

    late.start(*one.link, two->config.self, CallKind::hop, "x", 50);
    REQUIRE(holds(2));
    CHECK(late.ended_with(ErrorCode::shard_unavailable));
    REQUIRE(eventually([&] { return held[1]->cancelled(); }));

    lost.start(*one.link, two->config.self, CallKind::hop, "x");
    REQUIRE(holds(3));
    two.reset();
    CHECK(lost.ended_with(ErrorCode::shard_unavailable));
    CHECK(held[2]->cancelled());
    held[2]->part("nobody");
    held.clear();
    CHECK(cancelled.ended_with(ErrorCode::turn_cancelled));  // still once
    CHECK(one.stats().calls_under_way == 0);
}

TEST_CASE("link: closing a link ends its calls, and replies that outlive it are harmless") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    std::atomic<bool> got{false};
    std::shared_ptr<CallReply> held;
    two.witness.serve = [&](CallKind, std::string, std::shared_ptr<CallReply> reply) {
        held = std::move(reply);
        got = true;
    };
    meet({&one, &two});
    CallWitness call;
    const auto handle = call.start(*one.link, two.config.self, CallKind::hop, "x");
    REQUIRE(eventually([&] { return got.load(); }));
    one.link.reset();
    CHECK(call.ended_with(ErrorCode::shard_unavailable));
    two.link.reset();
    held->part("x");
    held.reset();
    handle->cancel();
}

TEST_CASE("link: memory for a slow reader is bounded by window and queue") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    // 16 calls of 4 MiB in parts of 64 KiB, as fast as they can be put: 64 MiB with the items' own cost do not fit.
    std::atomic<size_t> given_up{0};
    two.witness.serve = [&](CallKind, std::string, std::shared_ptr<CallReply> reply) {
        for (int i = 0; i < 64; ++i) reply->part(std::string(64 * 1024, 'x'));
        if (reply->cancelled()) ++given_up;
        reply->end();
    };
    meet({&one, &two});
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> held_max{0};
    std::thread meter([&] {
        while (!stop) {
            const LinkStats mine = one.stats(), its = two.stats();
            held_max = std::max<uint64_t>(held_max, its.queue_bytes + its.window_bytes + mine.assembly_bytes);
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    });
    std::vector<CallWitness> calls(18);
    for (CallWitness& call : calls) {
        call.keep = false;
        call.slow = [] { std::this_thread::sleep_for(std::chrono::microseconds(500)); };
        call.start(*one.link, two.config.self, CallKind::hop, "x");
    }
    size_t whole = 0, failed = 0;
    for (CallWitness& call : calls) {
        REQUIRE(eventually([&] { return call.ended(); }));
        if (call.ended_with({})) {
            ++whole;
            CHECK(call.bytes() == 4 * 1024 * 1024);
        } else {
            CHECK(call.ended_with(ErrorCode::shard_unavailable));
            ++failed;
        }
    }
    stop = true;
    meter.join();
    CHECK(whole >= 14);
    CHECK(failed == given_up);
    MESSAGE("held at most ", held_max.load() >> 20, " MiB, ", failed, " of 18 answers given up");
    CHECK(held_max <=
          limits::link_queue_bytes_max + limits::link_window_bytes + limits::link_chunk_bytes_max + 64 * 1024);
    REQUIRE(eventually([&] { return two.stats().queue_bytes + two.stats().window_bytes == 0; }));
    CHECK(one.stats().assembly_bytes == 0);
}

TEST_CASE("link: what waits for a peer that does not take it is bounded, the rest is dropped and counted") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    std::mutex gate;
    two.witness.look = [&](const auto&) { const std::lock_guard wait(gate); };
    meet({&one, &two});
    gate.lock();
    constexpr size_t bytes = 1 << 20, count = 128;
    uint64_t held_max = 0;
    for (uint64_t i = 0; i < count; ++i) {
        one.link->send(two.config.self, {numbered(one, two, i, bytes)});
        const LinkStats stats = one.stats();
        held_max = std::max(held_max, stats.queue_bytes + stats.window_bytes);
    }
    REQUIRE(eventually([&] { return one.stats().window_bytes >= limits::link_window_bytes; }));
    const LinkStats stuck = one.stats();
    CHECK(stuck.messages_dropped_queue_full >= count - 74);
    CHECK(held_max <= limits::link_queue_bytes_max + limits::link_window_bytes + limits::link_chunk_bytes_max + 512);
    CHECK(stuck.window_bytes <= limits::link_window_bytes + limits::link_chunk_bytes_max + 512);
    CallWitness call;
    call.start(*one.link, two.config.self, CallKind::hop, std::string(limits::link_message_bytes_max, 'x'));
    const bool refused = call.ended_with(ErrorCode::shard_unavailable);
    gate.unlock();
    CHECK(refused);
    REQUIRE(eventually([&] { return one.stats().queue_bytes == 0; }));
    REQUIRE(eventually([&] { return two.witness.count(1) == count - one.stats().messages_dropped_queue_full; }));
    uint64_t last = 0;
    for (const ReplicationMessage& message : two.witness.from(1)) {
        CHECK((number_of(message) > last || number_of(message) == 0));
        last = number_of(message);
    }
}

TEST_CASE("link: replication does not wait behind a large answer or request") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    std::atomic<uint64_t> before{0};
    two.witness.look = [&](const auto&) { before = two.stats().bytes_received; };
    std::mutex gate;
    two.witness.serve = [&](CallKind, std::string, std::shared_ptr<CallReply> reply) { reply->end(); };
    meet({&one, &two});
    std::vector<CallWitness> calls(3);
    for (CallWitness& call : calls)
        call.start(*one.link, two.config.self, CallKind::hop, std::string(limits::link_message_bytes_max, 'x'));
    const uint64_t sent = one.stats().bytes_sent;
    one.link->send(two.config.self, {numbered(one, two, 1)});
    REQUIRE(eventually([&] { return two.witness.count(1) == 1; }));
    // What was on its way when it was sent, and at most a few windows of calls that the threads' timing lets by.
    CHECK(before <= sent + 8 * 1024 * 1024);
    for (CallWitness& call : calls) CHECK(call.ended_with({}));
}

TEST_CASE("link: more calls than link_calls_max are refused, the others are not harmed") {
    LinkCluster cluster;
    LinkNode one(cluster.config(1)), two(cluster.config(2));
    std::mutex mutex;
    std::vector<std::shared_ptr<CallReply>> held;
    two.witness.serve = [&](CallKind, std::string, std::shared_ptr<CallReply> reply) {
        const std::lock_guard lock(mutex);
        held.push_back(std::move(reply));
    };
    meet({&one, &two});
    std::vector<CallWitness> calls(limits::link_calls_max + 3);
    for (CallWitness& call : calls) call.start(*one.link, two.config.self, CallKind::shard, "x");
    for (size_t i = limits::link_calls_max; i < calls.size(); ++i)
        CHECK(calls[i].ended_with(ErrorCode::shard_unavailable));
    REQUIRE(eventually([&] { return two.stats().calls_served == limits::link_calls_max; }));
    {
        const std::lock_guard lock(mutex);
        CHECK(held.size() == limits::link_calls_max);
        for (const auto& reply : held) reply->end();
        held.clear();
    }
    for (size_t i = 0; i < limits::link_calls_max; ++i) REQUIRE(calls[i].ended_with({}));
    CHECK(one.stats().calls_under_way == 0);
}

TEST_CASE("link: files that do not fit the node, and addresses that cannot be bound, are told when it is opened") {
    LinkCluster cluster;
    LinkWitness witness;
    LinkConfig config = cluster.config(1);
    config.self = link_node(2);
    CHECK(Link::open(config, witness).error().code == ErrorCode::invalid_request);
    config = cluster.config(1);
    config.ca_file = "none";
    CHECK(Link::open(config, witness).error().code == ErrorCode::invalid_request);
    LinkNode one(cluster.config(1));
    CHECK(Link::open(cluster.config(2, 1, one.link->port()), witness).error().code == ErrorCode::internal);
}
