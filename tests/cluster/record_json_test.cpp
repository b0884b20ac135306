#include "cluster/record_json.h"

#include <doctest/doctest.h>

#include <boost/json.hpp>

namespace mainstay {
namespace {

namespace json = boost::json;

NodeUuid uuid(uint8_t n) {
    NodeUuid out{};
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(n + i);
    return out;
}

ShardRecord full_record() {
    ShardRecord out;
    out.shard = ShardId(4095);
    out.epoch = Epoch(~0ull);
    out.primary = {uuid(1), uuid(2)};
    out.incarnation = 0x00f0123456789abc;
    for (uint8_t n = 0; n < 7; ++n) {
        out.in_sync.push_back({uuid(static_cast<uint8_t>(n * 16)), uuid(3)});
        out.replicas.push_back(uuid(static_cast<uint8_t>(n * 16)));
    }
    out.target = uuid(200);
    out.min_in_sync = 7;
    return out;
}

}  // namespace

TEST_CASE("record json: uuids and incarnations have one text") {
    CHECK(to_text(uuid(0xf8)) == "f8f9fafb-fcfd-feff-0001-020304050607");
    CHECK(uuid_from_text("f8f9fafb-fcfd-feff-0001-020304050607") == uuid(0xf8));
    for (const char* bad : {"", "f8f9fafb-fcfd-feff-0001-02030405060", "f8f9fafb-fcfd-feff-0001-0203040506070",
                            "F8f9fafb-fcfd-feff-0001-020304050607", "f8f9fafbfcfd-feff-0001-0203040506070",
                            "f8f9fafb-fcfd-feff-0001-02030405060g", "f8f9fafb-fcfd-feff-0001--20304050607"})
        CHECK_FALSE(uuid_from_text(bad));
    CHECK(incarnation_text(0x0123456789abcdef) == "0123456789abcdef");
    CHECK(incarnation_text(0) == "0000000000000000");
    CHECK(incarnation_from_text("ffffffffffffffff") == ~0ull);
    for (const char* bad : {"", "0", "0123456789ABCDEF", "0123456789abcdef0", "-123456789abcdef", "0x23456789abcdef"})
        CHECK_FALSE(incarnation_from_text(bad));
}

TEST_CASE("record json: what is written is read, and is what the format's page says") {
    ShardRecord small;
    small.shard = ShardId(7);
    small.epoch = Epoch(3);
    small.primary = {uuid(0), uuid(16)};
    small.incarnation = 11;
    small.in_sync = {small.primary};
    small.replicas = {uuid(0)};
    CHECK(
        to_json(small) ==
        R"({"shard":7,"epoch":3,"primary":{"node":"00010203-0405-0607-0809-0a0b0c0d0e0f",)"
        R"("disk":"10111213-1415-1617-1819-1a1b1c1d1e1f"},"incarnation":"000000000000000b",)"
        R"("in_sync":[{"node":"00010203-0405-0607-0809-0a0b0c0d0e0f","disk":"10111213-1415-1617-1819-1a1b1c1d1e1f"}],)"
        R"("replicas":["00010203-0405-0607-0809-0a0b0c0d0e0f"],"min_in_sync":1})");
    for (const ShardRecord& record : {small, full_record(), ShardRecord{}}) {
        const auto read = shard_record_from_json("k", to_json(record));
        REQUIRE(read.ok());
        CHECK(*read == record);
    }
    CHECK(to_json(full_record()).size() < 4096);  // what a page of a list counts on

    NodeEntry entry;
    entry.disk = uuid(5);
    entry.details = {"host:1", "http://host:2", "a \"zone\"\n\xe2\x82\xac", "0.1", ~0ull, {"a \"model\"", "*"}, ~0ull};
    CHECK(*node_entry_from_json("k", to_json(entry)) == entry);
    entry.details.models.clear();
    CHECK(*node_entry_from_json("k", to_json(entry)) == entry);
    ClusterMeta meta;
    meta.cluster = uuid(9);
    meta.shards = 4096;
    meta.replicas = 3;
    meta.min_in_sync = 2;
    CHECK(*cluster_meta_from_json("k", to_json(meta)) == meta);
}

TEST_CASE("record json: a decision is read as it was written, and a damaged one is named by its key") {
    const PlacementDecision decision{1'700'000'000'000, ShardId(7), "target b2", "a1 drains \xc3\xbc \"x\""};
    auto read = placement_decision_from_json("k", to_json(decision));
    REQUIRE(read.ok());
    CHECK(read->shard == ShardId());  // the key's
    read->shard = decision.shard;
    CHECK(*read == decision);
    for (const char* bad : {"", "[]", "{}", R"({"at_ms":-1,"what":"","why":""})", R"({"at_ms":1,"what":"x"})"}) {
        const auto refused = placement_decision_from_json("the/key", bad);
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code == ErrorCode::state_damaged);
        CHECK(refused.error().message.find("the/key") == 0);
    }
}

TEST_CASE("record json: fields of a later release are ignored, missing ones are not") {
    const auto check_fields = [](const std::string& text, auto&& read, const std::vector<std::string>& optional) {
        const json::object whole = json::parse(text).get_object();
        json::object more = whole;
        more["later"] = {{"x", 1}};
        CHECK(read("key", json::serialize(more)).ok());
        for (const auto& field : whole) {
            const std::string name(field.key());
            CAPTURE(name);
            json::object less = whole;
            less.erase(name);
            const auto without = read("the/key", json::serialize(less));
            CHECK(without.ok() == (std::find(optional.begin(), optional.end(), name) != optional.end()));
            for (const json::value& wrong :
                 {json::value(nullptr), json::value(true), json::value(-1), json::value(1.5), json::value("?"),
                  json::value(json::object{}), json::value(json::array{1}), json::value(json::array{nullptr})}) {
                // A text may be any text.
                if (wrong.is_string() && field.value().is_string() && !uuid_from_text(field.value().get_string()) &&
                    name != "incarnation")
                    continue;
                json::object other = whole;
                other[name] = wrong;
                const auto damaged = read("the/key", json::serialize(other));
                CAPTURE(json::serialize(wrong));
                REQUIRE_FALSE(damaged.ok());
                CHECK(damaged.error().code == ErrorCode::state_damaged);
                CHECK(damaged.error().message.find("the/key: damaged: ") == 0);
                CHECK(damaged.error().message.find(name) != std::string::npos);
            }
        }
        for (size_t length = 0; length < text.size(); ++length)
            REQUIRE_FALSE(read("key", std::string_view(text).substr(0, length)).ok());
    };
    const auto shard = [](std::string_view key, std::string_view text) { return shard_record_from_json(key, text); };
    const auto node = [](std::string_view key, std::string_view text) { return node_entry_from_json(key, text); };
    const auto meta = [](std::string_view key, std::string_view text) { return cluster_meta_from_json(key, text); };
    check_fields(to_json(full_record()), shard, {"target"});
    NodeEntry entry;
    entry.details = {"host:1", "http://host:2", "zone", "0.1", 7};
    check_fields(to_json(entry), node, {"models", "events", "calls"});  // an older release does not say it
    check_fields(to_json(ClusterMeta{}), meta, {});
}

TEST_CASE("record json: what is beyond a bound is damage") {
    const auto with = [](const char* name, json::value value) {
        json::object out = json::parse(to_json(full_record())).get_object();
        out[name] = std::move(value);
        return shard_record_from_json("k", json::serialize(out)).ok();
    };
    CHECK(with("shard", 65535));
    CHECK_FALSE(with("shard", 65536));
    CHECK(with("min_in_sync", 7));
    CHECK_FALSE(with("min_in_sync", 8));
    json::array eight;
    for (uint8_t n = 0; n < 8; ++n) eight.push_back(json::string(to_text(uuid(n))));
    CHECK_FALSE(with("replicas", eight));
    json::object whole = json::parse(to_json(full_record())).get_object();
    whole["in_sync"].get_array()[3].get_object().erase("disk");
    const auto inner = shard_record_from_json("k", json::serialize(whole));
    REQUIRE_FALSE(inner.ok());
    CHECK(inner.error().message == "k: damaged: in_sync disk is missing");
    CHECK(cluster_meta_from_json("k", R"({"format":2})").error().code == ErrorCode::unsupported_value);
}

}  // namespace mainstay
