#include "runtime/inference/chat_reply.h"

#include <doctest/doctest.h>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

struct Outcome {
    std::string text;  // told in deltas
    std::optional<ModelResult> result;
    std::optional<ModelError> error;
};

Outcome play(const std::vector<std::string>& events) {
    Outcome out;
    ChatReply reply(7);
    for (const auto& event : events) {
        std::string text;
        if (auto error = reply.take_event(event, text)) {
            out.error = std::move(*error);
            return out;
        }
        out.text += text;
    }
    auto outcome = reply.finish();
    if (auto* error = std::get_if<ModelError>(&outcome)) {
        out.error = std::move(*error);
    } else {
        out.result = std::get<ModelResult>(std::move(outcome));
    }
    return out;
}

std::string chunk(const std::string& delta, const std::string& finish = "") {
    return R"({"id":"c","model":"m1","choices":[{"index":0,"delta":)" + delta + R"(,"finish_reason":)" +
           (finish.empty() ? "null" : "\"" + finish + "\"") + "}]}";
}

const std::string done = "[DONE]";

ErrorClass class_of(int status, std::string body = "", std::vector<HttpHeader> headers = {}) {
    return classify_upstream_error(status, headers, body, 0, "").error_class;
}

}  // namespace

TEST_CASE("chat reply: pieces of text and usage are put together") {
    const auto out = play(
        {chunk(R"({"role":"assistant","content":""})"), chunk(R"({"content":"Hel"})"),
         chunk(R"({"content":"lo \u00e9"})"), chunk("{}", "stop"),
         R"({"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":1}}})",
         done});
    REQUIRE(out.result);
    CHECK(out.result->text == "Hello \u00e9");
    CHECK(out.text == out.result->text);
    CHECK(out.result->finish_reason == "stop");
    CHECK(out.result->model == "m1");
    CHECK(out.result->usage == Usage{10, 4, 3, 1, 0, 0, false});
}

TEST_CASE("chat reply: calls are put together by index, by id or by place") {
    const std::vector<std::vector<std::string>> dialects = {
        {chunk(R"({"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]})"),
         chunk(R"({"tool_calls":[{"index":0,"function":{"arguments":"{\"x\""}}]})"),
         chunk(R"({"tool_calls":[{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}}]})"),
         chunk(R"({"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]})"), chunk("{}", "tool_calls"), done},
        {chunk(R"({"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]})"),
         chunk(R"({"tool_calls":[{"id":"b","function":{"name":"g","arguments":{}}}]})"), chunk("{}", "stop"), done},
        {chunk(
             R"({"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}},{"id":"b","function":{"name":"g"}}]})",
             "tool_calls"),
         done}};
    for (const auto& events : dialects) {
        const auto out = play(events);
        REQUIRE(out.result);
        CHECK(out.result->finish_reason == "tool_calls");
        REQUIRE(out.result->calls.size() == 2);
        CHECK(out.result->calls[0].call_id == "a");
        CHECK(out.result->calls[0].name == "f");
        CHECK(out.result->calls[0].arguments == R"({"x":1})");
        CHECK(out.result->calls[1].call_id == "b");
        CHECK(out.result->calls[1].name == "g");
        CHECK(out.result->calls[1].arguments == "{}");
    }
}

TEST_CASE("chat reply: calls without an id, or with one used twice, get ids that a repeated attempt gets too") {
    const std::vector<std::string> events = {
        chunk(
            R"({"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{}"}},{"index":1,"id":"b","function":{"name":"f"}},{"index":2,"id":"b","function":{"name":"g"}}]})",
            "tool_calls"),
        done};
    const auto first = play(events), second = play(events);
    REQUIRE(first.result);
    REQUIRE(first.result->calls.size() == 3);
    CHECK(first.result->calls[0].call_id.starts_with("call_"));
    CHECK(first.result->calls[1].call_id == "b");
    CHECK(first.result->calls[2].call_id != "b");
    for (size_t i = 0; i < 3; ++i) CHECK(first.result->calls[i].call_id == second.result->calls[i].call_id);
}

TEST_CASE("chat reply: arguments that are no JSON are passed on, a call cut off by the token bound is not") {
    const auto call =
        chunk(R"({"content":"x","tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":"}}]})");
    const auto whole = play({call, chunk("{}", "tool_calls"), done});
    REQUIRE(whole.result);
    CHECK(whole.result->calls.at(0).arguments == "{\"x\":");
    const auto cut = play({call, chunk("{}", "length"), done});
    REQUIRE(cut.result);
    CHECK(cut.result->calls.empty());
    CHECK(cut.result->finish_reason == "length");
}

TEST_CASE("chat reply: a stream that ends early is lost, one without [DONE] broke the protocol") {
    CHECK(play({}).error->error_class == ErrorClass::lost);
    CHECK(play({chunk(R"({"content":"half"})")}).error->error_class == ErrorClass::lost);
    CHECK(play({chunk(R"({"content":"all"})", "stop")}).error->error_class == ErrorClass::protocol);
    CHECK(play({chunk(R"({"content":"all"})"), done}).error->error_class == ErrorClass::protocol);
    CHECK(play({done}).error->error_class == ErrorClass::protocol);
}

TEST_CASE("chat reply: a content filter is an outcome with text and an error without") {
    CHECK(play({chunk("{}", "content_filter"), done}).error->code == ErrorCode::content_filtered);
    const auto partial = play({chunk(R"({"content":"some"})", "content_filter"), done});
    REQUIRE(partial.result);
    CHECK(partial.result->finish_reason == "content_filter");
}

TEST_CASE("chat reply: what has the wrong shape is a protocol error, never a crash") {
    for (const std::string bad :
         {"", "nonsense", "[]", "7", "{", R"({"choices":7})", R"({"choices":[7]})",
          R"({"choices":[{"delta":{"tool_calls":7}}]})", R"({"choices":[{"delta":{"tool_calls":[7]}}]})", "\"\xff\""}) {
        CAPTURE(bad);
        const auto out = play({bad, done});
        REQUIRE(out.error);
        CHECK(out.error->error_class == ErrorClass::protocol);
        CHECK(out.error->code == ErrorCode::model_protocol_error);
    }
    const std::string deep = R"({"choices":)" + std::string(5000, '[') + std::string(5000, ']') + "}";
    CHECK(play({deep}).error->error_class == ErrorClass::protocol);
    for (
        const std::string odd :
        {R"({"choices":[{"index":1,"delta":{"content":"other"}}]})", R"({"choices":null,"usage":7})", R"({"ping":1})",
         R"({"choices":[{"delta":{"content":null,"tool_calls":null}}],"usage":{"prompt_tokens":-1,"completion_tokens":1e99}})"}) {
        CAPTURE(odd);
        const auto out = play({odd, chunk(R"({"content":"ok"})", "stop"), done});
        REQUIRE(out.result);
        CHECK(out.result->text == "ok");
        CHECK(out.result->usage == Usage{});
    }
}

TEST_CASE("chat reply: text, arguments and calls are bounded") {
    const std::string big(300 * 1024, 'x');
    std::vector<std::string> texts(4, chunk("{\"content\":\"" + big + "\"}"));
    CHECK(play(texts).error->message.find("model_text_bytes_max") != std::string::npos);
    CHECK(play({chunk(R"({"tool_calls":[{"index":0,"function":{"name":"f","arguments":")" + big + R"("}}]})")})
              .error->message.find("tool_arguments_bytes_max") != std::string::npos);
    std::vector<std::string> calls;
    for (size_t i = 0; i <= limits::tool_calls_per_step_max; ++i)
        calls.push_back(chunk(R"({"tool_calls":[{"index":)" + std::to_string(i) + R"(,"function":{"name":"f"}}]})"));
    CHECK(play(calls).error->message.find("tool_calls_per_step_max") != std::string::npos);
}

TEST_CASE("chat reply: an answer that was not streamed is read too") {
    ChatReply reply(7);
    std::string text;
    REQUIRE_FALSE(reply.take_whole(
        R"({"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":2}})",
        text));
    CHECK(text == "hi");
    const auto result = std::get<ModelResult>(reply.finish());
    CHECK(result.calls.size() == 1);
    CHECK(result.usage.output_tokens == 2);
}

TEST_CASE("chat reply: an error inside a stream has the class of its code") {
    const auto with_code = [](const std::string& code) {
        return "{\"error\":{\"message\":\"m\",\"code\":" + code + "}}";
    };
    CHECK(play({chunk(R"({"content":"x"})"), with_code("429")}).error->error_class == ErrorClass::rate_limited);
    CHECK(play({with_code("\"odd\"")}).error->error_class == ErrorClass::transient);
    CHECK(play({R"({"error":"out of memory"})"}).error->error_class == ErrorClass::transient);
    CHECK(play({R"({"error":{"code":400,"message":"maximum context length is 4096 tokens"}})"}).error->error_class ==
          ErrorClass::context_overflow);
}

TEST_CASE("upstream errors: each status has its class") {
    struct Row {
        int status;
        std::string body;
        ErrorClass error_class;
        ErrorCode code;
    };
    const std::vector<Row> rows = {
        {400, R"({"error":{"message":"bad","code":null}})", ErrorClass::invalid, ErrorCode::model_rejected_request},
        {400, R"({"error":{"message":"x","code":"context_length_exceeded"}})", ErrorClass::context_overflow,
         ErrorCode::context_overflow},
        {400, R"({"object":"error","message":"This model's maximum context length is 4096 tokens.","code":400})",
         ErrorClass::context_overflow, ErrorCode::context_overflow},
        {400,
         R"({"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}})",
         ErrorClass::context_overflow, ErrorCode::context_overflow},
        {413, R"({"detail":"Prompt is too long"})", ErrorClass::context_overflow, ErrorCode::context_overflow},
        {400, R"({"error":{"message":"x","code":"content_filter"}})", ErrorClass::content_filter,
         ErrorCode::content_filtered},
        {401, "", ErrorClass::auth, ErrorCode::model_auth_failed},
        {403, "", ErrorClass::auth, ErrorCode::model_auth_failed},
        {404, "", ErrorClass::invalid, ErrorCode::model_rejected_request},
        {405, "", ErrorClass::invalid, ErrorCode::model_rejected_request},
        {422, "", ErrorClass::invalid, ErrorCode::model_rejected_request},
        {301, "", ErrorClass::invalid, ErrorCode::model_rejected_request},
        {408, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {409, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {425, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {429, "", ErrorClass::rate_limited, ErrorCode::model_rate_limited},
        {500, "<html>", ErrorClass::transient, ErrorCode::model_unavailable},
        {502, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {503, "", ErrorClass::overloaded, ErrorCode::model_unavailable},
        {504, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {529, "", ErrorClass::overloaded, ErrorCode::model_unavailable},
        {599, "", ErrorClass::transient, ErrorCode::model_unavailable},
        {204, "", ErrorClass::protocol, ErrorCode::model_protocol_error},
    };
    for (const auto& row : rows) {
        CAPTURE(row.status);
        CAPTURE(row.body);
        const auto error = classify_upstream_error(row.status, {}, row.body, 0, "");
        CHECK(error.error_class == row.error_class);
        CHECK(error.code == row.code);
        CHECK(error.message.starts_with("upstream answered " + std::to_string(row.status)));
    }
    CHECK(class_of(429) == ErrorClass::rate_limited);
}

TEST_CASE("upstream errors: how long to wait is read in seconds, milliseconds, units and dates") {
    const TimeMs now = 784111777000;  // Sun, 06 Nov 1994 08:49:37 GMT
    struct Row {
        std::string name, value;
        uint32_t milliseconds;
    };
    const std::vector<Row> rows = {
        {"retry-after", "2", 2000},
        {"retry-after", " 0 ", 0},
        {"retry-after", "1.5", 1500},
        {"retry-after", "250ms", 250},
        {"retry-after", "6m0.5s", 360'500},
        {"retry-after", "Sun, 06 Nov 1994 08:49:47 GMT", 10'000},
        {"retry-after", "Sun, 06 Nov 1994 08:49:27 GMT", 0},
        {"retry-after", "99999999999", limits::upstream_retry_after_ms_max},
        {"retry-after", "-5", 0},
        {"retry-after", "inf", 0},
        {"retry-after", "soon", 0},
        {"retry-after", "1e400", 0},
        {"retry-after", "", 0},
        {"retry-after-ms", "1234", 1234},
    };
    for (const auto& row : rows) {
        CAPTURE(row.value);
        CHECK(retry_after_ms({{"x-other", "9"}, {row.name, row.value}}, now) == row.milliseconds);
    }
    CHECK(retry_after_ms({{"retry-after", "7"}, {"retry-after-ms", "6500"}}, now) == 6500);
    CHECK(classify_upstream_error(429, {{"retry-after", "3"}}, "", now, "").retry_after_ms == 3000);
}

TEST_CASE("upstream errors: the upstream's words are bounded, on one line and without the key") {
    const std::string key = "sk-very-secret";
    const auto echoed = classify_upstream_error(
        400, {}, R"({"error":{"message":"key )" + key + "\\n and again " + key + R"("}})", 0, key);
    CHECK(echoed.message == "upstream answered 400: key ***  and again ***");
    CHECK(classify_upstream_error(401, {}, R"({"error":{"message":"bad key sk-v*****ret"}})", 0, key).message ==
          "upstream answered 401: it refused the key");
    const auto wordy = classify_upstream_error(400, {}, std::string(100'000, 'w'), 0, key);
    CHECK(wordy.message.size() < 600);
}
