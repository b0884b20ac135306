#include "cluster/link_queue.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <doctest/doctest.h>

#include <cstring>
#include <random>

#include "cluster/link_assembly.h"
#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

ReplicationMessage message(uint64_t round, size_t bytes) {
    ReplicationMessage out;
    AppendEntries body;
    body.round = round;
    for (size_t left = bytes; left != 0; left -= std::min<size_t>(left, 300'000))
        body.entries.push_back(
            {Epoch(1), round, EntryKind::record, 0,
             std::make_shared<const std::string>(std::min<size_t>(left, 300'000), char('a' + round % 26))});
    out.body = std::move(body);
    return out;
}

CallItem item(uint64_t call, FrameType type, size_t bytes) {
    return {call, type, 1, std::string(bytes, char('A' + call % 26)), false, {}, false};
}

struct Taken {
    LinkQueue::Next next;
    std::string bytes;
};

std::optional<Taken> take(LinkQueue& queue, bool calls = true) {
    auto next = queue.next(calls);
    if (!next) return {};
    Taken out{*next, std::string(next->bytes, '\0')};
    queue.fill(out.bytes.data());
    REQUIRE(out.bytes.size() <= limits::link_chunk_bytes_max);
    return out;
}

}  // namespace

TEST_CASE("link queue: replication goes first, calls one chunk each in turn, and everything comes out whole") {
    LinkQueue queue;
    MessageAssembly messages;
    CallAssembly calls;
    queue.push(item(1, FrameType::request, 3 * limits::link_chunk_bytes_max));
    queue.push(item(2, FrameType::request, limits::link_chunk_bytes_max + 1));
    queue.push(item(3, FrameType::request, 10));
    REQUIRE(take(queue)->next.frame.call == 1);
    queue.push(encode_replication(message(7, 5)));
    CHECK(take(queue)->next.frame.type == FrameType::replication);
    std::vector<uint64_t> order;
    while (auto taken = take(queue)) order.push_back(taken->next.frame.call);
    CHECK(order == std::vector<uint64_t>{2, 3, 1, 2, 1});
    queue.push(item(1, FrameType::request, 1));
    CHECK_FALSE(take(queue, false));
    CHECK(take(queue, true));
}

TEST_CASE("link queue: any mix of sizes is put together again, in order, and costs nothing in the end") {
    std::mt19937 random(3);
    for (int run = 0; run < 20; ++run) {
        LinkQueue queue;
        MessageAssembly messages;
        CallAssembly calls;
        std::vector<ReplicationMessage> out;
        size_t cost = 0, released = 0, ended = 0;
        std::map<uint64_t, std::string> answers;
        for (uint64_t i = 0; i < 200; ++i) {
            const size_t bytes = random() % 10 == 0 ? random() % 2'000'000 : random() % 300;
            auto encoded = encode_replication(message(i, bytes));
            cost += LinkQueue::cost(encoded);
            queue.push(std::move(encoded));
            if (i % 4 != 0) continue;
            for (CallItem part : {item(i + 1, FrameType::part, bytes), item(i + 1, FrameType::part, 3),
                                  item(i + 1, FrameType::end, 0)}) {
                cost += part.cost();
                CHECK(queue.push(std::move(part)) == 0);
            }
        }
        while (auto taken = take(queue)) {
            taken->next.frame.bytes = taken->bytes;
            released += taken->next.released;
            if (taken->next.frame.type == FrameType::replication) {
                REQUIRE(messages.feed(taken->bytes, out));
            } else if (taken->next.frame.type == FrameType::end) {
                ++ended;
            } else {
                auto whole = calls.feed(taken->next.frame);
                REQUIRE(whole);
                if (*whole) answers[(*whole)->call] += std::to_string((*whole)->bytes.size()) + ",";
            }
        }
        CHECK(released == cost);
        CHECK(ended == 50);
        CHECK(answers.size() == 50);
        CHECK(calls.bytes() == 0);
        CHECK(messages.bytes() == 0);
        REQUIRE(out.size() == 200);
        for (uint64_t i = 0; i < 200; ++i) REQUIRE(std::get<AppendEntries>(out[i].body).round == i);
    }
}

TEST_CASE("link queue: what drops takes away what waits of its call, comes first, and returns its cost") {
    LinkQueue queue;
    queue.push(item(1, FrameType::request, 3 * limits::link_chunk_bytes_max));
    queue.push(item(2, FrameType::request, 10));
    take(queue);
    CallItem cancel = item(1, FrameType::cancel, 0);
    cancel.drops = true;
    CHECK(queue.push(std::move(cancel)) == item(1, FrameType::request, 3 * limits::link_chunk_bytes_max).cost());
    CHECK(take(queue)->next.frame.type == FrameType::cancel);
    CHECK(take(queue)->next.frame.call == 2);
    CHECK_FALSE(take(queue));
}

TEST_CASE("link assembly: memory is what was announced, and never more than the bound") {
    CallAssembly calls;
    const std::string bytes(100, 'x');
    LinkFrame frame;
    frame.type = FrameType::request;
    frame.total = limits::link_message_bytes_max;
    frame.bytes = bytes;
    const size_t fit = limits::link_queue_bytes_max / limits::link_message_bytes_max;
    for (frame.call = 1; frame.call <= fit; ++frame.call) REQUIRE(calls.feed(frame));
    CHECK_FALSE(calls.feed(frame));
    frame.call = 1;
    CHECK_FALSE(calls.feed(frame));  // again, before it is whole
    calls.drop(1);
    REQUIRE(calls.feed(frame));
    CHECK(calls.bytes() == limits::link_queue_bytes_max);
    frame.type = FrameType::more;
    frame.call = 99;
    CHECK(calls.feed(frame));  // of a call that was dropped: ignored
    CHECK(calls.size() == fit);
}

TEST_CASE("link frame: a type that is not known, and damage, are refused at both ends") {
    capnp::MallocMessageBuilder builder;
    auto frame = builder.initRoot<wire::Frame>();
    frame.setCall(1);
    frame.initRequest().setKind(1);
    auto words = capnp::messageToFlatArray(builder);
    const auto decoded = [&](LinkEnd end) {
        capnp::FlatArrayMessageReader reader(words);
        return decode_frame(reader.getRoot<wire::Frame>(), end).ok();
    };
    REQUIRE(decoded(LinkEnd::accepted));
    CHECK_FALSE(decoded(LinkEnd::dialled));
    // Each 16 bits of the frame in turn become a number that no field but the type minds.
    size_t unknown = 0;
    auto bytes = words.asBytes();
    for (size_t at = 16; at + 2 <= bytes.size(); at += 2) {
        uint16_t before, after;
        std::memcpy(&before, bytes.begin() + at, 2);
        const uint16_t number = 4711;
        std::memcpy(bytes.begin() + at, &number, 2);
        try {
            capnp::FlatArrayMessageReader reader(words);
            const auto read = reader.getRoot<wire::Frame>();
            after = uint16_t(read.which());
            if (after == number) {
                ++unknown;
                CHECK_FALSE(decoded(LinkEnd::accepted));
                CHECK_FALSE(decoded(LinkEnd::dialled));
            }
        } catch (const kj::Exception&) {
        }
        std::memcpy(bytes.begin() + at, &before, 2);
    }
    CHECK(unknown == 1);
}

TEST_CASE("link frame: an error keeps its words, and a code from the future becomes internal") {
    capnp::MallocMessageBuilder builder;
    LinkFrame frame;
    frame.call = 5;
    frame.type = FrameType::end;
    frame.failed = true;
    frame.failure = {ErrorCode::session_busy, std::string(10'000, 'w'), "param"};
    auto wire = builder.initRoot<wire::Frame>();
    CHECK(encode_frame(wire, frame, 0) == nullptr);
    auto read = decode_frame(wire.asReader(), LinkEnd::dialled);
    REQUIRE(read);
    CHECK(read->failure.code == ErrorCode::session_busy);
    CHECK(read->failure.message.size() == link_error_text_max);
    CHECK(read->failure.param == "param");
    wire.getEnd().setCode("not_yet_invented");
    CHECK(decode_frame(wire.asReader(), LinkEnd::dialled)->failure.code == ErrorCode::internal);
}
