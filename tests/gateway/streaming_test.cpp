// Streams over a socket: framing, refusals, readers that are slow or leave.

#include <doctest/doctest.h>

#include "gateway/door_fixture.h"

using namespace mainstay;

namespace {
const std::string body = R"({"model":"assistant","input":"hi","stream":true})";
}

TEST_CASE("streaming: a turn is streamed and the connection goes on") {
    RunningDoor running;
    Client client(running.door.port());
    for (int i = 0; i < 3; ++i) {
        client.send(RunningDoor::request("POST", "/v1/responses", body));
        const auto answer = client.read();
        REQUIRE(answer.status == 200);
        CHECK(answer.has("Content-Type: text/event-stream\r\n"));
        CHECK(answer.body.starts_with("event: response.created\ndata: {"));
        CHECK(answer.body.find("event: response.completed\n") != std::string::npos);
        CHECK(answer.body.find("[DONE]") == std::string::npos);
    }
    client.send(RunningDoor::request("POST", "/v1/responses", body) + RunningDoor::request("GET", "/v1/models"));
    CHECK(client.read().has("text/event-stream"));
    CHECK(client.read().has("application/json"));
}

TEST_CASE("streaming: a settled response is streamed once more, a running one and a middle are refused") {
    RunningDoor running;
    const auto made = running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"hi"})");
    const auto object = made.json();
    const std::string path = "/v1/responses/" + std::string(object.at("id").as_string());
    const auto replayed = running.ask("GET", path + "?stream=true");
    REQUIRE(replayed.status == 200);
    CHECK(replayed.has("Content-Type: text/event-stream\r\n"));
    CHECK(replayed.body.starts_with("event: response.created\ndata: {"));
    std::string text, last;
    int64_t number = 0;
    for (size_t at = 0; (at = replayed.body.find("\ndata: ", at)) != std::string::npos;) {
        at += 7;
        const auto event = boost::json::parse(replayed.body.substr(at, replayed.body.find('\n', at) - at));
        CHECK(event.at("sequence_number") == number++);
        last = event.at("type").as_string();
        if (last == "response.output_text.delta") text += event.at("delta").as_string();
        if (last == "response.completed") CHECK(event.at("response") == object);
    }
    CHECK(last == "response.completed");
    CHECK(text == object.at("output").at(0).at("content").at(0).at("text").as_string());
    CHECK(running.ask("GET", path + "?stream=true&starting_after=3").code() == "not_yet");
    CHECK(running.ask("GET", "/v1/responses/resp_x?stream=true").code() == "response_not_found");
}

TEST_CASE("streaming: a refusal before acceptance is an HTTP error") {
    RunningDoor running;
    running.bridge.on_stream = [](TurnRequest, StreamCallback on_event) {
        on_event(StreamFailed{{ErrorCode::session_busy, "busy", {}}});
    };
    const auto answer = running.ask("POST", "/v1/responses", body);
    CHECK(answer.status == 429);
    CHECK(answer.code() == "session_busy");
    running.bridge.on_stream = [](TurnRequest, StreamCallback) {};  // the node loses it
    CHECK(running.ask("POST", "/v1/responses", body).code() == "internal");
}

TEST_CASE("streaming: a quiet stream is kept open by comments; a client that leaves is unsubscribed") {
    auto config = RunningDoor::quick();
    config.sse_comment_interval_ms = 30;
    RunningDoor running(config);
    StreamCallback held;
    std::atomic<bool> begun{false};
    running.bridge.on_stream = [&](TurnRequest request, StreamCallback on_event) {
        auto turn = std::make_shared<Turn>(*running.bridge.make_turn(request, "x").turn);
        turn->status = TurnStatus::in_progress;
        TurnAnswer answer;
        answer.session = {FamilyId{1}, 1, 1};
        answer.turn = turn;
        on_event(StreamAccepted{answer});
        held = std::move(on_event);
        begun = true;
    };
    {
        Client client(running.door.port());
        client.send(RunningDoor::request("POST", "/v1/responses", body));
        CHECK(client.received("response.in_progress"));
        CHECK(client.received(": still here\n\n"));
    }
    REQUIRE(eventually([&] { return begun.load(); }));
    CHECK(eventually([&] { return running.bridge.unsubscribed() == 1; }));
    held(StreamDelta{0, 1, "to nobody"});
    held = nullptr;
}

TEST_CASE("streaming: a reader slower than its stream is cut off, within bounds") {
    RunningDoor running;
    running.bridge.on_stream = [&](TurnRequest request, StreamCallback on_event) {
        auto turn = std::make_shared<Turn>(*running.bridge.make_turn(request, "x").turn);
        turn->status = TurnStatus::in_progress;
        TurnAnswer answer;
        answer.session = {FamilyId{1}, 1, 1};
        answer.turn = turn;
        on_event(StreamAccepted{answer});
        for (int i = 0; i < 3000; ++i) on_event(StreamDelta{0, 1, std::string(16 * 1024, 'x')});
    };
    Client client(running.door.port());
    client.send(RunningDoor::request("POST", "/v1/responses", body));
    CHECK(eventually([&] { return running.bridge.unsubscribed() == 1; }));
    const auto answer = client.read();
    CHECK(answer.body.size() < 3000 * 16 * 1024);
    CHECK(answer.body.find("response.completed") == std::string::npos);
}
