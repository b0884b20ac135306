// `mainstay cluster`, `node` and `shard`: what is asked of the door and what is printed; what is made offline, in real
// directories; and a node's data directory that a cluster takes over.

#include <doctest/doctest.h>

#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>

#include "actors/node_fold.h"
#include "cluster/certificates.h"
#include "cluster/local_coordinator.h"
#include "runtime/agent/catalogue.h"
#include "runtime/store/disk_store.h"
#include "tools/adopt.h"
#include "tools/cli_fixture.h"

using namespace mainstay;

namespace {

const std::string one = "a1cd0000-0000-4000-8000-000000000001", two = "b2cd0000-0000-4000-8000-000000000002";

const std::string node_json =
    R"({"object":"cluster.node","id":")" + one +
    R"(","disk":null,"incarnation":"00000000000000ff","live":true,"self":true,"draining":true,"linked":false,
    "link_address":"10.0.0.1:7000","client_address":"http://10.0.0.1:8080","zone":"a\u001b[31m","version":"0.1.0","capacity":2,
    "models":["small","*"],"primaries":5,"in_sync":15,"copies":16})";
const std::string gone_json =
    R"({"object":"cluster.node","id":")" + two +
    R"(","disk":null,"incarnation":null,"live":false,"self":false,"draining":false,"linked":false,"link_address":null,
    "client_address":null,"zone":null,"version":null,"capacity":1,"primaries":0,"in_sync":3,"copies":4})";
const std::string shard_json = R"({"object":"cluster.shard","shard":7,"epoch":4,"version":99,"primary":null,
    "primary_on_record":{"node":")" +
                               one + R"(","disk":"d"},"incarnation":null,"in_sync":[{"node":")" + one +
                               R"(","disk":"d"},{"node":")" + two + R"(","disk":"d"}],"replicas":[")" + one + R"("],
    "target":")" + two + R"(","min_in_sync":2,"led_here":false,"serving":false,"last_index":12,"commit_index":11,
    "problem":"nobody leads it"})";
const std::string decision_json =
    R"({"at_ms":1700000000123,"shard":7,"what":"target node b2cd0000","why":"node a1cd0000 drains"})";

std::string list_of(const std::string& entries) { return R"({"object":"list","data":[)" + entries + "]}"; }

std::string door(const Seen& request) {
    const auto is = [&request](const char* begin) { return request.line.starts_with(begin); };
    if (is("GET /v1/cluster HTTP"))
        return answer(200,
                      R"({"object":"cluster","id":")" + two + R"(","node":")" + one +
                          R"(","shards":1024,"replicas":3,"min_in_sync":2,"coordinator":{"reached":false,"age_ms":4200},
        "nodes_live":3,"shards_serving":1020,"shards_under_replicated":4,"shards_unavailable":1,"shards_moving":2,
        "problems":["shard 7: nobody\u001b[2J leads it"]})");
    if (is("GET /v1/cluster/nodes HTTP")) return answer(200, list_of(node_json + "," + gone_json));
    if (is("GET /v1/cluster/nodes/ffff"))
        return answer(404, R"({"error":{"message":"There is no node 'ffff'.","code":"node_not_found"}})");
    if (is("GET /v1/cluster/nodes/") || is("POST /v1/cluster/nodes/")) return answer(200, node_json);
    if (is("GET /v1/cluster/shards HTTP"))
        return answer(200, list_of(shard_json + R"(,{"shard":8,"epoch":1,"problem":null})"));
    if (is("GET /v1/cluster/decisions")) return answer(200, list_of(decision_json));
    return answer(200, shard_json);
}

bool has(const std::string& text, const std::string& wanted) { return text.find(wanted) != std::string::npos; }

}  // namespace

TEST_CASE("cli: a cluster's state is told with what is wrong, without control characters") {
    const StubDoor stub(door);
    const auto ran = run_at(stub, {"cluster", "status"});
    CHECK(ran.status == 0);
    for (const std::string& text :
         std::vector<std::string>{"cluster:          " + two, "not reached for 4200 ms", "nodes:            3 live",
                                  "unavailable:      1\n", "under-replicated: 4\n", "moving:           2\n"}) {
        CAPTURE(text);
        CHECK(has(ran.out, text));
    }
    CHECK(has(ran.out, "problem: shard 7: nobody[2J leads it\n"));
    const auto json = run_at(stub, {"cluster", "status", "-o", "json"});
    CHECK(boost::json::parse(json.out).at("shards_serving") == 1020);
    const auto decisions = run_at(stub, {"cluster", "decisions", "--shard", "7", "--limit", "9"});
    CHECK(has(decisions.out, "2023-11-14 22:13:20.123Z  7      target node b2cd0000  node a1cd0000 drains"));
    CHECK(stub.seen()[2].line == "GET /v1/cluster/decisions?limit=9&shard=7 HTTP/1.1");
    const StubDoor alone(
        [](const Seen&) { return answer(404, R"({"error":{"message":"This node is alone","code":"not_found"}})"); });
    CHECK(run_at(alone, {"cluster", "status"}).status == 3);
}

TEST_CASE("cli: nodes are listed and shown, drain and take part again") {
    const StubDoor stub(door);
    const auto list = run_at(stub, {"node", "list"});
    CHECK(list.status == 0);
    CHECK(has(
        list.out,
        "a1cd0000 *  live, draining  a[31m  2         5          15       16      small, all  http://10.0.0.1:8080"));
    CHECK(has(list.out, "b2cd0000    gone            -      1         0          3        4       -           -"));
    CHECK(boost::json::parse(run_at(stub, {"nodes", "list", "-o", "json"}).out).as_array().size() == 2);
    const auto shown = run_at(stub, {"node", "show", "a1cd"});
    CHECK(has(shown.out, one));
    CHECK(has(shown.out, "live, draining, this one answers"));
    CHECK(has(shown.out, "15 of 16 copies"));
    CHECK(has(shown.out, "small, all"));
    CHECK(run_at(stub, {"node", "show", "ffff"}).status == 3);
    CHECK(run_at(stub, {"node", "drain", "a1cd"}).error ==
          "node " + one + " drains: 5 primaries and 16 copies go elsewhere\n");
    CHECK(run_at(stub, {"node", "undrain", "a1/d"}).error == "node " + one + " takes part\n");
    const auto seen = stub.seen();
    REQUIRE(seen.size() == 6);
    CHECK(seen[4].line == "POST /v1/cluster/nodes/a1cd/drain HTTP/1.1");
    CHECK(seen[4].body == "{}");
    CHECK(seen[5].line == "POST /v1/cluster/nodes/a1%2Fd/undrain HTTP/1.1");
    CHECK(run_at(stub, {"node", "drain"}).status == 2);
}

TEST_CASE("cli: shards are listed, shown with their decisions, and moved") {
    const StubDoor stub(door);
    const auto list = run_at(stub, {"shard", "list"});
    CHECK(has(list.out, "7      4      -        a1cd0000 b2cd0000  a1cd0000   b2cd0000  nobody leads it"));
    CHECK(has(list.out, "\n8 "));
    CHECK_FALSE(has(run_at(stub, {"shard", "list", "--problems"}).out, "\n8 "));
    CHECK(boost::json::parse(run_at(stub, {"shard", "list", "--problems", "-o", "json"}).out).as_array().size() == 1);
    const auto shown = run_at(stub, {"shard", "show", "7"});
    CHECK(has(shown.out, "nobody; last " + one));
    CHECK(has(shown.out, one + ", " + two));
    CHECK(has(shown.out, "does not lead it; its copy ends at 12, committed to 11"));
    CHECK(has(shown.out, "target node b2cd0000  node a1cd0000 drains"));
    CHECK(run_at(stub, {"shard", "move", "7", "--to", "b2cd"}).error == "shard 7 goes to node " + two + "\n");
    CHECK(stub.seen().back().line == "POST /v1/cluster/shards/7/move HTTP/1.1");
    CHECK(stub.seen().back().body == R"({"to":"b2cd"})");
    CHECK(run_at(stub, {"shard", "move", "7"}).status == 2);
}

TEST_CASE("cli: forcing a copy to lead needs to be told that loss is accepted, and says which") {
    const StubDoor stub(door);
    const auto asked = run_at(stub, {"shard", "force-lead", "7"});
    CHECK(asked.status == 2);
    CHECK(has(asked.error, "nothing was done. The copy on this node ends at index 12"));
    CHECK(has(asked.error, "sure to hold everything that was acknowledged: a1cd"));
    CHECK(stub.seen().size() == 1);
    const auto forced = run_at(stub, {"shard", "force-lead", "7", "--accept-loss"});
    CHECK(forced.status == 0);
    CHECK(has(forced.error, "it ended at index 12, and what was acknowledged beyond is lost"));
    CHECK(stub.seen().back().line == "POST /v1/cluster/shards/7/force_lead HTTP/1.1");
    CHECK(stub.seen().back().body == R"({"accept_loss_beyond":12})");
}

TEST_CASE("cli: a cluster's CA and its nodes' certificates are made offline, and nothing is overwritten") {
    const Folder folder;
    const std::string ca = folder.path() + "/ca", node = folder.path() + "/node";
    const auto made = run({"cluster", "init", ca, "-o", "json"});
    CHECK(made.status == 0);
    CHECK(has(made.error, "ca.key"));
    CHECK(boost::json::parse(made.out).at("cluster").as_string() == to_text(*read_cluster_uuid(ca)).c_str());
    const auto again = run({"cluster", "init", ca});
    CHECK(again.status == 1);
    CHECK(has(again.error, "(conflict)"));
    CHECK(run({"cluster", "join", ca, "--out", node, "--node", one}).status == 0);
    CHECK(check_certificate(node + "/ca.pem", node + "/node.pem", node + "/node.key", *parse_uuid(one)).ok());
    CHECK(run({"cluster", "join", ca, "--out", node, "--node", one}).status == 1);
    CHECK(run({"cluster", "join", ca, "--out", folder.path() + "/x", "--node", "a1"}).status == 2);
    CHECK_FALSE(std::filesystem::exists(folder.path() + "/x"));
    const auto random = run({"cluster", "join", ca, "--out", folder.path() + "/y", "-o", "json"});
    const std::string uuid(boost::json::parse(random.out).at("node").as_string());
    CHECK(read_certificate(folder.path() + "/y/node.pem")->node == parse_uuid(uuid));
    CHECK(uuid[14] == '4');
    CHECK(run({"cluster", "join", folder.path() + "/none", "--out", folder.path() + "/z"}).status == 1);
}

TEST_CASE("cli: a node that was alone is adopted: all that it had is applied, and it opens for its cluster only") {
    const Folder folder;
    const std::string ca = folder.path() + "/ca", data = folder.path() + "/data";
    REQUIRE(run({"cluster", "init", ca}).status == 0);
    CHECK(run({"cluster", "adopt", "--data", data, "--cluster", ca}).status == 3);
    CHECK_FALSE(std::filesystem::exists(data));
    NodeFold fold;
    SecureRandom random;
    const auto config_of = [&](const LocalCoordinator& coordinator) {
        DiskStoreConfig config;
        config.directory = data;
        config.uuid = coordinator.node_uuid();
        config.epoch = coordinator.epoch();
        config.fold = &fold;
        config.segment_bytes = 1024 * 1024;
        config.state_map_bytes = 64 * 1024 * 1024;
        config.disk_reserve_bytes = 1024 * 1024;
        return config;
    };
    {
        auto coordinator = LocalCoordinator::open(data, random);
        REQUIRE(coordinator.ok());
        auto store = DiskStore::open_disk(config_of(**coordinator));
        REQUIRE(store.ok());
        const auto held = run({"cluster", "adopt", "--data", data, "--cluster", ca});
        CHECK(held.status == 1);  // a daemon has it open
        CHECK(has(held.error, "(conflict)"));
        CHECK_FALSE((*store)->adopted_in().has_value());
        // Journalled last, so that it may not be applied when the process ends.
        ModelSpec model;
        model.name = "kept";
        Append append;
        append.kind = RecordKind::entity;
        append.session.tenant = TenantId{1};
        append.event_count = 1;
        append.payload = encode_model_entity(model, 1, "config");
        (*store)->append(std::move(append));
    }
    const auto adopted = run({"cluster", "adopt", "--data", data, "--cluster", ca, "-o", "json"});
    CAPTURE(adopted.error);
    REQUIRE(adopted.status == 0);
    CHECK(boost::json::parse(adopted.out).at("cluster").as_string() == to_text(*read_cluster_uuid(ca)).c_str());
    CHECK(boost::json::parse(adopted.out).at("epoch") == 2);
    CHECK(boost::json::parse(adopted.out).at("shards") == shard_count_default);
    CHECK(run({"cluster", "adopt", "--data", data, "--cluster", ca}).status == 1);
    auto coordinator = LocalCoordinator::open(data, random);
    REQUIRE(coordinator.ok());
    CHECK(DiskStore::open_disk(config_of(**coordinator)).error().code == ErrorCode::conflict);
    auto config = config_of(**coordinator);
    config.cluster = *read_cluster_uuid(ca);
    auto store = DiskStore::open_disk(config);
    REQUIRE(store.ok());
    CHECK((*store)->adopted_in() == Epoch(2));
    const auto entities = (*store)->entities();
    REQUIRE(entities.ok());
    REQUIRE(entities->size() == 1);
    CHECK(decode_entity((*entities)[0])->name == "kept");
}
