#include "runtime/memory/user_memory.h"

#include <doctest/doctest.h>

#include "runtime/base/fold.h"
#include "runtime/base/limits.h"

using namespace mainstay;
using Kind = BuiltinAction::Kind;

namespace {

BuiltinAction action(Kind kind, std::string key = {}, std::string value = {}) {
    BuiltinAction made;
    made.kind = kind;
    made.key = std::move(key);
    made.value = std::move(value);
    return made;
}

/// A memory as its owner drives it: every change is applied, and what is kept is read back from its bytes.
struct Owner {
    UserMemory memory;
    size_t bytes_max = limits::memory_bytes_max;
    int calls = 0;

    std::string call(const BuiltinAction& asked, const std::string& idempotency_key) {
        auto answer = memory.decide(asked, idempotency_key, bytes_max);
        if (answer.change) {
            CHECK_FALSE(answer.is_error);
            memory.apply(*answer.change);
            const auto again = UserMemory::from_body(memory.to_body());
            REQUIRE_MESSAGE(again.ok(), again.error().message);
            CHECK(again->to_body() == memory.to_body());
            CHECK(again->bytes() == memory.bytes());
            memory = *again;
        }
        return (answer.is_error ? "!" : "") + answer.output;
    }
    std::string call(const BuiltinAction& asked) { return call(asked, "call " + std::to_string(++calls)); }
};

}  // namespace

TEST_CASE("user memory: what is set is found until it is forgotten") {
    struct Row {
        Kind kind;
        std::string key, value, answer;
    };
    const std::string nothing = "!nothing is remembered under this key";
    const Row rows[] = {
        {Kind::memory_list, "", "", "[]"},
        {Kind::memory_get, "code", "", nothing},
        {Kind::memory_delete, "code", "", nothing},
        {Kind::memory_set, "code", "8477", "remembered"},
        {Kind::memory_get, "code", "", "8477"},
        {Kind::memory_set, "b\"lock\n", "\xC3\xA9\x01", "remembered"},
        {Kind::memory_get, "b\"lock\n", "", "\xC3\xA9\x01"},
        {Kind::memory_set, "code", "1", "remembered"},
        {Kind::memory_get, "code", "", "1"},
        {Kind::memory_set, "code", "", "remembered"},
        {Kind::memory_get, "code", "", ""},
        {Kind::memory_list, "", "", R"(["b\"lock\n","code"])"},
        {Kind::memory_delete, "code", "", "forgotten"},
        {Kind::memory_delete, "code", "", nothing},
        {Kind::memory_get, "code", "", nothing},
        {Kind::memory_list, "", "", R"(["b\"lock\n"])"},
    };
    Owner owner;
    for (const auto& row : rows) {
        CAPTURE(row.key);
        CHECK(owner.call(action(row.kind, row.key, row.value)) == row.answer);
    }
    CHECK(owner.memory.revision() == 5);
    CHECK(owner.memory.bytes() == 7 + 3);
}

TEST_CASE("user memory: every bound refuses by its number, and what is there may be replaced") {
    Owner owner;
    CHECK(owner.call(action(Kind::memory_set, std::string(limits::memory_key_bytes_max + 1, 'k'))) ==
          "!bytes of a key: at most 256");
    CHECK(owner.call(action(Kind::memory_set, "k", std::string(limits::memory_value_bytes_max + 1, 'v'))) ==
          "!bytes of a value: at most 8192");
    owner.bytes_max = 300;
    CHECK(owner.call(action(Kind::memory_set, "a", std::string(299, 'v'))) == "remembered");
    CHECK(owner.call(action(Kind::memory_set, "b", "")) == "!bytes of memory: at most 300");
    CHECK(owner.call(action(Kind::memory_set, "a", std::string(300, 'v'))) == "!bytes of memory: at most 300");
    CHECK(owner.call(action(Kind::memory_set, "a", std::string(298, 'v'))) == "remembered");
    CHECK(owner.call(action(Kind::memory_set, "b", "")) == "remembered");
    CHECK(owner.memory.bytes() == 300);
    // A bound that the author lowered later refuses more, and keeps what there is.
    owner.bytes_max = 256;
    CHECK(owner.call(action(Kind::memory_set, "b", "")) == "!bytes of memory: at most 256");
    CHECK(owner.call(action(Kind::memory_get, "b")).empty());
    owner.bytes_max = limits::memory_bytes_max;
    for (size_t i = 2; i < limits::memory_entries_max; ++i)
        CHECK(owner.call(action(Kind::memory_set, "k" + std::to_string(i), "v")) == "remembered");
    CHECK(owner.call(action(Kind::memory_set, "more", "v")) == "!entries of memory: at most 256");
    CHECK(owner.call(action(Kind::memory_set, "k2", "w")) == "remembered");
}

TEST_CASE("user memory: the largest memory there may be is a record, and is read again") {
    Owner owner;
    const std::string control(limits::memory_value_bytes_max, '\x01');
    for (int i = 0; i < 7; ++i) CHECK(owner.call(action(Kind::memory_set, std::to_string(i), control)) == "remembered");
    CHECK(owner.memory.to_body().size() > 7 * 6 * limits::memory_value_bytes_max);
    CHECK(owner.memory.to_body().size() < limits::record_bytes_max);
}

TEST_CASE("user memory: a call that comes again changes nothing and is answered as before") {
    Owner owner;
    const auto old_set = action(Kind::memory_set, "code", "old"), new_set = action(Kind::memory_set, "code", "new");
    CHECK(owner.call(old_set, "first") == "remembered");
    CHECK(owner.call(old_set, "first") == "remembered");
    CHECK(owner.memory.revision() == 1);
    CHECK(owner.call(new_set, "second") == "remembered");
    CHECK(owner.call(old_set, "first") == "remembered");  // late: another session was faster
    CHECK(owner.memory.entries().at("code") == "new");
    const auto forget = action(Kind::memory_delete, "code");
    CHECK(owner.call(forget, "third") == "forgotten");
    CHECK(owner.call(forget, "third") == "forgotten");
    CHECK(owner.call(forget, "fourth") == "!nothing is remembered under this key");
    CHECK(owner.call(new_set, "second") == "remembered");  // what was forgotten does not come back
    CHECK(owner.memory.entries().empty());
    CHECK(owner.memory.revision() == 3);
    // What changed nothing was not applied: it may do so later.
    CHECK(owner.call(new_set, "fifth") == "remembered");
    CHECK(owner.call(forget, "fourth") == "forgotten");
    CHECK(owner.memory.revision() == 5);
}

TEST_CASE("user memory: so many calls are known again, and not one more is kept") {
    Owner owner;
    const auto set = [](size_t i) { return action(Kind::memory_set, "k", std::to_string(i)); };
    for (size_t i = 0; i <= limits::user_memory_calls_kept; ++i)
        CHECK(owner.call(set(i), std::to_string(i)) == "remembered");
    const auto before = owner.memory.revision();
    for (size_t i = 1; i <= limits::user_memory_calls_kept; ++i)
        CHECK(owner.call(set(i), std::to_string(i)) == "remembered");
    CHECK(owner.memory.revision() == before);
    CHECK(owner.call(set(0), "0") == "remembered");
    CHECK(owner.memory.revision() == before + 1);
}

TEST_CASE("user memory: bytes that are no memory are damage") {
    const std::string good = R"({"applied":["00000000000000ff"],"entries":{"a":"b"},"revision":3})";
    const auto memory = UserMemory::from_body(good);
    REQUIRE(memory.ok());
    CHECK(memory->to_body() == good);
    for (const std::string text :
         {"", "7", "[]", "{}", R"({"applied":[],"entries":{}})", R"({"applied":{},"entries":{},"revision":1})",
          R"({"applied":[],"entries":{"a":7},"revision":1})", R"({"applied":["ff"],"entries":{},"revision":1})",
          R"({"applied":["00000000000000xx"],"entries":{},"revision":1})",
          R"({"applied":[7],"entries":{},"revision":1})", R"({"applied":[],"entries":{},"revision":-1})",
          R"({"applied":[],"entries":{},"revision":"1"})"}) {
        CAPTURE(text);
        const auto read = UserMemory::from_body(text);
        REQUIRE_FALSE(read.ok());
        CHECK(read.error().code == ErrorCode::state_damaged);
    }
}

TEST_CASE("user memory: a key names tenant, user and memory, and shows none of them") {
    const auto key = memory_key(TenantId{1}, "ann", "customer");
    CHECK(key == memory_key(TenantId{1}, "ann", "customer"));
    CHECK_FALSE(key.session.valid());
    CHECK(key.session != SessionId{});
    const SessionKey others[] = {memory_key(TenantId{2}, "ann", "customer"), memory_key(TenantId{1}, "bob", "customer"),
                                 memory_key(TenantId{1}, "ann", "staff"), memory_key(TenantId{1}, "anncustomer", "")};
    for (const auto& other : others) {
        CHECK(other != key);
        CHECK(memory_row_key(other) != memory_row_key(key));
    }
    CHECK(memory_row_key(key).size() == 24);
    CHECK(memory_row_key(key).find("ann") == std::string::npos);
    // All memories of a user lie together, on the user's shard.
    CHECK(memory_row_key(others[2]).substr(0, 16) == memory_row_key(key).substr(0, 16));
    CHECK(shard_of(others[2]) == shard_of(key));
    size_t shards = 0;
    for (int i = 0; i < 64; ++i)
        shards += shard_of(memory_key(TenantId{1}, "user " + std::to_string(i), "customer")) != shard_of(key);
    CHECK(shards > 32);  // users are spread
}
