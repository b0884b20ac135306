// One client's stream out of several of the same turn: the builder's promises hold over the whole, wherever the first
// one was cut.

#include "gateway/stream_splice.h"

#include <doctest/doctest.h>

#include "gateway/stream_reader.h"
#include "runtime/base/random.h"

using namespace mainstay;

namespace {

/// Frames of one source, as the node that ran the turn would send them.
class Source {
  public:
    explicit Source(bool accepted = true) {
        if (accepted) on(StreamAccepted{script.now()});
    }
    void on(const StreamEvent& event) { stream_.on(event); }
    void delta(uint32_t step, uint32_t attempt, std::string text) { on(StreamDelta{step, attempt, std::move(text)}); }
    void commit(const ItemPtr& item, uint32_t step, uint32_t attempt = 1) {
        const uint32_t index = script.next();
        script.turn.items.push_back(item);
        on(StreamItems{index, {item}, step, attempt});
    }
    void end(TurnStatus status = TurnStatus::completed) {
        script.turn.status = status;
        on(StreamEnded{script.now()});
    }
    const std::string& text() { return stream_.out(); }

    Script script;

  private:
    ResponseObject objects_;
    ResponseStream stream_{objects_};
};

const std::string lost_frame =
    "event: error\ndata: {\"type\":\"error\",\"sequence_number\":9,\"code\":\"misdirected\",\"message\":\"another node "
    "leads it\",\"param\":\"17\"}\n\n";

ItemPtr said(std::string text, ItemStatus status = ItemStatus::completed) {
    return make_message(Role::assistant, std::move(text), status);
}

/// A tool call between two texts, with everything that JSON escapes.
std::string full_turn(std::string first, std::string last, size_t piece) {
    Source source;
    for (size_t i = 0; i < first.size(); i += piece) source.delta(0, 1, first.substr(i, piece));
    source.commit(said(first), 0);
    const auto begun = make_call(ItemKind::tool_call, "{\"a\":\"[\"}", ItemStatus::in_progress);
    source.commit(begun, 0);
    const auto settled = make_call(ItemKind::tool_call, "{\"a\":\"[\"}", ItemStatus::completed, "4\"2]");
    source.script.turn.items.back() = settled;
    source.on(StreamItemDone{source.script.next() - 1, settled});
    for (size_t i = 0; i < last.size(); i += piece) source.delta(1, 1, last.substr(i, piece));
    source.commit(said(last), 1);
    source.end();
    return source.text();
}

StreamReader read_all(const std::string& text) {
    StreamReader reader;
    reader.read(text);
    return reader;
}

}  // namespace

TEST_CASE("splice: one source passes as it is, however it is cut") {
    const std::string text = full_turn("Hel\"lo\\ there", "By\ne", 3);
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{100}, text.size()}) {
        StreamSplice splice;
        for (size_t i = 0; i < text.size(); i += piece) splice.feed(std::string_view(text).substr(i, piece));
        CHECK(splice.out() == text);
        CHECK(splice.finished());
    }
}

TEST_CASE("splice: cut at any byte, the second source of the same words completes the first to the byte") {
    const std::string text = full_turn("Hel\"lo\\ there", "By\ne", 3);
    for (size_t cut = 0; cut < text.size(); ++cut) {
        StreamSplice splice;
        splice.feed(std::string_view(text).substr(0, cut));
        if (cut % 2 == 0) {
            splice.next_source();
            splice.feed(std::string_view(text).substr(0, cut / 2));  // and it is lost as well
        }
        splice.next_source();
        splice.feed(text);
        INFO("cut at ", cut);
        REQUIRE(splice.out() == text);
        REQUIRE(splice.finished());
    }
}

TEST_CASE("splice: deltas cut elsewhere by the second source join to the same text") {
    const std::string text = full_turn("Hello there", "Bye then", 3);
    for (const size_t piece : {size_t{1}, size_t{2}, size_t{5}, size_t{50}}) {
        const std::string second = full_turn("Hello there", "Bye then", piece);
        for (size_t cut = 0; cut < text.size(); cut += 5) {
            StreamSplice splice;
            splice.feed(std::string_view(text).substr(0, cut));
            splice.next_source();
            splice.feed(second);
            auto reader = read_all(splice.out());
            reader.check_closed();
            REQUIRE(reader.texts[0] == "Hello there");
            REQUIRE(reader.texts[2] == "Bye then");
        }
    }
}

TEST_CASE("splice: other words end the item that was shown, and begin a new one behind it") {
    Source first;
    first.delta(0, 1, "Hello th");
    struct Case {
        const char* what;
        std::vector<std::string> deltas;
        std::string text;
    };
    const Case cases[] = {
        {"other words", {"Good", " day"}, "Good day"},
        {"other words, later", {"Hello", " you"}, "Hello you"},
        {"fewer words", {"Hello"}, "Hello"},
        {"nothing as delta", {}, "Good day"},
        {"no words at all", {}, ""},
    };
    for (const auto& test : cases) {
        INFO(test.what);
        Source second;
        for (const auto& delta : test.deltas) second.delta(0, 1, delta);
        second.commit(said(test.text), 0);
        second.commit(make_call(ItemKind::function_call, "{}", ItemStatus::completed), 0);
        second.end();
        StreamSplice splice;
        splice.feed(first.text());
        splice.next_source();
        splice.feed(second.text());
        auto reader = read_all(splice.out());
        reader.check_closed();
        CHECK(reader.texts[0] == "Hello th");
        CHECK(reader.done[0].at("status") == "incomplete");
        CHECK(reader.texts[1] == test.text);
        CHECK(reader.done[1].at("status") == "completed");
        CHECK(reader.done[2].at("type") == "function_call");
        // A third source of the turn finds its items where they are.
        StreamSplice again;
        again.feed(first.text());
        again.next_source();
        again.feed(std::string_view(second.text()).substr(0, second.text().size() * 2 / 3));
        again.next_source();
        again.feed(second.text());
        CHECK(again.out() == splice.out());
    }
}

TEST_CASE("splice: a text that was shown and never committed ends incomplete") {
    Source first;
    first.delta(0, 1, "Hello th");
    SUBCASE("a call stands in its place") {
        Source second;
        second.commit(make_call(ItemKind::function_call, "{}", ItemStatus::completed), 0);
        second.end();
        StreamSplice splice;
        splice.feed(first.text());
        splice.next_source();
        splice.feed(second.text());
        auto reader = read_all(splice.out());
        reader.check_closed();
        CHECK(reader.done[0].at("status") == "incomplete");
        CHECK(reader.done[1].at("type") == "function_call");
    }
    SUBCASE("the turn ended without a word") {
        Source second;
        second.end(TurnStatus::failed);
        StreamSplice splice;
        splice.feed(first.text());
        splice.next_source();
        splice.feed(second.text());
        auto reader = read_all(splice.out());
        reader.check_closed();
        CHECK(reader.texts[0] == "Hello th");
        CHECK(reader.done[0].at("status") == "incomplete");
    }
}

TEST_CASE("splice: an error that another node can mend is held back, another one is told") {
    Source first;
    first.delta(0, 1, "Hello");
    StreamSplice splice;
    splice.feed(first.text());
    const std::string before = splice.out();
    splice.feed(lost_frame);
    CHECK(splice.out() == before);
    REQUIRE(splice.lost());
    CHECK(splice.lost()->code == ErrorCode::misdirected);
    CHECK(splice.lost()->param == "17");
    CHECK_FALSE(splice.finished());
    SUBCASE("nobody goes on") {
        splice.fail(*splice.lost());
        CHECK(splice.finished());
        CHECK(read_all(splice.out()).error == "misdirected");
    }
    SUBCASE("the next source is refused for a reason of its own") {
        splice.next_source();
        std::string frame = lost_frame;
        frame.replace(frame.find("misdirected"), 11, "session_quarantined");
        splice.feed(frame);
        CHECK(splice.finished());
        CHECK(read_all(splice.out()).error == "session_quarantined");
    }
}

TEST_CASE("splice: what is no stream of ours, or of another response, ends with an error") {
    Source first;
    for (const std::string_view bytes : {"event: x\n\n", "data: {}\n\n", "event: a\ndata: {\"type\":\"b\"}\n\n"}) {
        StreamSplice splice;
        splice.feed(first.text());
        splice.feed(bytes);
        CHECK(splice.finished());
        CHECK(read_all(splice.out()).error == "internal");
    }
    StreamSplice splice;
    splice.feed(first.text());
    Source other(false);
    other.script.turn.no = TurnNo{4};
    other.on(StreamAccepted{other.script.now()});
    splice.next_source();
    splice.feed(other.text());
    CHECK(splice.finished());
    CHECK(read_all(splice.out()).error == "internal");
}

TEST_CASE("splice: a stream without a closing event ends with its source") {
    Source first;
    StreamSplice splice;
    splice.feed(first.text());
    CHECK_FALSE(splice.finished());
    splice.source_ended();
    CHECK(splice.finished());
    CHECK(splice.out() == first.text());
}

TEST_CASE("splice: the promises hold under random turns, cuts and other words") {
    for (uint64_t seed = 1; seed <= 300; ++seed) {
        INFO("seed ", seed);
        SeededRandom random(seed);
        const auto below = [&](uint64_t bound) { return random.next() % bound; };
        const auto words = [&] {
            std::string out;
            for (uint64_t n = below(5); n > 0; --n) out += std::string(1, "ab\"\\\n"[below(5)]);
            return out;
        };
        // What is committed is the same for all sources; what was shown before may be anything.
        std::vector<ItemPtr> committed;
        for (uint64_t n = 1 + below(4); n > 0; --n)
            committed.push_back(below(3) == 0 ? make_call(ItemKind::function_call, "{}", ItemStatus::completed)
                                              : said(words() + "x"));
        const auto play = [&](size_t until, const std::string& provisional) {
            Source source;
            for (size_t i = 0; i < until; ++i) {
                if (committed[i]->kind == ItemKind::message && below(2) == 0)
                    for (const char c : committed[i]->text) source.delta(uint32_t(i), 1, std::string(1, c));
                source.commit(committed[i], uint32_t(i));
            }
            if (until == committed.size())
                source.end();
            else if (!provisional.empty())
                source.delta(uint32_t(until), 1, provisional);
            return source.text();
        };
        StreamSplice splice;
        size_t until = 0;
        for (uint64_t lives = below(4); lives > 0; --lives) {
            until += below(committed.size() - until);
            splice.feed(play(until, below(2) == 0 ? words() : committed[until]->text.substr(0, below(3))));
            splice.next_source();
        }
        splice.feed(play(committed.size(), {}));
        REQUIRE(splice.finished());
        auto reader = read_all(splice.out());
        reader.check_closed();
        // Beside what was given up, it is the turn.
        std::vector<std::string> said_at_last, wanted;
        for (const auto& [index, item] : reader.done)
            if (item.at("type") == "function_call" || item.at("status") == "completed")
                said_at_last.push_back(item.at("type") == "message" ? reader.texts[index] : "call");
        for (const auto& item : committed) wanted.push_back(item->kind == ItemKind::message ? item->text : "call");
        REQUIRE(said_at_last == wanted);
    }
}
