#include "runtime/inference/scripted_device.h"

#include <doctest/doctest.h>

#include <set>

#include "tests/support/model_sink.h"

using namespace mainstay;

namespace {

ItemPtr message(Role role, std::string text) {
    Item item;
    item.role = role;
    item.text = std::move(text);
    return std::make_shared<const Item>(std::move(item));
}

ItemPtr tool_output(std::string text) {
    Item item;
    item.kind = ItemKind::tool_call;
    item.text = std::move(text);
    return std::make_shared<const Item>(std::move(item));
}

ScriptStep step(std::string text) {
    ScriptStep out;
    out.text = std::move(text);
    return out;
}

ModelPtr model_of(std::vector<ScriptStep> script) {
    ModelSpec model;
    model.name = "stand-in";
    model.device = "scripted";
    model.script = std::move(script);
    return std::make_shared<const ModelSpec>(std::move(model));
}

ModelRequest request_of(ModelPtr model, std::string input, uint32_t step_no = 0) {
    static uint64_t next_id = 1;
    ModelRequest request;
    request.request_id = next_id++;
    request.model = std::move(model);
    request.prompt.open.push_back(message(Role::user, std::move(input)));
    request.step = step_no;
    request.idempotency_key = "turn-1";
    return request;
}

std::shared_ptr<RecordingSink> run(ScriptedDevice& device, ModelRequest request) {
    auto sink = std::make_shared<RecordingSink>();
    device.submit(std::move(request), sink);
    REQUIRE(sink->wait());
    CHECK(sink->ends() == 1);
    return sink;
}

}  // namespace

TEST_CASE("scripted device: a step without delay is over when submit returns") {
    ScriptedDevice device;
    auto sink = std::make_shared<RecordingSink>();
    device.submit(request_of(model_of({step("hello")}), "hi"), sink);
    REQUIRE(sink->ends() == 1);
    CHECK(sink->result()->text == "hello");
    CHECK(sink->result()->finish_reason == "stop");
    CHECK(sink->result()->model == "stand-in");
    CHECK(sink->result()->usage.simulated);
    CHECK(sink->result()->usage.output_tokens == 2);
}

TEST_CASE("scripted device: the steps of a turn follow the script and the last is repeated") {
    ScriptedDevice device;
    const auto model = model_of({step("one"), step("two")});
    CHECK(run(device, request_of(model, "hi", 0))->result()->text == "one");
    CHECK(run(device, request_of(model, "hi", 1))->result()->text == "two");
    CHECK(run(device, request_of(model, "hi", 7))->result()->text == "two");
}

TEST_CASE("scripted device: text has the size asked for, differs between turns and repeats itself for one key") {
    ScriptedDevice device;
    ScriptStep sized;
    sized.text_bytes = 400;
    const auto model = model_of({sized});
    std::set<std::string> texts;
    for (int turn = 0; turn < 100; ++turn) {
        auto request = request_of(model, "hi");
        request.idempotency_key = "turn-" + std::to_string(turn);
        auto again = request;
        again.request_id += 1'000'000;
        again.attempt = 3;
        const auto text = run(device, request)->result()->text;
        CHECK(text.size() == 400);
        CHECK(text == run(device, again)->result()->text);
        texts.insert(text);
    }
    CHECK(texts.size() == 100);
    std::string large;
    append_prose(large, 1'000'001, 7);
    CHECK(large.size() == 1'000'001);
}

TEST_CASE("scripted device: placeholders stand for the conversation, other braces for themselves") {
    ScriptedDevice device;
    auto call = step(R"({input}|{first_input}|{tool}|{unknown}|{"a":1}|{)");
    call.call_tool = "files/read";
    call.call_arguments = R"({"path":"{input}","pad":"{prose:40}"})";
    auto request = request_of(model_of({call}), "say \"x\"\n");
    request.prompt.open.push_back(tool_output("contents"));
    TurnRun::Turns turns;
    turns.push_back(std::make_shared<const std::vector<ItemPtr>>(
        std::vector{message(Role::user, "first"), message(Role::assistant, "ok")}));
    request.prompt.settled = TurnRun(std::move(turns));
    const auto result = *run(device, request)->result();
    CHECK(result.text == "say \"x\"\n|first|contents|{unknown}|{\"a\":1}|{");
    REQUIRE(result.calls.size() == 1);
    CHECK(result.calls[0].arguments.starts_with(R"({"path":"say \"x\"\n","pad":")"));
    CHECK(result.calls[0].arguments.size() == std::string_view(R"({"path":"say \"x\"\n","pad":""})").size() + 40);
    CHECK(result.calls[0].name == "read");
    CHECK(result.finish_reason == "tool_calls");
}

TEST_CASE("scripted device: a call carries the name under which the tool is offered") {
    ScriptedDevice device;
    ScriptStep call;
    call.call_tool = "files/read";
    auto request = request_of(model_of({call}), "hi");
    for (const std::string offered : {"read", "files__read"}) {
        request.tools = std::make_shared<const std::vector<ToolDefinition>>(
            std::vector<ToolDefinition>{{"other__read", "", "{}", false}, {offered, "", "{}", false}});
        const auto result = *run(device, request)->result();
        REQUIRE(result.calls.size() == 1);
        CHECK(result.calls[0].name == offered);
        CHECK(result.calls[0].call_id.starts_with("call_"));
    }
}

TEST_CASE("scripted device: a step whose `when` does not fit is skipped") {
    ScriptedDevice device;
    auto read = step("");
    read.when = "file";
    read.call_tool = "files/read";
    auto told = step("it says {tool}");
    told.when = "file";
    const auto model = model_of({read, told, step("else")});
    CHECK(run(device, request_of(model, "read the file", 0))->result()->calls.size() == 1);
    CHECK(run(device, request_of(model, "read the file", 1))->result()->text == "it says ");
    CHECK(run(device, request_of(model, "hello", 0))->result()->text == "else");
    const auto error = *run(device, request_of(model_of({read}), "hello"))->error();
    CHECK(error.error_class == ErrorClass::invalid);
}

TEST_CASE("scripted device: a failing step fails its first attempts with its class") {
    ScriptedDevice device;
    auto failing = step("at last");
    failing.fail_class = "rate_limited";
    failing.fail_times = 2;
    const auto model = model_of({failing});
    for (uint32_t attempt = 0; attempt < 4; ++attempt) {
        auto request = request_of(model, "hi");
        request.attempt = attempt;
        const auto sink = run(device, request);
        if (attempt < 2) {
            REQUIRE(sink->error());
            CHECK(sink->error()->error_class == ErrorClass::rate_limited);
            CHECK(sink->error()->code == ErrorCode::model_rate_limited);
        } else {
            REQUIRE(sink->result());
            CHECK(sink->result()->text == "at last");
        }
    }
}

TEST_CASE("scripted device: a step may fail where the whole prompt is longer than the model's window") {
    ScriptedDevice device;
    auto failing = step("fits");
    failing.fail_class = "context_overflow";
    failing.fail_times = 1;
    auto spec = *model_of({failing});
    spec.context_window = 10;
    const auto model = std::make_shared<const ModelSpec>(spec);
    CHECK(run(device, request_of(model, std::string(40, 'x')))->result());
    const auto sink = run(device, request_of(model, std::string(41, 'x')));
    REQUIRE(sink->error());
    CHECK(sink->error()->error_class == ErrorClass::context_overflow);
    CHECK(sink->error()->context_tokens == 11);
    CHECK(sink->error()->context_limit == 10);
}

TEST_CASE("scripted device: output is cut at the token bound, at a character's border, and calls are dropped") {
    ScriptedDevice device;
    auto call = step("abc\u00e9\u00e9\u00e9\u00e9");
    call.call_tool = "files/read";
    auto request = request_of(model_of({call}), "hi");
    request.max_output_tokens = 2;
    const auto result = *run(device, request)->result();
    CHECK(result.text == "abc\u00e9\u00e9");
    CHECK(result.finish_reason == "length");
    CHECK(result.calls.empty());
    CHECK(result.usage.output_tokens == 2);
}

TEST_CASE("scripted device: joined deltas equal the text, with and without delay") {
    ScriptedDevice device;
    for (const uint32_t delay : {0u, 8u}) {
        auto slow = step("na\u00efve caf\u00e9 \u4e16\u754c");
        slow.delay_ms = delay;
        auto request = request_of(model_of({slow}), "hi");
        request.stream = true;
        const auto sink = run(device, request);
        CHECK(sink->deltas().size() == 4);
        CHECK(sink->joined() == sink->result()->text);
    }
}

TEST_CASE("scripted device: a delayed step can be cancelled and its sink stays silent") {
    ScriptedDevice device;
    auto slow = step("late");
    slow.delay_ms = 3'600'000;
    auto quick = step("soon");
    quick.delay_ms = 1;
    auto cancelled = std::make_shared<RecordingSink>();
    auto request = request_of(model_of({slow}), "hi");
    device.submit(request, cancelled);
    device.cancel(request.request_id);
    device.cancel(request.request_id);
    CHECK(run(device, request_of(model_of({quick}), "hi"))->result()->text == "soon");
    CHECK(cancelled->ends() == 0);
    CHECK(cancelled.use_count() == 1);
}

TEST_CASE("scripted device: a delay beyond the deadline ends as a timeout at the deadline") {
    ScriptedDevice device;
    auto slow = step("late");
    slow.delay_ms = 3'600'000;
    auto request = request_of(model_of({slow}), "hi");
    request.deadline = SystemClock().now_ms() + 5;
    CHECK(run(device, request)->error()->error_class == ErrorClass::timeout);
}

TEST_CASE("scripted device: a script that cannot be played is refused with its step") {
    CHECK(ScriptedDevice::check(*model_of({step("fine")})).ok());
    CHECK_FALSE(ScriptedDevice::check(*model_of({})).ok());
    auto wrong = step("x");
    wrong.fail_class = "sometimes";
    const auto refused = ScriptedDevice::check(*model_of({step("fine"), wrong}));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::unsupported_value);
    CHECK(refused.error().message.find("step 1") != std::string::npos);
    auto both = step("x");
    both.text_bytes = 3;
    CHECK_FALSE(ScriptedDevice::check(*model_of({both})).ok());
    CHECK_FALSE(ScriptedDevice::check(*model_of({step("{prose:4000000000}")})).ok());
}
