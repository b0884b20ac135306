#include "runtime/base/id.h"

#include <doctest/doctest.h>

#include <set>
#include <vector>

#include "runtime/base/random.h"

using namespace mainstay;

namespace {

SessionId session(uint64_t family, uint64_t high, uint64_t low) { return {FamilyId{family}, high, low}; }

}  // namespace

TEST_CASE("id: text forms are fixed, ids in old events are read for ever") {
    // Base32 (RFC 4648) of the big-endian bytes, computed with another implementation.
    const SessionId id = session(0x0102030405060708, 0x1112131415161718, 0x2122232425262728);
    CHECK(to_text(id) == "conv_aebagbafaydqqeiscmkbkfqxdaqseizeeutcoka");
    CHECK(to_text(ResponseId{id, TurnNo{7}}) == "resp_aebagbafaydqqeiscmkbkfqxdaqseizeeutcokaaaaaao");
    CHECK(to_text(ItemId{id, TurnNo{7}, 3}, "msg") == "msg_aebagbafaydqqeiscmkbkfqxdaqseizeeutcokaaaaaaoaad");
}

TEST_CASE("id: what is written is read again") {
    SeededRandom random(42);
    for (int i = 0; i < 2000; ++i) {
        SessionId id = session(random.next() | 1, random.next(), random.next());
        if (i == 0) id = session(1, 0, 0);
        if (i == 1) id = session(UINT64_MAX, UINT64_MAX, UINT64_MAX);
        const ResponseId response{id, TurnNo{static_cast<uint32_t>(random.next())}};
        const ItemId item{id, response.turn, static_cast<uint16_t>(random.next())};
        REQUIRE(parse_session_id(to_text(id)) == id);
        REQUIRE(parse_response_id(to_text(response)) == response);
        for (const auto* prefix : {"msg", "fc", "mcp", "mcpr"}) REQUIRE(parse_item_id(to_text(item, prefix)) == item);
        std::string out = "x";
        append_text(out, id);
        append_text(out, response);
        append_text(out, item, "fc");
        REQUIRE(out == "x" + to_text(id) + to_text(response) + to_text(item, "fc"));
    }
}

TEST_CASE("id: anything else is no id") {
    const SessionId id = session(5, 6, 7);
    const std::string text = to_text(id);
    for (const auto& bad :
         std::vector<std::string>{"", "conv_", "conv", text.substr(0, text.size() - 1), text + "a", text + "=",
                                  " " + text, "resp_" + text.substr(5), "CONV_" + text.substr(5), text.substr(5),
                                  "conv-" + text.substr(5), std::string(text.size(), '\0')})
        CHECK_FALSE(parse_session_id(bad).has_value());
    for (size_t at = 5; at < text.size(); ++at)
        for (const char wrong : {'A', '0', '1', '8', '9', '_', '\0', '\xff'}) {
            std::string changed = text;
            changed[at] = wrong;
            CHECK_FALSE(parse_session_id(changed).has_value());
        }
    CHECK_FALSE(parse_response_id(text).has_value());
    CHECK_FALSE(parse_item_id(text.substr(5)).has_value());
}

TEST_CASE("id: one id has one text, so ids can be compared as text") {
    // 192 bits are 38 digits and 2 bits: of the last digit only the four with zero padding are accepted.
    const std::string text = to_text(session(5, 6, 7));
    int accepted = 0;
    for (const char digit : std::string("abcdefghijklmnopqrstuvwxyz234567")) {
        std::string changed = text;
        changed.back() = digit;
        if (const auto parsed = parse_session_id(changed)) {
            ++accepted;
            CHECK(to_text(*parsed) == changed);
        }
    }
    CHECK(accepted == 4);
}

TEST_CASE("id: a shard follows from tenant and family alone, and shards are filled evenly") {
    CHECK(shard_of(TenantId{1}, FamilyId{99}) == shard_of(TenantId{1}, FamilyId{99}));
    std::vector<int> counts(64);
    for (uint64_t family = 1; family <= 64'000; ++family) {
        const auto shard = shard_of(TenantId{1}, FamilyId{family}, 64).value;
        REQUIRE(shard < 64);
        ++counts[shard];
    }
    for (const int count : counts) {
        CHECK(count > 800);
        CHECK(count < 1200);
    }
    CHECK(shard_of(TenantId{1}, FamilyId{1}, 1).value == 0);
}

TEST_CASE("id: new sessions sort by time and do not repeat") {
    SecureRandom random;
    std::set<SessionId> seen;
    for (TimeMs now = 1'700'000'000'000; now < 1'700'000'000'000 + 500; ++now) {
        const auto id = make_session_id(random, now);
        CHECK(id.valid());
        if (!seen.empty()) CHECK(seen.rbegin()->family < id.family);
        CHECK(seen.insert(id).second);
        const auto fork = make_fork_id(random, id.family);
        CHECK(fork.family == id.family);
        CHECK(fork != id);
    }
}
