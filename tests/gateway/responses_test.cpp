#include <doctest/doctest.h>

#include "gateway/door_fixture.h"

using namespace mainstay;

TEST_CASE("responses: a turn is answered with every key of the object") {
    RunningDoor running;
    const auto answer = running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"hi \"you\"\n\u00e9"})");
    REQUIRE(answer.status == 200);
    CHECK(answer.has("Content-Type: application/json\r\n"));
    CHECK(answer.has("x-request-id: req_"));
    const auto object = answer.json().as_object();
    for (const auto* key : {"id",
                            "object",
                            "created_at",
                            "completed_at",
                            "status",
                            "incomplete_details",
                            "model",
                            "previous_response_id",
                            "instructions",
                            "output",
                            "error",
                            "tools",
                            "tool_choice",
                            "truncation",
                            "parallel_tool_calls",
                            "text",
                            "top_p",
                            "presence_penalty",
                            "frequency_penalty",
                            "top_logprobs",
                            "temperature",
                            "reasoning",
                            "usage",
                            "max_output_tokens",
                            "max_tool_calls",
                            "store",
                            "background",
                            "service_tier",
                            "metadata",
                            "safety_identifier",
                            "prompt_cache_key",
                            "conversation"}) {
        INFO(key);
        CHECK(object.contains(key));
    }
    CHECK(object.at("status") == "completed");
    CHECK(object.at("created_at") == 1'700'000'000);
    CHECK(object.at("completed_at") == 1'700'000'001);
    const auto& item = object.at("output").at(0);
    CHECK(item.at("type") == "message");
    CHECK(item.at("role") == "assistant");
    CHECK(item.at("content").at(0).at("text") == "echo: hi \"you\"\n\xc3\xa9");
    CHECK(item.at("content").at(0).at("annotations").as_array().empty());
    CHECK(object.at("usage").at("total_tokens") == 18);
    CHECK(object.at("usage").at("input_tokens_details").at("cached_tokens") == 0);

    const auto id = std::string(object.at("id").as_string());
    const auto again = running.ask("GET", "/v1/responses/" + id);
    CHECK(again.status == 200);
    CHECK(again.body == answer.body);
    const auto head = running.ask("HEAD", "/v1/responses/" + id);
    CHECK(head.status == 200);
    CHECK(head.has("Content-Length: " + std::to_string(answer.body.size())));

    const auto inputs = running.ask("GET", "/v1/responses/" + id + "/input_items");
    REQUIRE(inputs.status == 200);
    const auto list = inputs.json();
    CHECK(list.at("data").at(0).at("role") == "user");
    CHECK(list.at("data").at(0).at("content").at(0).at("type") == "input_text");
    CHECK(list.at("has_more") == false);
}

TEST_CASE("responses: what a request sets is passed on and echoed") {
    RunningDoor running;
    const auto answer = running.ask("POST", "/v1/responses", R"({
        "model":"assistant","instructions":"be brief","temperature":0.5,"top_p":0.25,"max_output_tokens":100,
        "metadata":{"b":"2","a":"1"},"include":[],"user":"u","tool_choice":"required","parallel_tool_calls":false,
        "tools":[{"type":"function","name":"f","parameters":{"$schema":"x","z":1},"strict":true}],
        "input":[{"role":"developer","content":"d"},
                 {"type":"message","role":"user","content":[{"type":"input_text","text":"one"},
                                                            {"type":"input_text","text":"two"}]},
                 {"type":"function_call_output","call_id":"c1","output":"42","status":"completed"}]})",
                                    "X-Mainstay-Timeout-Ms: 5000\r\nIdempotency-Key: k-1\r\n");
    REQUIRE(answer.status == 200);
    const auto object = answer.json();
    CHECK(object.at("instructions") == "be brief");
    CHECK(object.at("temperature") == 0.5);
    CHECK(object.at("top_p") == 0.25);
    CHECK(object.at("max_output_tokens") == 100);
    CHECK(object.at("metadata").at("a") == "1");
    CHECK(object.at("user") == "u");
    CHECK(object.at("tool_choice") == "required");
    CHECK(object.at("parallel_tool_calls") == false);
    const auto& tool = object.at("tools").at(0);
    CHECK(tool.at("description").is_null());
    CHECK(tool.at("parameters").at("$schema") == "x");
    CHECK(tool.at("strict") == true);

    const auto request = running.bridge.last_request();
    CHECK(request.principal.name == "admin");
    CHECK(request.timeout_ms == 5000);
    CHECK(request.idempotency_key == "k-1");
    CHECK(request.request_digest != 0);
    CHECK(request.max_output_tokens == 100u);
    REQUIRE(request.items.size() == 3);
    CHECK(request.items[0]->role == Role::developer);
    CHECK(request.items[1]->text == "one");
    CHECK(request.items[1]->more_parts == std::vector<std::string>{"two"});
    CHECK(request.items[2]->kind == ItemKind::function_call_output);
    CHECK(request.items[2]->text == "42");
}

TEST_CASE("responses: a conversation or a previous response is continued") {
    RunningDoor running;
    const auto conversation = running.ask("POST", "/v1/conversations", R"({"metadata":{"k":"v"}})").json();
    const auto id = std::string(conversation.at("id").as_string());
    const auto first =
        running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"a","conversation":")" + id + "\"}")
            .json();
    CHECK(first.at("conversation").at("id") == id.c_str());
    const auto response = std::string(first.at("id").as_string());
    const auto second = running
                            .ask("POST", "/v1/responses",
                                 R"({"model":"assistant","input":"b","previous_response_id":")" + response + "\"}")
                            .json();
    CHECK(second.at("previous_response_id") == response.c_str());
    CHECK(second.at("conversation").is_null());
    const auto both = running.ask("POST", "/v1/responses",
                                  R"({"model":"assistant","input":"b","previous_response_id":")" + response +
                                      R"(","conversation":{"id":")" + id + "\"}}");
    CHECK(both.status == 400);
    CHECK(both.json().at("error").at("param") == "conversation");
}

TEST_CASE("responses: a refusal is an HTTP error, a failed turn is a response") {
    RunningDoor running;
    const auto unknown = running.ask("POST", "/v1/responses", R"({"model":"nobody","input":"x"})");
    CHECK(unknown.status == 404);
    CHECK(unknown.code() == "model_not_found");
    CHECK(unknown.json().at("error").at("param") == "model");

    running.bridge.on_create = [&](TurnRequest request, Callback<TurnAnswer> done) {
        auto answer = running.bridge.make_turn(request, "");
        auto turn = std::make_shared<Turn>(*answer.turn);
        turn->status = TurnStatus::failed;
        turn->code = "model_timeout";
        turn->message = "too slow";
        turn->items.resize(turn->input_count);
        answer.turn = turn;
        done(answer);
    };
    const auto failed = running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"x"})");
    CHECK(failed.status == 200);
    CHECK(failed.json().at("status") == "failed");
    CHECK(failed.json().at("error").at("code") == "model_timeout");
    CHECK(failed.json().at("output").as_array().empty());

    running.bridge.on_create = [](TurnRequest, Callback<TurnAnswer> done) {
        done(Error{ErrorCode::input_queue_full, "16 inputs wait.", {}});
    };
    const auto full = running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"x"})");
    CHECK(full.status == 429);
    CHECK(full.has("Retry-After: "));

    running.bridge.on_create = [](TurnRequest, Callback<TurnAnswer>) {};  // the node loses it
    const auto lost = running.ask("POST", "/v1/responses", R"({"model":"assistant","input":"x"})");
    CHECK(lost.status == 500);
    CHECK(lost.code() == "internal");
}

TEST_CASE("responses: a wrong field is named") {
    RunningDoor running;
    struct Case {
        const char* body;
        const char* code;
        const char* param;
    };
    const Case cases[] = {
        {R"({"input":"x"})", "invalid_request", "model"},
        {R"({"model":"assistant"})", "invalid_request", "input"},
        {R"({"model":7,"input":"x"})", "invalid_request", "model"},
        {R"({"model":"assistant","input":"x","modle":1})", "unknown_field", "modle"},
        {R"({"model":"assistant","input":{}})", "invalid_request", "input"},
        {R"({"model":"assistant","input":[7]})", "invalid_request", "input[0]"},
        {R"({"model":"assistant","input":[{"role":"user","content":"a"},{"role":"user","content":7}]})",
         "invalid_request", "input[1].content"},
        {R"({"model":"assistant","input":[{"role":"robot","content":"a"}]})", "unsupported_value", "input[0].role"},
        {R"({"model":"assistant","input":[{"role":"user","content":[{"type":"input_image","image_url":"x"}]}]})",
         "unsupported_value", "input[0].content[0].type"},
        {R"({"model":"assistant","input":[{"type":"item_reference","id":"x"}]})", "unsupported_value", "input[0].type"},
        {R"({"model":"assistant","input":"x","tools":[{"type":"web_search"}]})", "unsupported_value", "tools[0].type"},
        {R"({"model":"assistant","input":"x","tools":[{"type":"function","name":"a b"}]})", "invalid_request",
         "tools[0].name"},
        {R"({"model":"assistant","input":"x","temperature":3})", "invalid_request", "temperature"},
        {R"({"model":"assistant","input":"x","max_output_tokens":1.5})", "invalid_request", "max_output_tokens"},
        {R"({"model":"assistant","input":"x","metadata":{"a":1}})", "invalid_request", "metadata"},
        {R"({"model":"assistant","input":"x","previous_response_id":"resp_nope"})", "previous_response_not_found",
         "previous_response_id"},
        {R"({"model":"assistant","input":"x","conversation":"conv_nope"})", "session_not_found", "conversation"},
        {R"({"model":"assistant","input":"x","truncation":"some"})", "unsupported_value", "truncation"},
        {R"({"model":"assistant","input":"x","background":true,"store":false})", "invalid_request", "background"},
        {R"({"model":"assistant","input":"x","prompt":{"id":"p"}})", "not_yet", "prompt"},
    };
    for (const auto& test : cases) {
        INFO(test.body);
        const auto answer = running.ask("POST", "/v1/responses", test.body);
        CHECK(answer.status >= 400);
        CHECK(answer.status < 500);
        CHECK(answer.code() == test.code);
        CHECK(answer.json().at("error").at("param") == test.param);
    }
    const auto null_fields = running.ask(
        "POST", "/v1/responses", R"({"model":"assistant","input":"x","tools":null,"metadata":null,"top_p":null})");
    CHECK(null_fields.status == 200);
}

TEST_CASE("responses: ids that are none are not found") {
    RunningDoor running;
    CHECK(running.ask("GET", "/v1/responses/resp_x").code() == "response_not_found");
    CHECK(running.ask("GET", "/v1/responses/%ff%fe").code() == "invalid_request");
    CHECK(running.ask("POST", "/v1/responses/resp_x/cancel").code() == "response_not_found");
    CHECK(running.ask("GET", "/v1/responses/%zz").code() == "invalid_request");
}
