#include "cluster/link_stranger.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <list>

#include "cluster/link_fixture.h"
#include "cluster/replication_codec.h"
#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

size_t resident_bytes() {
    std::ifstream in("/proc/self/statm");
    size_t pages = 0, resident = 0;
    in >> pages >> resident;
    return resident * size_t(::sysconf(_SC_PAGESIZE));
}

/// Two nodes that know each other; strangers come to the first.
struct Met {
    LinkCluster cluster;
    LinkNode one{cluster.config(1)}, two{cluster.config(2)};
    uint64_t sent = 0;
    Met() { meet({&one, &two}); }

    /// Nothing has happened to them: the same connections, and messages and calls go through.
    void unharmed() {
        two.link->send(one.config.self, {numbered(two, one, ++sent)});
        REQUIRE(eventually([&] { return one.witness.count(2) == sent; }));
        CallWitness call;
        call.start(*two.link, one.config.self, CallKind::hop, "x");
        CHECK(call.ended_with({}));
        CHECK(one.stats().links_lost + two.stats().links_lost == 0);
    }
    LinkHello hello(uint8_t node, uint64_t incarnation = 1) const {
        return {cluster.uuid, link_node(node), incarnation, link_format, "0"};
    }
    Stranger stranger(uint8_t node) {
        return {one.link->port(), cluster.folder(node), cluster.directory / "ca/ca.pem", one.config.self};
    }
};

std::string noise(size_t bytes) {
    std::string out(bytes, '\0');
    uint32_t state = 7;
    for (char& c : out) c = char((state = state * 1664525 + 1013904223) >> 24);
    return out;
}

void put(capnp::Data::Builder to, const std::string& bytes) { std::memcpy(to.begin(), bytes.data(), bytes.size()); }

}  // namespace

TEST_CASE("link: garbage, plain HTTP and port scans are refused and counted, memory stays flat") {
    Met met;
    const std::vector<std::string> said{"",
                                        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                        noise(10),
                                        noise(100'000),
                                        std::string("\x16\x03\x01\xff\xff", 5) + noise(65535),
                                        std::string(1000, '\0')};
    const auto round = [&](int times) {
        for (int i = 0; i < times; ++i)
            for (const std::string& bytes : said) {
                const uint64_t before = met.one.stats().refused_tls;
                {
                    RawSocket socket(met.one.link->port());
                    REQUIRE(socket.connected());
                    socket.say(bytes);
                    if (!bytes.empty()) socket.closed(20);
                }
                REQUIRE(eventually([&] { return met.one.stats().refused_tls > before; }));
            }
    };
    round(20);
    const size_t before = resident_bytes();
    round(100);
    const size_t after = resident_bytes();
    MESSAGE("resident after 120 and after 720 strangers: ", before >> 10, " and ", after >> 10, " KiB");
    CHECK(after < before + 4 * 1024 * 1024);
    CHECK(met.one.stats().refused_tls == 720);
    CHECK(met.one.stats().handshakes == 0);
    met.unharmed();
}

TEST_CASE("link: connections that say nothing are cut off, and one address has few of them") {
    Met met;
    std::list<RawSocket> silent;
    constexpr size_t bound = limits::link_connections_max / 8;
    for (size_t i = 0; i < bound + 10; ++i) silent.emplace_back(met.one.link->port());
    REQUIRE(eventually([&] { return met.one.stats().refused_connections == 10; }));
    CHECK(met.one.stats().handshakes == bound);
    met.unharmed();  // who is known is not in their way
    REQUIRE(eventually([&] { return met.one.stats().handshakes == 0; }));
    CHECK(met.one.stats().refused_handshake == bound);
    for (RawSocket& socket : silent) CHECK(socket.closed(1000));
    RawSocket again(met.one.link->port());
    REQUIRE(eventually([&] { return met.one.stats().handshakes == 1; }));
    // TLS alone is not enough.
    Stranger quiet = met.stranger(3);
    REQUIRE(eventually([&] { return met.one.stats().refused_handshake == bound + 2; }));
    met.unharmed();
}

TEST_CASE("link: no certificate, one of another CA, of another node, of another cluster, a wrong format") {
    Met met;
    LinkCluster other;
    const std::string ca = met.cluster.directory / "ca/ca.pem";
    const uint16_t port = met.one.link->port();
    CHECK(Stranger(port, {}, ca, met.one.config.self).hello(met.hello(3)) != "");
    REQUIRE(eventually([&] { return met.one.stats().refused_tls == 1; }));
    CHECK(Stranger(port, other.folder(3), ca, met.one.config.self).hello(met.hello(3)) != "");
    REQUIRE(eventually([&] { return met.one.stats().refused_tls == 2; }));
    CHECK(met.stranger(3).hello(met.hello(2)).find("peer_refused") != std::string::npos);
    CHECK(met.one.stats().refused_identity == 1);
    CHECK(met.stranger(1).hello(met.hello(1)) != "");  // itself
    CHECK(met.one.stats().refused_identity == 2);
    LinkHello hello = met.hello(3);
    hello.cluster = other.uuid;
    CHECK(met.stranger(3).hello(hello) != "");
    CHECK(met.one.stats().refused_cluster == 1);
    hello = met.hello(3);
    hello.format = link_format + 1;
    CHECK(met.stranger(3).hello(hello) != "");
    CHECK(met.one.stats().refused_format == 1);
    hello = met.hello(3, 9);
    CHECK(met.stranger(3).hello(hello) == "");
    hello.incarnation = 8;
    CHECK(met.stranger(3).hello(hello) != "");
    CHECK(met.one.stats().refused_incarnation == 1);
    CHECK(met.one.witness.calls == 0);
    CHECK(met.one.stats().refused() == 7);
    met.unharmed();
}

TEST_CASE("link: who was refused once is not let in on the same connection, nor greeted twice") {
    Met met;
    {
        Stranger stranger = met.stranger(3);
        CHECK(stranger.hello(met.hello(2)) != "");
        CHECK(stranger.hello(met.hello(3)) != "");
        CHECK(met.one.stats().connections_accepted == 1);
        CHECK(met.one.stats().refused_identity == 1);
    }
    Stranger known = met.stranger(3);
    CHECK(known.hello(met.hello(3)) == "");
    CHECK(known.hello(met.hello(3)) != "");
    CHECK(met.one.stats().refused_frame == 1);
    met.unharmed();
}

TEST_CASE("link: a frame that does not hold ends its connection, is counted, and nothing of it is done") {
    Met met;
    LinkCluster other;
    const std::string large(limits::link_chunk_bytes_max + 1, 'x');
    const std::vector<std::pair<const char*, Stranger::Fill>> frames{
        {"another cluster",
         [&](auto frame) {
             LinkFrame header;
             header.cluster = other.uuid;
             header.incarnation = 1;
             encode_frame(frame, header, 0);
         }},
        {"another incarnation", [](auto frame) { frame.setIncarnation(2); }},
        {"an answer",
         [](auto frame) {
             frame.setCall(1);
             frame.initEnd();
         }},
        {"a ping of a call", [](auto frame) { frame.setCall(1); }},
        {"a request of no call", [](auto frame) { frame.initRequest().setKind(1); }},
        {"a chunk too large",
         [&](auto frame) {
             frame.setCall(1);
             auto request = frame.initRequest();
             request.setKind(1);
             request.setTotal(uint32_t(large.size()));
             put(request.initBytes(unsigned(large.size())), large);
         }},
        {"a message too large", [&](auto frame) { put(frame.initReplication(4), "\xff\xff\xff\x7f"); }},
        {"an empty message", [&](auto frame) { put(frame.initReplication(4), std::string(4, '\0')); }},
        {"no message", [&](auto frame) { put(frame.initReplication(104), std::string("\x64\0\0\0", 4) + noise(100)); }},
        {"a request beyond the bound",
         [](auto frame) {
             frame.setCall(1);
             auto r = frame.initRequest();
             r.setKind(1);
             r.setTotal(limits::link_message_bytes_max + 1);
             r.initBytes(1);
         }},
        {"more than announced",
         [](auto frame) {
             frame.setCall(1);
             auto r = frame.initRequest();
             r.setKind(1);
             r.setTotal(1);
             r.initBytes(2);
         }},
        {"a first piece without bytes",
         [](auto frame) {
             frame.setCall(1);
             auto r = frame.initRequest();
             r.setKind(1);
             r.setTotal(5);
         }},
        {"a piece without bytes",
         [](auto frame) {
             frame.setCall(1);
             frame.initMore(0);
         }},
    };
    size_t refused = 0;
    for (const auto& [what, fill] : frames) {
        CAPTURE(what);
        Stranger stranger = met.stranger(3);
        REQUIRE(stranger.hello(met.hello(3)) == "");
        CHECK(stranger.frame([](auto frame) { frame.setPing(); }) == "");
        CHECK(stranger.frame(fill) != "");
        CHECK(met.one.stats().refused_frame == ++refused);
        REQUIRE(eventually([&] { return met.one.stats().connections_accepted == 1; }));
        CHECK(stranger.frame([](auto frame) { frame.setPing(); }) != "");
    }
    CHECK(met.one.witness.calls == 0);
    CHECK(met.one.witness.count(3) == 0);
    CHECK(met.one.stats().assembly_bytes == 0);
    met.unharmed();
}

TEST_CASE("link: requests that announce more than a sender's queue end their connection") {
    Met met;
    Stranger stranger = met.stranger(3);
    REQUIRE(stranger.hello(met.hello(3)) == "");
    constexpr size_t fit = limits::link_queue_bytes_max / limits::link_message_bytes_max;
    const auto announce = [&](uint64_t call) {
        return stranger.frame([&](auto frame) {
            frame.setCall(call);
            auto request = frame.initRequest();
            request.setKind(1);
            request.setTotal(limits::link_message_bytes_max);
            request.initBytes(1);
        });
    };
    for (uint64_t i = 1; i <= fit; ++i) REQUIRE(announce(i) == "");
    CHECK(met.one.stats().assembly_bytes == limits::link_queue_bytes_max);
    REQUIRE(stranger.frame([&](auto frame) {
        frame.setCall(1);
        frame.setCancel();
    }) == "");
    REQUIRE(announce(1) == "");
    CHECK(announce(fit + 1) != "");
    CHECK(met.one.stats().refused_frame == 1);
    REQUIRE(eventually([&] { return met.one.stats().assembly_bytes == 0; }));
    met.unharmed();
}

TEST_CASE("link: messages in another's name are left out, calls of unknown kind are refused, the rest goes on") {
    Met met;
    Stranger stranger = met.stranger(3);
    REQUIRE(stranger.hello(met.hello(3)) == "");
    ReplicationMessage good{met.cluster.uuid,          ShardId(1), {link_node(3), {}},
                            {met.one.config.self, {}}, 1,          AppendAnswer{}};
    std::vector<ReplicationMessage> messages(5, good);
    messages[0].cluster[3] ^= 1;
    messages[1].from.node = met.two.config.self;
    messages[2].from_incarnation = 2;
    messages[3].to.node = met.two.config.self;
    std::string bytes;
    for (const ReplicationMessage& message : messages) {
        const std::string one = flat(encode_replication(message));
        for (int i = 0; i < 4; ++i) bytes += char(one.size() >> (8 * i));
        bytes += one;
    }
    // In two frames, cut in the middle of a length.
    const size_t cut = bytes.size() / 5 + 2;
    CHECK(stranger.frame([&](auto frame) { put(frame.initReplication(unsigned(cut)), bytes.substr(0, cut)); }) == "");
    CHECK(stranger.frame(
              [&](auto frame) { put(frame.initReplication(unsigned(bytes.size() - cut)), bytes.substr(cut)); }) == "");
    CHECK(met.one.stats().refused_message == 4);
    REQUIRE(met.one.witness.count(3) == 1);
    CHECK(met.one.witness.from(3)[0].from.node == link_node(3));
    for (const unsigned kind : {0u, 6u, 255u})
        CHECK(stranger.frame([&](auto frame) {
            frame.setCall(1 + kind);
            frame.initRequest().setKind(uint8_t(kind));
        }) == "");
    REQUIRE(stranger.ends(3));
    CHECK(stranger.last_failure.code == ErrorCode::peer_refused);
    CHECK(met.one.stats().refused_call == 3);
    CHECK(met.one.witness.calls == 0);
    CHECK(stranger.frame([&](auto frame) {
        frame.setCall(7);
        frame.initRequest().setKind(1);
    }) == "");
    REQUIRE(stranger.ends(4));
    met.unharmed();
}

TEST_CASE("link: who answers at a peer's address is not believed either") {
    LinkCluster cluster, other;
    LinkNode one(cluster.config(1)), three(cluster.config(3)), foreign(other.config(2));
    LinkConfig same_ca = cluster.config(2);
    same_ca.cluster = other.uuid;
    LinkNode confused(same_ca);
    const auto refused_at = [&](uint16_t port) {
        const uint64_t failed = one.stats().dials_failed;
        one.link->set_peers({{link_node(2), 1, "127.0.0.1:" + std::to_string(port)}});
        REQUIRE(eventually([&] { return one.stats().dials_failed >= failed + 3; }));
        CHECK_FALSE(one.link->connected(link_node(2)));
    };
    refused_at(three.link->port());     // another node's certificate
    refused_at(foreign.link->port());   // another CA's
    refused_at(confused.link->port());  // another cluster
    CHECK(confused.stats().refused_cluster >= 1);
    refused_at(1);  // nobody
    CHECK(one.witness.up(2) == 0);
    CHECK(one.stats().window_bytes + one.stats().queue_bytes == 0);
    one.link->set_peers({{link_node(2), 1, "no such address"}});
    LinkNode two(cluster.config(2));
    one.link->set_peers({two.peer()});
    REQUIRE(eventually([&] { return one.link->connected(link_node(2)); }));
}

TEST_CASE("link: a peer that is silent is cut off, its calls end, and it is met again when it speaks") {
    Met met;
    std::mutex gate;
    met.two.witness.look = [&](const auto&) { const std::lock_guard wait(gate); };
    gate.lock();
    met.one.link->send(met.two.config.self, {numbered(met.one, met.two, 1)});
    CallWitness call;
    call.start(*met.one.link, met.two.config.self, CallKind::hop, "x");
    CHECK(call.ended_with(ErrorCode::shard_unavailable));
    CHECK(met.one.stats().silences >= 1);
    CHECK(met.one.witness.downs >= 1);
    gate.unlock();
    REQUIRE(eventually(
        [&] { return met.one.link->connected(met.two.config.self) && met.two.link->connected(met.one.config.self); }));
    met.one.link->send(met.two.config.self, {numbered(met.one, met.two, 2)});
    REQUIRE(
        eventually([&] { return met.two.witness.count(1) >= 1 && number_of(met.two.witness.from(1).back()) == 2; }));
}

TEST_CASE("link: an idle link stays up") {
    Met met;
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * limits::link_silence_ms + 500));
    met.unharmed();
    CHECK(met.one.stats().silences + met.two.stats().silences == 0);
}
