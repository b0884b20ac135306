// Every shape that is appended by hand must be JSON, whatever the text in it.

#include "gateway/json_writer.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>

#include "gateway/fake_bridge.h"
#include "gateway/item_object.h"
#include "gateway/request_json.h"
#include "gateway/response_object.h"
#include "runtime/base/limits.h"

using namespace mainstay;
namespace json = boost::json;

TEST_CASE("json writer: every byte at every position of a text comes back") {
    for (int byte = 0; byte < 128; ++byte) {
        for (size_t at = 0; at < 40; ++at) {
            std::string text(40, 'x');
            text[at] = static_cast<char>(byte);
            std::string out;
            JsonWriter(out).string(text);
            const auto value = json::parse(out);
            CHECK(std::string(value.as_string()) == text);
        }
    }
    SeededRandom random(7);
    for (int round = 0; round < 2000; ++round) {
        std::string text;
        for (uint64_t i = random.below(100); i > 0; --i) {
            const std::string_view pieces[] = {
                "\"", "\\", "\n", "\x01", "\x1f", "\x7f", "\xc3\xa9", "\xf0\x9f\x98\x80", "plain text"};
            text += pieces[random.below(std::size(pieces))];
        }
        std::string out;
        JsonWriter(out).string(text);
        const auto value = json::parse(out);
        CHECK(std::string(value.as_string()) == text);
    }
}

TEST_CASE("json writer: numbers read back as they were") {
    std::string out;
    JsonWriter(out)
        .raw("[")
        .number(uint64_t{0})
        .raw(",")
        .number(UINT64_MAX)
        .raw(",")
        .number(0.1)
        .raw(",")
        .number(1e-300)
        .raw("]");
    const auto value = json::parse(out);
    CHECK(value.at(1).as_uint64() == UINT64_MAX);
    CHECK(value.at(2).as_double() == 0.1);
    CHECK(value.at(3).as_double() == 1e-300);
}

TEST_CASE("request json: canonical text does not depend on order or white space") {
    const auto canonical = [](std::string_view text) {
        JsonBody body;
        REQUIRE(body.parse(text).ok());
        std::string out;
        append_json(out, body.object(), true);
        return out;
    };
    CHECK(canonical(R"({"b":[1,{"y":null,"x":-2.5}],"a":"\u00e9"})") ==
          canonical(" { \"a\" : \"\xc3\xa9\", \"b\":[ 1 , {\"x\":-2.5,\"y\":null} ] } "));
    CHECK(canonical(R"({"a":1})") != canonical(R"({"a":"1"})"));
    CHECK(canonical("{}") == "{}");
}

TEST_CASE("request json: the bound on depth is exact") {
    const auto nested = [](size_t depth) {
        std::string text = "{\"a\":";
        for (size_t i = 1; i < depth; ++i) text += '[';
        for (size_t i = 1; i < depth; ++i) text += ']';
        return text + "}";
    };
    JsonBody fits;
    CHECK(fits.parse(nested(limits::json_depth_max)).ok());
    JsonBody deep;
    const auto refused = deep.parse(nested(limits::json_depth_max + 1));
    REQUIRE(!refused.ok());
    CHECK(refused.error().code == ErrorCode::json_too_deep);
}

TEST_CASE("request json: what is UTF-8 and what is not") {
    for (const std::string_view good :
         {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
        CHECK(is_valid_utf8(good));
    for (const std::string_view bad : {"\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                                       "\xf4\x90\x80\x80", "\xff", "\xe2\x82", "a\xf0\x9f\x98"})
        CHECK(!is_valid_utf8(bad));
    const auto cut = quoted_back(std::string(79, 'a') + "\xe2\x82\xac");
    CHECK(cut == std::string(79, 'a'));
}

TEST_CASE("response object: settings come from options, then from the agent, then from OpenAI's defaults") {
    FakeBridge bridge;
    TurnRequest request;
    request.agent = "assistant";
    request.items = {make_message(Role::user, "x")};
    request.options = "{}";
    auto answer = bridge.make_turn(request, "y");
    auto agent = std::make_shared<AgentSpec>();
    agent->truncate_history = false;
    agent->temperature = 0.25;
    answer.agent = agent;
    ResponseObject objects;
    const auto shown = [&] {
        std::string out;
        objects.append(out, answer);
        return json::parse(out);
    };
    CHECK(shown().at("truncation") == "disabled");
    CHECK(shown().at("temperature") == 0.25);
    CHECK(shown().at("top_p") == 1);
    CHECK(shown().at("store") == true);
    auto turn = std::make_shared<Turn>(*answer.turn);
    turn->options = R"({"truncation":"auto","temperature":1.5,"store":false})";
    answer.turn = turn;
    CHECK(shown().at("truncation") == "auto");
    CHECK(shown().at("temperature") == 1.5);
    CHECK(shown().at("store") == false);
    answer.agent = nullptr;  // its specification is gone
    turn = std::make_shared<Turn>(*turn);
    turn->options = "{}";
    answer.turn = turn;
    CHECK(shown().at("truncation") == "auto");
    CHECK(shown().at("temperature") == 1);
}

TEST_CASE("response object: each status has its own fields") {
    FakeBridge bridge;
    TurnRequest request;
    request.agent = "assistant";
    request.items = {make_message(Role::user, "x")};
    const auto answer = bridge.make_turn(request, "y");
    ResponseObject objects;
    const auto shown = [&](TurnStatus status, std::string code) {
        auto turn = std::make_shared<Turn>(*answer.turn);
        turn->status = status;
        turn->code = std::move(code);
        turn->message = "why";
        auto copy = answer;
        copy.turn = turn;
        std::string out;
        objects.append(out, copy);
        return json::parse(out);
    };
    CHECK(shown(TurnStatus::failed, "model_timeout").at("error").at("code") == "model_timeout");
    CHECK(shown(TurnStatus::incomplete, "token_limit_reached").at("incomplete_details").at("reason") ==
          "max_output_tokens");
    CHECK(shown(TurnStatus::incomplete, "content_filtered").at("incomplete_details").at("reason") == "content_filter");
    CHECK(shown(TurnStatus::incomplete, "step_limit_reached").at("incomplete_details").at("reason") ==
          "step_limit_reached");
    const auto cancelled = shown(TurnStatus::cancelled, "turn_cancelled");
    CHECK(cancelled.at("status") == "cancelled");
    CHECK(cancelled.at("error").is_null());
    const auto open = shown(TurnStatus::in_progress, "");
    CHECK(open.at("completed_at").is_null());
    CHECK(open.at("usage").is_null());
}

TEST_CASE("items: each kind has OpenAI's shape") {
    const ItemId id{{FamilyId{1}, 2, 3}, TurnNo{4}, 5};
    const auto shown = [&](const Item& item) {
        std::string out;
        append_item(out, item, id);
        return json::parse(out);
    };
    Item item;
    item.kind = ItemKind::tool_call;
    item.name = "read";
    item.server_label = "files";
    item.arguments = "{\"p\":1}";
    item.status = ItemStatus::in_progress;
    CHECK(shown(item).at("type") == "mcp_call");
    CHECK(shown(item).at("output").is_null());
    CHECK(shown(item).at("error").is_null());
    item.status = ItemStatus::completed;
    CHECK(shown(item).at("output") == "");
    item.status = ItemStatus::unknown;
    item.error = "tool_outcome_unknown";
    CHECK(shown(item).at("status") == "unknown");
    CHECK(shown(item).at("error") == "tool_outcome_unknown");
    item.kind = ItemKind::function_call;
    item.call_id = "c";
    CHECK(shown(item).at("arguments") == "{\"p\":1}");
    CHECK(shown(item).at("call_id") == "c");
    item.kind = ItemKind::approval_response;
    item.text = "approve";
    CHECK(shown(item).at("approve") == true);
    item.text = "deny";
    CHECK(shown(item).at("approve") == false);
    for (const auto kind : {ItemKind::function_call_output, ItemKind::compaction, ItemKind::approval_request}) {
        item.kind = kind;
        const auto value = shown(item);
        CHECK(std::string(value.at("id").as_string()) == to_text(id, item_id_prefix(kind)));
    }
}
