// Steps between nodes as bytes: what is written is read as the same; whatever else comes is refused with words.
#include "actors/model_step_message.h"

#include <doctest/doctest.h>

#include <fstream>
#include <random>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

ItemPtr item_of(std::string text, std::shared_ptr<const StepTokens> tokens = nullptr) {
    Item item;
    item.kind = ItemKind::tool_call;
    item.role = Role::assistant;
    item.status = ItemStatus::incomplete;
    item.text = std::move(text);
    item.more_parts = {"a", "", "b"};
    item.call_id = "call_1";
    item.name = "look";
    item.server_label = "eyes";
    item.arguments = "{\"at\":\"sky\"";
    item.error = "clouds";
    item.step = 7;
    item.tokens = std::move(tokens);
    return std::make_shared<const Item>(std::move(item));
}

std::shared_ptr<const StepTokens> tokens_of(std::vector<uint32_t> ids) {
    auto out = std::make_shared<StepTokens>();
    for (size_t i = 0; i < out->tokenizer.size(); ++i) out->tokenizer[i] = uint8_t(i * 11);
    out->template_version = 3;
    out->ids = std::move(ids);
    return out;
}

RunRemoteStep full_step() {
    RunRemoteStep step;
    ModelRequest& request = step.request;
    request.request_id = ~0ull;
    step.model = "small/one:2";
    step.model_version = 0xfedcba9876543210;
    step.timeout_ms = 12'345;
    request.session = {TenantId{5}, {FamilyId{1}, 2, 3}};
    request.root = {TenantId{5}, {FamilyId{4}, 5, 6}};
    request.instructions = "be kind \xc3\xbc";
    request.prompt.settled = TurnRun(TurnRun::Turns{
        std::make_shared<const std::vector<ItemPtr>>(std::vector{item_of("one"), item_of("two", tokens_of({1, 2}))}),
        std::make_shared<const std::vector<ItemPtr>>()});
    request.prompt.open = {item_of(std::string("any \xff bytes\0 at all", 18))};
    request.tools = std::make_shared<const std::vector<ToolDefinition>>(
        std::vector<ToolDefinition>{{"look", "at it", "{\"type\":\"object\"}", true}});
    request.options = R"({"temperature":0})";
    request.max_output_tokens = 40;
    request.step = 2;
    request.attempt = 1;
    request.stream = true;
    request.idempotency_key = "resp_x:2";
    request.resume = tokens_of({9, 8, 7});
    return step;
}

void check_same(const RunRemoteStep& a, const RunRemoteStep& b) {
    CHECK(a.model == b.model);
    CHECK(a.model_version == b.model_version);
    CHECK(a.timeout_ms == b.timeout_ms);
    const ModelRequest &x = a.request, &y = b.request;
    CHECK(x.request_id == y.request_id);
    CHECK(x.session == y.session);
    CHECK(x.root == y.root);
    CHECK(x.instructions == y.instructions);
    CHECK(x.options == y.options);
    CHECK(x.idempotency_key == y.idempotency_key);
    CHECK(std::tie(x.max_output_tokens, x.step, x.attempt, x.stream) ==
          std::tie(y.max_output_tokens, y.step, y.attempt, y.stream));
    const auto same_items = [](const std::vector<ItemPtr>& left, const std::vector<ItemPtr>& right) {
        REQUIRE(left.size() == right.size());
        for (size_t i = 0; i < left.size(); ++i) {
            CHECK(*left[i] == *right[i]);
            REQUIRE((left[i]->tokens != nullptr) == (right[i]->tokens != nullptr));
            if (left[i]->tokens) CHECK(*left[i]->tokens == *right[i]->tokens);
        }
    };
    REQUIRE(x.prompt.settled.size() == y.prompt.settled.size());
    for (size_t i = 0; i < x.prompt.settled.size(); ++i) same_items(*x.prompt.settled[i], *y.prompt.settled[i]);
    same_items(x.prompt.open, y.prompt.open);
    REQUIRE((x.tools != nullptr) == (y.tools != nullptr));
    if (x.tools) {
        REQUIRE(x.tools->size() == y.tools->size());
        for (size_t i = 0; i < x.tools->size(); ++i) {
            const auto &left = (*x.tools)[i], &right = (*y.tools)[i];
            CHECK(std::tie(left.name, left.description, left.parameters, left.strict) ==
                  std::tie(right.name, right.description, right.parameters, right.strict));
        }
    }
    REQUIRE((x.resume != nullptr) == (y.resume != nullptr));
    if (x.resume) CHECK(*x.resume == *y.resume);
}

ModelResult full_result() {
    ModelResult result;
    result.text = "yes \xe2\x82\xac";
    result.calls = {{"call_1", "look", "{\"at\":"}, {"", "", ""}};
    result.finish_reason = "stop";
    result.model = "small";
    result.usage = {1, 2, 3, 4, 5, 6, true};
    result.tokens = tokens_of({4, 5});
    return result;
}

}  // namespace

TEST_CASE("model step message: what is written is read as the same") {
    RunRemoteStep bare;
    bare.model = "m";
    for (const RunRemoteStep& step : {full_step(), bare}) {
        const auto read = decode_step_call(encode_step(step));
        REQUIRE(read.ok());
        check_same(std::get<RunRemoteStep>(*read), step);
    }
    CHECK(std::get<PauseRemoteStep>(*decode_step_call(encode_pause({77}))).request_id == 77);
    const SessionKey session{TenantId{5}, {FamilyId{1}, 2, 3}};
    CHECK(std::get<RestRemoteSession>(*decode_step_call(encode_rest({session}))).session == session);

    CHECK(std::get<StepDelta>(*decode_step_part(encode_delta("so \xc3\xbc"))).text == "so \xc3\xbc");
    const auto ended = [](StepEnded of) { return std::get<StepEnded>(*decode_step_part(encode_ended(of))); };
    const auto done = ended({full_result(), {3, 4}});
    CHECK(done.load == HostLoad{3, 4});
    const auto& result = std::get<ModelResult>(done.outcome);
    CHECK(result.text == full_result().text);
    REQUIRE(result.calls.size() == 2);
    CHECK(result.calls[0].arguments == "{\"at\":");
    CHECK(result.finish_reason == "stop");
    CHECK(result.model == "small");
    CHECK(result.usage == full_result().usage);
    CHECK(*result.tokens == *full_result().tokens);
    CHECK(std::get<ModelResult>(ended({ModelResult{}, {}}).outcome).tokens == nullptr);
    for (int i = 0; i <= int(ErrorClass::lost); ++i) {
        const auto error = std::get<ModelError>(
            ended({ModelError{ErrorClass(i), ErrorCode::context_overflow, "no", 5, 6, 7}, {}}).outcome);
        CHECK(error.error_class == ErrorClass(i));
        CHECK(error.code == ErrorCode::context_overflow);
        CHECK(std::tie(error.message, error.retry_after_ms, error.context_tokens, error.context_limit) ==
              std::tuple<std::string, uint32_t, uint32_t, uint32_t>("no", 5, 6, 7));
    }
    CHECK(std::get<StepTokens>(ended({*tokens_of({1, 2, 3}), {}}).outcome) == *tokens_of({1, 2, 3}));
    CHECK(std::get<StepTokens>(ended({StepTokens{}, {}}).outcome) == StepTokens{});
}

TEST_CASE("model step message: what no step is, is refused") {
    const auto refused = [](const auto& read) {
        REQUIRE_FALSE(read.ok());
        CHECK(read.error().code == ErrorCode::peer_refused);
        CHECK_FALSE(read.error().message.empty());
    };
    auto step = full_step();
    step.request.instructions = "\xff";
    refused(decode_step_call(encode_step(step)));
    step = full_step();
    step.model = std::string(limits::name_bytes_max + 1, 'm');
    refused(decode_step_call(encode_step(step)));
    step = full_step();
    step.request.resume = tokens_of(std::vector<uint32_t>(limits::step_tokens_max + 1));
    refused(decode_step_call(encode_step(step)));
    step = full_step();
    step.request.prompt.open.assign(300'000, std::make_shared<const Item>());
    refused(decode_step_call(encode_step(step)));

    refused(decode_step_part(encode_delta("\xc3")));
    ModelResult result = full_result();
    result.text = std::string(limits::model_text_bytes_max + 1, 'x');
    refused(decode_step_part(encode_ended({result, {}})));
    result = full_result();
    result.calls.resize(limits::tool_calls_per_step_max + 1);
    refused(decode_step_part(encode_ended({result, {}})));
    result = full_result();
    result.calls[0].arguments = std::string(limits::tool_arguments_bytes_max + 1, ' ');
    refused(decode_step_part(encode_ended({result, {}})));
    // Of one kind it is not of the other: both begin with a choice, and that of the other is not known.
    refused(decode_step_part(std::string(16, '\0')));
    refused(decode_step_call(""));
    refused(decode_step_call("1234567"));
}

TEST_CASE("model step message: cut off or changed anywhere, it is refused or within its bounds") {
    std::mt19937 random(7);
    for (const std::string& whole :
         {encode_step(full_step()), encode_ended({full_result(), {1, 2}}), encode_delta("hello"), encode_pause({1})}) {
        for (size_t size = 0; size < whole.size(); ++size) {
            CHECK_FALSE(decode_step_call(std::string_view(whole).substr(0, size)).ok());
            CHECK_FALSE(decode_step_part(std::string_view(whole).substr(0, size)).ok());
        }
        for (int i = 0; i < 20'000; ++i) {
            std::string damaged = whole;
            for (int n = 0; n < 1 + i % 3; ++n) damaged[random() % damaged.size()] = char(random());
            if (const auto call = decode_step_call(damaged); call.ok() && std::holds_alternative<RunRemoteStep>(*call))
                CHECK(decode_step_call(encode_step(std::get<RunRemoteStep>(*call))).ok());
            if (const auto part = decode_step_part(damaged); part.ok() && std::holds_alternative<StepEnded>(*part))
                CHECK(decode_step_part(encode_ended(std::get<StepEnded>(*part))).ok());
        }
    }
}
