// Idempotency keys that readers ignore do not stay on disk for ever.
#include <doctest/doctest.h>

#include <algorithm>

#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

/// Each record puts a key row per letter of its payload; a row whose value is "o" is old.
class KeyFold final : public Fold {
  public:
    Result<void> fold(const SessionKey& key, std::optional<std::string_view>, const std::vector<FoldRecord>& records,
                      std::vector<RowOp>& rows) override {
        for (const auto& record : records)
            for (size_t i = 0; i < record.payload.size(); ++i) {
                KeyHash hash{};
                hash[0] = static_cast<uint8_t>(record.first_sequence.value);
                hash[1] = static_cast<uint8_t>(i >> 8);
                hash[2] = static_cast<uint8_t>(i);
                rows.push_back({Table::key, key_row_key(key, hash), std::string(1, record.payload[i]), false});
            }
        return {};
    }
    bool expired(Table table, std::string_view value, TimeMs now) const override {
        return table == Table::key && value == "o" && now > 1'700'000'000'000;
    }
};

std::string values_of(Store& store) {
    std::string values;
    REQUIRE(store.scan(Table::key, {}, {}, SIZE_MAX, [&](std::string_view, std::string_view value) {
        values += value;
        return true;
    }));
    return values;
}

}  // namespace

TEST_CASE("disk store: expired key rows are swept in bounded parts, the others stay") {
    TempDir dir;
    KeyFold fold;
    auto config = small_config(dir.path(), fold);
    config.apply_interval_ms = 1'000'000;
    auto store = DiskStore::open_disk(config);
    REQUIRE(store.ok());
    std::string mixed;
    for (size_t i = 0; i < 4 * limits::key_sweep_rows_min; ++i) mixed += i % 3 == 0 ? 'o' : 'n';
    (*store)->append(events(session_key(1), 1, mixed));
    (*store)->flush();
    const size_t old = static_cast<size_t>(std::count(mixed.begin(), mixed.end(), 'o'));
    REQUIRE(values_of(**store) == mixed);

    // The next transaction examines as many as the last one added, times the factor, and a few more: all of them here.
    // From then on little is added, so a part of the table at a time is.
    (*store)->append(events(session_key(1), 2, "n"));
    (*store)->flush();
    CHECK(values_of(**store) == std::string(mixed.size() - old + 1, 'n'));

    (*store)->append(events(session_key(2), 1, std::string(4 * limits::key_sweep_rows_min, 'o')));
    (*store)->append(events(session_key(3), 1, "n"));
    (*store)->flush();
    size_t rounds = 0, left = std::string::npos;
    while (left != 0 && rounds < 50) {
        ++rounds;
        (*store)->append(events(session_key(4), rounds, "n"));
        (*store)->flush();
        const std::string values = values_of(**store);
        left = static_cast<size_t>(std::count(values.begin(), values.end(), 'o'));
    }
    CHECK(left == 0);
    CHECK(values_of(**store) == std::string(mixed.size() - old + 2 + rounds, 'n'));
}

TEST_CASE("disk store: a key that is used anew in the transaction that sweeps its old row stays") {
    TempDir dir;
    KeyFold fold;
    auto config = small_config(dir.path(), fold);
    config.apply_interval_ms = 1'000'000;
    auto store = DiskStore::open_disk(config);
    REQUIRE(store.ok());
    (*store)->append(events(session_key(1), 1, "ooo"));
    (*store)->flush();
    CHECK(values_of(**store) == "ooo");
    (*store)->append(events(session_key(1), 1, "n"));
    (*store)->flush();
    CHECK(values_of(**store) == "n");
}
