// The promises of the stream builder, checked by a reader that believes only what it was sent.

#include "gateway/response_stream.h"

#include <doctest/doctest.h>

#include "gateway/stream_reader.h"

using namespace mainstay;

TEST_CASE("stream: a text answer has OpenAI's events in OpenAI's order") {
    Script script;
    ResponseObject objects;
    ResponseStream stream(objects);
    stream.on(StreamAccepted{script.now()});
    stream.on(StreamDelta{0, 1, "Hel"});
    stream.on(StreamDelta{0, 1, "lo"});
    const auto item = make_message(Role::assistant, "Hello");
    stream.on(StreamItems{1, {item}, 0, 1});
    script.turn.items.push_back(item);
    script.turn.status = TurnStatus::completed;
    stream.on(StreamEnded{script.now()});
    CHECK(stream.finished());
    CHECK(names_of(stream.out()) ==
          std::vector<std::string>{"response.created", "response.in_progress", "response.output_item.added",
                                   "response.content_part.added", "response.output_text.delta",
                                   "response.output_text.delta", "response.output_text.done",
                                   "response.content_part.done", "response.output_item.done", "response.completed"});
    StreamReader reader;
    reader.read(stream.out());
    reader.check_closed();
}

TEST_CASE("stream: tools that run here and functions of the client") {
    Script script;
    ResponseObject objects;
    ResponseStream stream(objects);
    stream.on(StreamAccepted{script.now()});
    stream.on(StreamItems{1, {make_call(ItemKind::tool_call, "{\"a\":1}", ItemStatus::in_progress)}, 0, 1});
    const auto settled = make_call(ItemKind::tool_call, "{\"a\":1}", ItemStatus::completed, "42");
    stream.on(StreamItemDone{1, settled});
    script.turn.items.push_back(settled);
    const auto function = make_call(ItemKind::function_call, "{}", ItemStatus::completed);
    stream.on(StreamItems{2, {function}, 1, 1});
    script.turn.items.push_back(function);
    script.turn.status = TurnStatus::completed;
    stream.on(StreamEnded{script.now()});
    const auto names = names_of(stream.out());
    CHECK(std::vector<std::string>(names.begin() + 2, names.end()) ==
          std::vector<std::string>{
              "response.output_item.added", "response.mcp_call.in_progress", "response.mcp_call_arguments.delta",
              "response.mcp_call_arguments.done", "response.mcp_call.completed", "response.output_item.done",
              "response.output_item.added", "response.function_call_arguments.delta",
              "response.function_call_arguments.done", "response.output_item.done", "response.completed"});
    StreamReader reader;
    reader.read(stream.out());
    reader.check_closed();
}

TEST_CASE("stream: a step that broke ends its item with what was shown, a new item follows") {
    Script script;
    ResponseObject objects;
    ResponseStream stream(objects);
    stream.on(StreamAccepted{script.now()});
    stream.on(StreamDelta{0, 1, "Half an ans"});
    const auto broken = make_message(Role::assistant, "Half an ans", ItemStatus::incomplete);
    stream.on(StreamBroken{1, broken});
    script.turn.items.push_back(broken);
    stream.on(StreamDelta{0, 1, "late"});  // of the attempt that is gone
    stream.on(StreamDelta{0, 2, "Whole"});
    const auto whole = make_message(Role::assistant, "Whole");
    stream.on(StreamItems{2, {whole}, 0, 2});
    script.turn.items.push_back(whole);
    script.turn.status = TurnStatus::completed;
    stream.on(StreamEnded{script.now()});
    StreamReader reader;
    reader.read(stream.out());
    reader.check_closed();
    CHECK(str(reader.done[0].at("status")) == "incomplete");
    CHECK(reader.texts[1] == "Whole");
}

TEST_CASE("stream: a repeated request is streamed from its record") {
    Script script;
    script.turn.items.push_back(make_call(ItemKind::tool_call, "{}", ItemStatus::failed));
    script.turn.items.push_back(make_message(Role::assistant, "recorded"));
    script.turn.status = TurnStatus::completed;
    ResponseObject objects;
    ResponseStream stream(objects);
    stream.on(StreamAccepted{script.now()});
    stream.on(StreamEnded{script.now()});
    StreamReader reader;
    reader.read(stream.out());
    reader.check_closed();
    CHECK(reader.deltas == 1);
    const auto created = parse_sse(stream.out()).front();
    CHECK(created.data.at("response").at("status") == "in_progress");
    CHECK(created.data.at("response").at("output").as_array().empty());
}

TEST_CASE("stream: what was committed differs from what was shown: an error, not a lie") {
    Script script;
    ResponseObject objects;
    ResponseStream stream(objects);
    stream.on(StreamAccepted{script.now()});
    stream.on(StreamDelta{0, 1, "one"});
    stream.on(StreamItems{1, {make_message(Role::assistant, "two")}, 0, 1});
    CHECK(stream.finished());
    StreamReader reader;
    reader.read(stream.out());
    CHECK(reader.error == "internal");
}

TEST_CASE("stream: the promises hold under random turns") {
    for (uint64_t seed = 1; seed <= 2000; ++seed) {
        INFO(seed);
        SeededRandom random(seed);
        Script script;
        ResponseObject objects;
        ResponseStream stream(objects);
        StreamReader reader;
        const auto drain = [&] {  // a connection takes at any moment
            if (random.below(2) == 0) reader.read(std::exchange(stream.out(), {}));
        };
        const auto delta = [&](uint32_t step, uint32_t attempt, std::string_view text) {
            for (size_t at = 0; at < text.size();) {
                const auto size = std::min<size_t>(1 + random.below(7), text.size() - at);
                stream.on(StreamDelta{step, attempt, std::string(text.substr(at, size))});
                if (random.below(8) == 0 && attempt > 1) stream.on(StreamDelta{step, attempt - 1, "stale"});
                if (random.below(8) == 0 && step > 0) stream.on(StreamDelta{step - 1, attempt, "older"});
                at += size;
                drain();
            }
        };
        stream.on(StreamAccepted{script.now()});
        const auto steps = 1 + random.below(4);
        for (uint32_t step = 0; step < steps; ++step) {
            std::string text;
            for (uint64_t i = random.below(40); i > 0; --i) text += static_cast<char>(' ' + random.below(95));
            uint32_t attempt = 1;
            // Attempts that break after some of their text, attempts that are silently repeated by a scheduler.
            for (; random.below(3) == 0; ++attempt) {
                const auto shown = "x" + text.substr(0, random.below(text.size() + 1));
                if (random.below(2) == 0) {
                    delta(step, attempt, shown);
                    const auto broken = make_message(Role::assistant, shown, ItemStatus::incomplete);
                    stream.on(StreamBroken{script.next(), broken});
                    script.turn.items.push_back(broken);
                } else {
                    delta(step, attempt, text.substr(0, random.below(text.size() + 1)));
                    delta(step, ++attempt, text.substr(0, random.below(text.size() + 1)));
                    break;
                }
            }
            if (random.below(3) != 0) delta(step, attempt + 1, text);
            const auto first = script.next();
            std::vector<ItemPtr> items;
            if (!text.empty()) items.push_back(make_message(Role::assistant, text));
            const bool last = step + 1 == steps;
            const auto calls = last ? 0 : 1 + random.below(3);
            for (uint64_t i = 0; i < calls; ++i)
                items.push_back(make_call(ItemKind::tool_call, "{\"i\":1}", ItemStatus::in_progress));
            stream.on(StreamItems{first, items, step, attempt + 1});
            for (const auto& item : items) script.turn.items.push_back(item);
            std::vector<uint32_t> open;
            for (uint32_t i = first; i < script.next(); ++i)
                if (script.turn.items[i]->kind == ItemKind::tool_call) open.push_back(i);
            while (!open.empty()) {  // outcomes in any order
                const auto pick = random.below(open.size());
                const auto index = open[pick];
                open.erase(open.begin() + static_cast<std::ptrdiff_t>(pick));
                const auto status = random.below(3) == 0 ? ItemStatus::failed : ItemStatus::completed;
                const auto done = make_call(ItemKind::tool_call, "{\"i\":1}", status, "out");
                script.turn.items[index] = done;
                if (random.below(4) != 0) stream.on(StreamItemDone{index, done});
                drain();
            }
        }
        script.turn.status = random.below(4) == 0 ? TurnStatus::failed : TurnStatus::completed;
        stream.on(StreamEnded{script.now()});
        reader.read(std::exchange(stream.out(), {}));
        CHECK(reader.error.empty());
        reader.check_closed();
    }
}
