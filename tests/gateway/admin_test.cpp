#include <doctest/doctest.h>

#include "gateway/door_fixture.h"
#include "runtime/base/limits.h"

using namespace mainstay;

namespace {
std::string id_of(const Client::Answer& answer) {
    const auto value = answer.json();
    return std::string(value.at("id").as_string());
}
}  // namespace

TEST_CASE("conversations: made, read, changed, deleted") {
    RunningDoor running;
    const auto made = running.ask("POST", "/v1/conversations",
                                  R"({"metadata":{"a":"1"},"items":[{"role":"user","content":"hello"}]})");
    REQUIRE(made.status == 200);
    const auto id = id_of(made);
    CHECK(id.starts_with("conv_"));
    CHECK(made.json().at("object") == "conversation");
    CHECK(made.json().at("metadata").at("a") == "1");
    CHECK(running.ask("GET", "/v1/conversations/" + id).body == made.body);
    CHECK(running.ask("POST", "/v1/conversations/" + id, R"({"metadata":{"b":"2"}})").json().at("metadata").at("b") ==
          "2");
    CHECK(running.ask("POST", "/v1/conversations/" + id, "{}").code() == "invalid_request");

    const auto added =
        running.ask("POST", "/v1/conversations/" + id + "/items",
                    R"({"items":[{"role":"assistant","content":[{"type":"output_text","text":"hi"}]}]})");
    REQUIRE(added.status == 200);
    CHECK(added.json().at("data").at(0).at("content").at(0).at("type") == "output_text");
    const auto list = running.ask("GET", "/v1/conversations/" + id + "/items?order=asc&limit=10").json();
    CHECK(list.at("data").as_array().size() == 2);
    const auto item = std::string(list.at("first_id").as_string());
    const auto one = running.ask("GET", "/v1/conversations/" + id + "/items/" + item);
    CHECK(one.json().at("content").at(0).at("text") == "hello");
    CHECK(running.ask("DELETE", "/v1/conversations/" + id + "/items/" + item).code() == "not_yet");
    CHECK(running.ask("GET", "/v1/conversations/" + id + "/items/msg_x").code() == "item_not_found");
    for (const auto* query : {"?limit=0", "?limit=101", "?limit=x", "?order=up", "?after=x"}) {
        INFO(query);
        CHECK(running.ask("GET", "/v1/conversations/" + id + "/items" + query).code() == "invalid_request");
    }

    const auto gone = running.ask("DELETE", "/v1/conversations/" + id);
    CHECK(gone.json().at("deleted") == true);
    CHECK(running.ask("GET", "/v1/conversations/" + id).code() == "session_not_found");
    CHECK(running.ask("POST", "/v1/conversations").status == 200);
    CHECK(running.ask("POST", "/v1/conversations", R"({"itms":[]})").code() == "unknown_field");
}

TEST_CASE("conversations: the bounds on metadata and items are OpenAI's and ours") {
    RunningDoor running;
    std::string pairs;
    for (size_t i = 0; i <= limits::metadata_pairs_max; ++i)
        pairs += (i > 0 ? ",\"k" : "\"k") + std::to_string(i) + "\":\"v\"";
    CHECK(running.ask("POST", "/v1/conversations", "{\"metadata\":{" + pairs + "}}").code() == "invalid_request");
    std::string items;
    for (size_t i = 0; i <= limits::input_items_max; ++i)
        items += std::string(i > 0 ? "," : "") + R"({"role":"user","content":"x"})";
    CHECK(running.ask("POST", "/v1/conversations", "{\"items\":[" + items + "]}").code() == "invalid_request");
}

TEST_CASE("models and agents: listed, shown, applied") {
    RunningDoor running;
    const auto models = running.ask("GET", "/v1/models").json();
    CHECK(models.at("data").at(0).at("id") == "assistant");
    CHECK(models.at("data").at(1).at("id") == "scripted");
    CHECK(models.at("data").at(0).at("owned_by") == "mainstay");
    CHECK(running.ask("GET", "/v1/models/scripted").json().at("object") == "model");
    CHECK(running.ask("GET", "/v1/models/none").code() == "model_not_found");
    const auto agent = running.ask("GET", "/v1/agents/assistant").json();
    CHECK(agent.at("version") == "0000000000000abc");
    CHECK(agent.at("spec").at("name") == "assistant");
    CHECK(running.ask("GET", "/v1/agents").json().at("data").as_array().size() == 1);

    const auto applied = running.ask("POST", "/v1/agents?dry_run=true", R"({"name":"x"})").json();
    CHECK(applied.at("dry_run") == true);
    CHECK(applied.at("changed") == false);
    CHECK(applied.at("difference") == "json: {\"name\":\"x\"}");
    Client client(running.door.port());
    client.send(
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        "Content-Type: application/toml; charset=utf-8\r\nContent-Length: 8\r\n\r\nname='x'");
    CHECK(client.read().json().at("difference") == "toml: name='x'");
    client.send(
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        "Content-Type: text/html\r\nContent-Length: 8\r\n\r\nname='x'");
    CHECK(client.read().code() == "invalid_request");
}

TEST_CASE("sessions: listed in pages, with events; an unknown outcome is resolved") {
    RunningDoor running;
    for (int i = 0; i < 3; ++i) CHECK(running.ask("POST", "/v1/conversations", "{}").status == 200);
    const auto page = running.ask("GET", "/v1/sessions?limit=2").json();
    CHECK(page.at("data").as_array().size() == 2);
    CHECK(page.at("has_more") == true);
    const auto last = std::string(page.at("data").at(1).at("id").as_string());
    const auto rest = running.ask("GET", "/v1/sessions?limit=2&after=" + last).json();
    CHECK(rest.at("data").as_array().size() == 1);
    CHECK(rest.at("has_more") == false);
    CHECK(running.ask("GET", "/v1/sessions/" + last).json().at("state") == "idle");
    const auto events = running.ask("GET", "/v1/sessions/" + last + "/events").json();
    CHECK(events.at("data").at(0).at("name") == "SessionCreated");
    CHECK(events.at("data").at(0).at("event").at("ephemeral") == false);
    CHECK(running.ask("GET", "/v1/sessions/" + last + "/events?after=1").json().at("data").as_array().empty());
    CHECK(running.ask("GET", "/v1/sessions/" + last + "/events?after=x").code() == "invalid_request");

    const auto turn =
        running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"x","conversation":")" + last + "\"}")
            .json();
    const auto response = parse_response_id(std::string(turn.at("id").as_string()));
    REQUIRE(response);
    const auto call = to_text(ItemId{response->session, response->turn, 1}, "mcp");
    const auto address = "/v1/sessions/" + last + "/calls/" + call + "/resolve";
    CHECK(running.ask("POST", address, R"({"as":"done","result":{"b":[1]}})").status == 200);
    CHECK(running.bridge.last_result == R"({"b":[1]})");
    CHECK(running.ask("POST", address, R"({"as":"perhaps"})").code() == "invalid_request");
    CHECK(running.ask("POST", address, R"({"as":"done","reslt":1})").code() == "unknown_field");
    CHECK(running.ask("POST", "/v1/sessions/" + last + "/calls/x/resolve", R"({"as":"done"})").code() ==
          "call_not_found");
    CHECK(running.ask("DELETE", "/v1/sessions/" + last).json().at("deleted") == true);
    CHECK(running.ask("GET", "/v1/sessions/" + last).code() == "session_not_found");
    CHECK(running.ask("GET", "/").json().at("service") == "mainstay");
}
