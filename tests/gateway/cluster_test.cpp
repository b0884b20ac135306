// What operators ask of a cluster, over a running door.

#include "gateway/cluster.h"

#include <doctest/doctest.h>

#include "gateway/door_fixture.h"
#include "gateway/fake_cluster.h"

using namespace mainstay;

namespace {

NodeUuid uuid_of(uint8_t first, uint8_t last = 1) {
    NodeUuid uuid{};
    uuid[0] = first;
    uuid[1] = 0xcd;
    uuid[15] = last;
    return uuid;
}
const std::string first_text = "a1cd0000-0000-0000-0000-000000000001";
const std::string second_text = "b2cd0000-0000-0000-0000-000000000001";
const std::string third_text = "b2cd0000-0000-0000-0000-000000000003";

struct ClusterDoor {
    explicit ClusterDoor(bool with_cluster = true) : running(config(with_cluster ? &cluster : nullptr)) {
        cluster.status_now.meta = {uuid_of(0xee), 1024, 3, 2, 1};
        cluster.status_now.self = uuid_of(0xa1);
        cluster.status_now.coordinator_reached = true;
        cluster.status_now.coordinator_age_ms = 120;
        cluster.status_now.nodes_live = 3;
        cluster.status_now.shards_serving = 1023;
        cluster.status_now.shards_moving = 2;
        cluster.status_now.problems = {"shard 7: \"one\" copy"};
        ClusterNodeInfo node;
        node.node = {{uuid_of(0xa1), uuid_of(0xd1)}, 0xfedcba9876543210};
        node.details = {"10.0.0.1:7000", "http://10.0.0.1:8080", "zone-a", "0.1.0", 2, {"small", "large"}};
        node.live = node.self = node.linked = true;
        node.primaries = 5;
        node.in_sync = 15;
        node.copies = 16;
        cluster.nodes_now.push_back(node);
        node = {};
        node.node.name.node = uuid_of(0xb2);
        cluster.nodes_now.push_back(node);
        node.node.name.node = uuid_of(0xb2, 3);
        cluster.nodes_now.push_back(node);
        ClusterShardInfo shard;
        shard.record.epoch = Epoch(4);
        shard.record.primary = {uuid_of(0xa1), uuid_of(0xd1)};
        shard.record.in_sync = {shard.record.primary, {uuid_of(0xb2), uuid_of(0xd2)}};
        shard.record.replicas = {uuid_of(0xa1), uuid_of(0xb2), uuid_of(0xb2, 3)};
        shard.record.config_version = 99;
        shard.record.min_in_sync = 2;
        shard.primary = uuid_of(0xa1);
        shard.led_here = shard.serving = true;
        shard.last_index = 12;
        shard.commit_index = 11;
        cluster.shards_now.push_back(shard);
        shard.record.shard = ShardId{7};
        shard.record.target = uuid_of(0xb2);
        shard.primary.reset();
        shard.problem = "nobody leads it";
        cluster.shards_now.push_back(shard);
        cluster.decisions_now = {{1700, ShardId{7}, "target node b2cd0000", "node a1cd0000 drains"}};
    }
    static DoorConfig config(ClusterAdmin* cluster) {
        DoorConfig config = RunningDoor::quick();
        config.cluster = cluster;
        return config;
    }
    FakeCluster cluster;
    RunningDoor running;
};

}  // namespace

TEST_CASE("cluster: a node that is alone says so on every route") {
    ClusterDoor door(false);
    for (const auto* path : {"", "/nodes", "/nodes/a1cd", "/shards", "/shards/1", "/decisions"}) {
        const auto answer = door.running.ask("GET", std::string("/v1/cluster") + path);
        CAPTURE(path);
        CHECK(answer.status == 404);
        CHECK(answer.code() == "not_found");
        CHECK(answer.body.find("alone") != std::string::npos);
    }
    for (const auto* path : {"/nodes/a1cd/drain", "/nodes/a1cd/undrain", "/shards/1/move", "/shards/1/force_lead"})
        CHECK(door.running.ask("POST", std::string("/v1/cluster") + path, "{}").body.find("alone") !=
              std::string::npos);
}

TEST_CASE("cluster: nothing without the key") {
    ClusterDoor door;
    Client client(door.running.door.port());
    client.send("GET /v1/cluster HTTP/1.1\r\nHost: localhost\r\n\r\n");
    CHECK(client.read().status == 401);
    Client other(door.running.door.port());
    other.send("POST /v1/cluster/nodes/a1cd/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n");
    CHECK(other.read().status == 401);
    CHECK(door.cluster.asked().empty());
}

TEST_CASE("cluster: an answer for a principal that is no admin is forbidden") {
    FakeCluster cluster;
    Routes routes;
    const ClusterRoutes handlers(&cluster, routes);
    struct Port final : AnswerPort {
        void answer(uint64_t, Answer given) override { got = std::move(given); }
        void begin_stream(uint64_t, std::shared_ptr<StreamBody>) override {}
        void stream_ready(uint64_t) override {}
        Answer got;
    };
    const auto port = std::make_shared<Port>();
    const auto mailbox = std::make_shared<Mailbox>([] {});
    for (const auto& [method, path] :
         std::vector<std::pair<HttpMethod, std::string>>{{HttpMethod::get, "/v1/cluster"},
                                                         {HttpMethod::get, "/v1/cluster/decisions"},
                                                         {HttpMethod::post, "/v1/cluster/nodes/a1cd/drain"},
                                                         {HttpMethod::post, "/v1/cluster/shards/1/force_lead"}}) {
        HttpRequest request;
        request.method = method;
        request.path = path;
        request.principal = {TenantId{1}, "somebody", false};
        port->got = {};
        routes.dispatch(request, Reply(port, 1, mailbox));
        CHECK(port->got.status == 403);
    }
    CHECK(cluster.asked().empty());
}

TEST_CASE("cluster: its state, with what is wrong") {
    ClusterDoor door;
    const auto status = door.running.ask("GET", "/v1/cluster").json();
    CHECK(status.at("object") == "cluster");
    CHECK(status.at("id") == "eecd0000-0000-0000-0000-000000000001");
    CHECK(status.at("node") == first_text.c_str());
    CHECK(status.at("shards") == 1024);
    CHECK(status.at("replicas") == 3);
    CHECK(status.at("min_in_sync") == 2);
    CHECK(status.at("coordinator").at("reached") == true);
    CHECK(status.at("coordinator").at("age_ms") == 120);
    CHECK(status.at("nodes_live") == 3);
    CHECK(status.at("shards_serving") == 1023);
    CHECK(status.at("shards_under_replicated") == 0);
    CHECK(status.at("shards_unavailable") == 0);
    CHECK(status.at("shards_moving") == 2);
    CHECK(status.at("problems").as_array().at(0) == "shard 7: \"one\" copy");
}

TEST_CASE("cluster: nodes are listed and shown, by a beginning of their uuid that only one has") {
    ClusterDoor door;
    const auto list = door.running.ask("GET", "/v1/cluster/nodes").json();
    REQUIRE(list.at("data").as_array().size() == 3);
    const auto& node = list.at("data").as_array()[0];
    CHECK(node.at("id") == first_text.c_str());
    CHECK(node.at("incarnation") == "fedcba9876543210");
    CHECK(node.at("live") == true);
    CHECK(node.at("zone") == "zone-a");
    CHECK(node.at("link_address") == "10.0.0.1:7000");
    CHECK(node.at("client_address") == "http://10.0.0.1:8080");
    CHECK(node.at("capacity") == 2);
    CHECK(boost::json::serialize(node.at("models")) == R"(["small","large"])");
    CHECK(node.at("primaries") == 5);
    CHECK(node.at("in_sync") == 15);
    CHECK(node.at("copies") == 16);
    const auto& gone = list.at("data").as_array()[1];
    CHECK(gone.at("live") == false);
    CHECK(gone.at("incarnation").is_null());
    CHECK(gone.at("disk").is_null());
    CHECK(gone.at("zone").is_null());
    CHECK(gone.at("models").is_null());
    for (const auto& name : {std::string("a1cd"), std::string("a1cd0000-0000"), first_text})
        CHECK(door.running.ask("GET", "/v1/cluster/nodes/" + name).json().at("id") == first_text.c_str());
    CHECK(door.running.ask("GET", "/v1/cluster/nodes/" + third_text).json().at("id") == third_text.c_str());
    const auto two = door.running.ask("GET", "/v1/cluster/nodes/b2cd");
    CHECK(two.status == 400);
    CHECK(two.body.find(second_text + ", " + third_text) != std::string::npos);
    const auto nobody = door.running.ask("GET", "/v1/cluster/nodes/c3cd");
    CHECK(nobody.status == 404);
    CHECK(nobody.code() == "node_not_found");
    CHECK(nobody.body.find(first_text) != std::string::npos);
    CHECK(door.running.ask("GET", "/v1/cluster/nodes/a1c").status == 400);
    CHECK(door.running.ask("GET", "/v1/cluster/nodes/A1CD").status == 404);
}

TEST_CASE("cluster: a node drains and takes part again; who is named wrongly does neither") {
    ClusterDoor door;
    const auto drained = door.running.ask("POST", "/v1/cluster/nodes/a1cd/drain").json();
    CHECK(drained.at("id") == first_text.c_str());
    CHECK(drained.at("draining") == true);
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/a1cd/undrain", "{}").json().at("draining") == false);
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/b2cd/drain").status == 400);
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/ffff/drain").code() == "node_not_found");
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/a1cd/drain", R"({"undo":true})").code() == "unknown_field");
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/a1cd/drain", "{").code() == "malformed_json");
    CHECK(door.running.ask("GET", "/v1/cluster/nodes/a1cd/drain").code() == "method_not_allowed");
    CHECK(door.cluster.asked() == std::vector<std::string>{"drain " + first_text, "undrain " + first_text});
}

TEST_CASE("cluster: shards are listed and shown") {
    ClusterDoor door;
    CHECK(door.running.ask("GET", "/v1/cluster/shards").json().at("data").as_array().size() == 2);
    const auto shard = door.running.ask("GET", "/v1/cluster/shards/0").json();
    CHECK(shard.at("epoch") == 4);
    CHECK(shard.at("version") == 99);
    CHECK(shard.at("primary") == first_text.c_str());
    CHECK(shard.at("primary_on_record").at("disk") == "d1cd0000-0000-0000-0000-000000000001");
    CHECK(shard.at("in_sync").as_array().size() == 2);
    CHECK(shard.at("in_sync").as_array()[1].at("node") == second_text.c_str());
    CHECK(shard.at("replicas").as_array().at(2) == third_text.c_str());
    CHECK(shard.at("target").is_null());
    CHECK(shard.at("serving") == true);
    CHECK(shard.at("last_index") == 12);
    CHECK(shard.at("commit_index") == 11);
    CHECK(shard.at("problem").is_null());
    const auto other = door.running.ask("GET", "/v1/cluster/shards/7").json();
    CHECK(other.at("primary").is_null());
    CHECK(other.at("target") == second_text.c_str());
    CHECK(other.at("problem") == "nobody leads it");
    for (const auto* name : {"1", "07", "-1", "x", "65536", "7x"}) {
        CAPTURE(name);
        CHECK(door.running.ask("GET", std::string("/v1/cluster/shards/") + name).code() == "shard_not_found");
    }
}

TEST_CASE("cluster: a shard is moved, and led by force only with the index beyond which all is lost") {
    ClusterDoor door;
    const auto moved = door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":"a1cd"})");
    CHECK(moved.json().at("target") == first_text.c_str());
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":"b2cd"})").status == 400);
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":"ffff"})").code() == "node_not_found");
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", "{}").status == 400);
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":1})").status == 400);
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":"a1cd","x":1})").code() == "unknown_field");
    CHECK(door.running.ask("POST", "/v1/cluster/shards/x/move", R"({"to":"a1cd"})").code() == "shard_not_found");
    CHECK(door.running.ask("POST", "/v1/cluster/shards/8/move", R"({"to":"a1cd"})").code() == "shard_not_found");
    for (const auto* body : {"", "{}", R"({"accept_loss_beyond":-1})", R"({"accept_loss_beyond":"12"})",
                             R"({"accept_loss_beyond":null})", R"({"accept_loss_beyond":true})"}) {
        CAPTURE(body);
        CHECK(door.running.ask("POST", "/v1/cluster/shards/7/force_lead", body).status == 400);
    }
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/force_lead", R"({"accept_loss_beyond":12})").status == 200);
    CHECK(door.cluster.asked() ==
          std::vector<std::string>{"move 7 " + first_text, "move 8 " + first_text, "force_lead 7 12 by admin"});
}

TEST_CASE("cluster: a session is where its shard is, and goes where that goes") {
    ClusterDoor door;
    SessionId id;
    id.high = id.low = 7;
    do id.family.value += 1;
    while (shard_of(SessionKey{TenantId{1}, id}, 8) != ShardId{7});
    const std::string path = "/v1/sessions/" + to_text(id);
    const auto place = door.running.ask("GET", path + "/place");
    CHECK(place.status == 200);
    CHECK(place.json().at("shard") == 7);
    const auto moved = door.running.ask("POST", path + "/migrate", R"({"to":"a1cd"})");
    CHECK(moved.status == 200);
    CHECK(moved.json().at("target") == first_text.c_str());
    CHECK(door.running.ask("POST", path + "/migrate", R"({"to":"ffff"})").code() == "node_not_found");
    CHECK(door.running.ask("POST", path + "/migrate", "{}").status == 400);
    for (const auto* other : {"/v1/sessions/x/place", "/v1/sessions/resp_x/place"})
        CHECK(door.running.ask("GET", other).code() == "session_not_found");
}

TEST_CASE("cluster: decisions of one shard or all") {
    ClusterDoor door;
    const auto all = door.running.ask("GET", "/v1/cluster/decisions").json();
    REQUIRE(all.at("data").as_array().size() == 1);
    CHECK(all.at("data").as_array()[0].at("at_ms") == 1700);
    CHECK(all.at("data").as_array()[0].at("shard") == 7);
    CHECK(all.at("data").as_array()[0].at("what") == "target node b2cd0000");
    CHECK(all.at("data").as_array()[0].at("why") == "node a1cd0000 drains");
    CHECK(door.running.ask("GET", "/v1/cluster/decisions?shard=7&limit=5").status == 200);
    CHECK(door.running.ask("GET", "/v1/cluster/decisions?shard=x").code() == "shard_not_found");
    CHECK(door.running.ask("GET", "/v1/cluster/decisions?limit=0").code() == "invalid_request");
    CHECK(door.cluster.asked() == std::vector<std::string>{"decisions all 50", "decisions 7 5"});
}

TEST_CASE("cluster: what fails behind the door is told, and what is never answered too") {
    ClusterDoor door;
    door.cluster.fails = Error{ErrorCode::coordinator_unavailable, "etcd does not answer", {}};
    for (const auto* path : {"/v1/cluster", "/v1/cluster/nodes", "/v1/cluster/nodes/a1cd", "/v1/cluster/shards/7"}) {
        const auto answer = door.running.ask("GET", path);
        CHECK(answer.status == 503);
        CHECK(answer.code() == "coordinator_unavailable");
    }
    CHECK(door.running.ask("POST", "/v1/cluster/nodes/a1cd/drain").code() == "coordinator_unavailable");
    door.cluster.drops = true;
    CHECK(door.running.ask("GET", "/v1/cluster").code() == "internal");
    CHECK(door.running.ask("POST", "/v1/cluster/shards/7/move", R"({"to":"a1cd"})").code() == "internal");
}
