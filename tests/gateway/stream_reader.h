#pragma once
// A reader of a Responses stream that believes only what it was sent and checks the builder's promises on the way, and
// a turn that grows, of which the node's events are made.

#include <doctest/doctest.h>

#include <boost/json.hpp>
#include <map>
#include <optional>

#include "gateway/fake_bridge.h"
#include "gateway/response_stream.h"

namespace mainstay {

namespace json = boost::json;

struct SseEvent {
    std::string name;
    json::value data;
};

inline std::vector<SseEvent> parse_sse(std::string_view text) {
    std::vector<SseEvent> out;
    while (!text.empty()) {
        const auto end = text.find("\n\n");
        REQUIRE(end != std::string_view::npos);
        const auto block = text.substr(0, end);
        text.remove_prefix(end + 2);
        const auto line = block.find('\n');
        REQUIRE(block.starts_with("event: "));
        REQUIRE(block.substr(line + 1).starts_with("data: "));
        const auto data = block.substr(line + 7);
        out.push_back(
            {std::string(block.substr(7, line - 7)), json::parse(json::string_view(data.data(), data.size()))});
    }
    return out;
}

inline std::string str(const json::value& value) { return std::string(value.as_string()); }

/// Follows a stream as a client does and checks the promises on the way.
struct StreamReader {
    std::map<int64_t, std::string> texts, arguments;  // joined deltas
    std::map<int64_t, json::value> done;
    std::map<int64_t, std::string> ids;
    std::optional<json::value> closing;
    std::string error;
    int64_t sequence = 0;
    size_t deltas = 0;

    void read(std::string_view text) {
        for (const auto& event : parse_sse(text)) take(event);
    }
    void take(const SseEvent& event) {
        const auto& data = event.data;
        CHECK(str(data.at("type")) == event.name);
        CHECK(data.at("sequence_number").to_number<int64_t>() == sequence++);
        CHECK(!closing);
        CHECK(error.empty());
        if (event.name == "error") {
            error = str(data.at("code"));
            return;
        }
        if (event.name == "response.completed" || event.name == "response.failed" ||
            event.name == "response.incomplete") {
            closing = data.at("response");
            return;
        }
        if (!data.as_object().contains("output_index")) return;
        const auto index = data.at("output_index").to_number<int64_t>();
        if (event.name == "response.output_item.added") {
            CHECK(!ids.contains(index));
            ids[index] = str(data.at("item").at("id"));
            return;
        }
        REQUIRE(ids.contains(index));
        CHECK(!done.contains(index));
        if (event.name == "response.output_item.done") {
            done[index] = data.at("item");
            CHECK(str(data.at("item").at("id")) == ids[index]);
            return;
        }
        CHECK(str(data.at("item_id")) == ids[index]);
        if (event.name == "response.output_text.delta") {
            ++deltas;
            texts[index] += str(data.at("delta"));
        } else if (event.name == "response.output_text.done") {
            CHECK(str(data.at("text")) == texts[index]);
        } else if (event.name.ends_with("_arguments.delta")) {
            arguments[index] += str(data.at("delta"));
        } else if (event.name.ends_with("_arguments.done")) {
            CHECK(str(data.at("arguments")) == arguments[index]);
        }
    }
    void check_closed() {
        REQUIRE(closing);
        const auto& output = closing->at("output").as_array();
        CHECK(output.size() == done.size());
        for (size_t i = 0; i < output.size(); ++i) {
            REQUIRE(done.contains(static_cast<int64_t>(i)));
            CHECK(json::serialize(output[i]) == json::serialize(done[static_cast<int64_t>(i)]));
            if (output[i].at("type") == "message")
                CHECK(str(output[i].at("content").at(0).at("text")) == texts[static_cast<int64_t>(i)]);
        }
    }
};

/// A turn that grows; the events of the node are made from it.
struct Script {
    Script() {
        answer.session = {FamilyId{7}, 1, 2};
        turn.no = TurnNo{3};
        turn.status = TurnStatus::in_progress;
        turn.agent = "assistant";
        turn.options = "{}";
        turn.items.push_back(make_message(Role::user, "hello"));
        turn.input_count = 1;
    }
    TurnAnswer now() const {
        auto copy = answer;
        copy.turn = std::make_shared<Turn>(turn);
        return copy;
    }
    uint32_t next() const { return static_cast<uint32_t>(turn.items.size()); }

    TurnAnswer answer;
    Turn turn;
};

inline ItemPtr make_call(ItemKind kind, std::string arguments, ItemStatus status, std::string output = {}) {
    auto item = std::make_shared<Item>();
    item->kind = kind;
    item->role = Role::assistant;
    item->call_id = "c1";
    item->name = "tool";
    item->server_label = "files";
    item->arguments = std::move(arguments);
    item->status = status;
    item->text = std::move(output);
    return item;
}

inline std::vector<std::string> names_of(std::string_view text) {
    std::vector<std::string> out;
    for (const auto& event : parse_sse(text)) out.push_back(event.name);
    return out;
}

}  // namespace mainstay
