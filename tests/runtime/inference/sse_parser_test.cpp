#include "runtime/inference/sse_parser.h"

#include <doctest/doctest.h>

#include <vector>

using namespace mainstay;

namespace {

std::vector<SseEvent> parse(std::string_view stream, size_t piece) {
    std::vector<SseEvent> events;
    SseParser parser;
    for (size_t at = 0; at < stream.size(); at += piece)
        REQUIRE(
            parser.feed(stream.substr(at, piece), [&](SseEvent&& event) { events.push_back(std::move(event)); }).ok());
    return events;
}

std::string shown(const std::vector<SseEvent>& events) {
    std::string out;
    for (const auto& event : events) out += event.type + "|" + event.data + "|" + event.id + ";";
    return out;
}

}  // namespace

TEST_CASE("sse: streams mean what the standard says, however they are cut") {
    struct Row {
        std::string stream, events;
    };
    using namespace std::string_literals;
    const std::vector<Row> rows = {
        {"data: a\n\n", "message|a|;"},
        {"data:a\n\n", "message|a|;"},
        {"data:  a\n\n", "message| a|;"},
        {"data: a\r\n\r\n", "message|a|;"},
        {"data: a\r\r", "message|a|;"},
        {"data: a\r\n\ndata: b\n\r\n", "message|a|;message|b|;"},
        {"data: a\ndata: b\n\n", "message|a\nb|;"},
        {"data\n\n", "message||;"},
        {"data\ndata\n\n", "message|\n|;"},
        {"data:\n\n", "message||;"},
        {": comment\n\n:\n\ndata: a\n\n", "message|a|;"},
        {"\xef\xbb\xbf"
         "data: a\n\n",
         "message|a|;"},
        {"\xef\xbb\xbf\n\xef\xbb\xbf"
         "data: a\n\n",
         ""},
        {"event: x\n\ndata: a\n\n", "message|a|;"},
        {"event: x\ndata: a\n\ndata: b\n\n", "x|a|;message|b|;"},
        {"id: 7\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", "message|a|7;message|b|7;message|c|;"},
        {"id: 7\nid: 8\0\ndata: a\n\n"s, "message|a|7;"},
        {"unknown: x\nData: y\n\n", ""},
        {"data: never ended\n", ""},
        {"data: never ended", ""},
        {"\n\n\n", ""},
        {"data: na\xc3\xafve \xe4\xb8\x96\n\n", "message|na\xc3\xafve \xe4\xb8\x96|;"},
    };
    for (const auto& row : rows) {
        CAPTURE(row.stream);
        for (size_t piece = 1; piece <= row.stream.size(); ++piece) {
            CAPTURE(piece);
            CHECK(shown(parse(row.stream, piece)) == row.events);
        }
    }
}

TEST_CASE("sse: the retry field counts only where it is all digits") {
    SseParser parser;
    REQUIRE(parser.feed("retry: 1500\nretry: 2s\nretry:\nretry: -1\n", [](SseEvent&&) {}).ok());
    CHECK(parser.retry_ms() == 1500);
}

TEST_CASE("sse: a line or an event beyond the bound ends the stream for good") {
    const auto ignore = [](SseEvent&&) { FAIL("no event is complete"); };
    SseParser one_line(100);
    CHECK(one_line.feed("data: " + std::string(94, 'x'), ignore).ok());
    CHECK_FALSE(one_line.feed("x", ignore).ok());
    CHECK_FALSE(one_line.feed("\n\ndata: a\n\n", ignore).ok());
    SseParser many_lines(100);
    bool failed = false;
    for (int i = 0; i < 30 && !failed; ++i) failed = !many_lines.feed("data: 1234567\n", ignore).ok();
    CHECK(failed);
    SseParser comments(100);
    for (int i = 0; i < 1000; ++i) REQUIRE(comments.feed(": keep alive\n\n", ignore).ok());
}
