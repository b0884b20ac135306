#include "runtime/store/lmdb_state.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "runtime/base/digest.h"
#include "tests/runtime/store/store_fixture.h"

using namespace mainstay;
using namespace mainstay::store_test;

namespace {

std::unique_ptr<LmdbState> open_or_fail(const std::filesystem::path& directory) {
    auto state = LmdbState::open({directory, 1ull << 30, nullptr});
    if (!state) FAIL(state.error().message);
    return std::move(state).value();
}

std::string mixed_text(SeededRandom& random, size_t bytes) {
    std::string out(bytes, '\0');
    for (char& c : out) c = static_cast<char>(random.below(256));
    return out;
}

}  // namespace

TEST_CASE("state: a value is framed by LZ4 where four fit a page, else by zstd where that saves, and reads back") {
    SeededRandom random(5);
    const std::string key = session_row_key(session_key(1));
    // Letters of eight kinds and runs of them: between noise and one letter.
    auto text = [&](size_t bytes, size_t run) {
        std::string out;
        while (out.size() < bytes) out.append(1 + random.below(run), static_cast<char>('a' + random.below(8)));
        return out.substr(0, bytes);
    };
    struct Row {
        std::string value;
        uint8_t encoding;
    };
    for (const Row& row : {Row{mixed_text(random, 200), 0}, Row{std::string(255, 'a'), 0}, Row{text(256, 60), 2},
                           Row{text(1860, 12), 2}, Row{text(1860, 2), 1}, Row{std::string(4096, 'a'), 2},
                           Row{std::string(4097, 'a'), 1}, Row{mixed_text(random, 1860), 0}}) {
        CAPTURE(row.value.size());
        std::string framed = frame_value(key, row.value);
        const uint32_t encoding = static_cast<uint8_t>(framed[7]) >> 4;
        CHECK(encoding == row.encoding);
        CHECK(unframe_value(key, framed) == row.value);
        if (row.encoding == 2) CHECK(framed.size() <= 8 + 960);
    }
    // Bytes whose checksum is right and whose LZ4 block is not: a length that lies, and a block that ends early.
    const std::string good = frame_value(key, text(1860, 12));
    for (uint32_t claimed : {0u, 1859u, 1861u, 4097u, 0xffffffffu}) {
        std::string bad = good;
        std::memcpy(bad.data() + 8, &claimed, sizeof claimed);
        const uint32_t crc = crc32c(std::string_view(bad).substr(4), crc32c(key));
        std::memcpy(bad.data(), &crc, sizeof crc);
        CHECK_FALSE(unframe_value(key, bad).has_value());
    }
}

TEST_CASE("state: a framed value comes back, plain or compressed, and no flipped bit passes") {
    SeededRandom random(1);
    const std::string key = session_row_key(session_key(1));
    for (const std::string& value :
         {std::string(), std::string("short"), std::string(5000, 'a'), mixed_text(random, 1500),
          "{\"role\":\"user\",\"content\":\"" + std::string(400, 'b') + "\"}"}) {
        const std::string framed = frame_value(key, value);
        CHECK(framed.size() % 8 == 0);
        CHECK(framed.size() <= value.size() + 16);
        REQUIRE(unframe_value(key, framed).has_value());
        CHECK(*unframe_value(key, framed) == value);
        CHECK_FALSE(unframe_value(session_row_key(session_key(2)), framed).has_value());  // under another key
        for (size_t bit = 0; bit < framed.size() * 8; bit += 7) {
            std::string bad = framed;
            bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
            CHECK_FALSE(unframe_value(key, bad).has_value());
        }
        for (size_t cut = 0; cut < framed.size(); cut += 8)
            CHECK_FALSE(unframe_value(key, framed.substr(0, cut)).has_value());
    }
    CHECK(frame_value(key, std::string(5000, 'a')).size() < 100);
}

TEST_CASE("state: a damaged row is reported by table and key and not served, its neighbours are") {
    TempDir dir;
    const std::string good = session_row_key(session_key(1)), bad = session_row_key(session_key(2));
    {
        auto state = open_or_fail(dir.path());
        std::vector<RowOp> rows;
        rows.push_back({Table::head, good, "a good head", false});
        rows.push_back({Table::head, bad, "DAMAGE-ME-HERE", false});
        REQUIRE(state->apply(rows));
        CHECK(state->commits() == 1);
    }
    std::fstream file(dir.path() / "data.mdb", std::ios::in | std::ios::out | std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    const std::string bytes = all.str();
    for (size_t at = bytes.find("DAMAGE"); at != std::string::npos; at = bytes.find("DAMAGE", at + 1)) {
        file.clear();
        file.seekp(static_cast<long>(at + 3));
        file.put('!');
    }
    file.close();
    auto state = open_or_fail(dir.path());
    CHECK(state->get(Table::head, good)->value() == "a good head");
    const auto damaged = state->get(Table::head, bad);
    REQUIRE_FALSE(damaged);
    CHECK(damaged.error().code == ErrorCode::state_damaged);
    CHECK(damaged.error().message.find("table head, key ") != std::string::npos);
    CHECK(damaged.error().message.find("0000000000800001") != std::string::npos);  // the family of session 2
    CHECK_FALSE(state->scan(Table::head, {}, {}, 10, [](auto, auto) { return true; }));
}

TEST_CASE("state: operations on one key end with the last, prefix deletes come first") {
    TempDir dir;
    auto state = open_or_fail(dir.path());
    const SessionKey a = session_key(1), b = session_key(2);
    std::vector<RowOp> rows;
    for (uint32_t t = 1; t <= 5; ++t) {
        rows.push_back({Table::turn, turn_row_key(a, TurnNo{t}), "a", false});
        rows.push_back({Table::turn, turn_row_key(b, TurnNo{t}), "b", false});
    }
    REQUIRE(state->apply(rows));
    rows.clear();
    rows.push_back({Table::turn, turn_row_key(a, TurnNo{3}), "old", false});
    rows.push_back({Table::turn, turn_row_key(a, TurnNo{3}), "new", false});
    rows.push_back({Table::turn, session_row_key(a), std::nullopt, true});
    rows.push_back({Table::turn, turn_row_key(b, TurnNo{1}), "kept?", false});
    rows.push_back({Table::turn, turn_row_key(b, TurnNo{1}), std::nullopt, false});
    rows.push_back({Table::head, session_row_key(a), std::nullopt, false});  // not there: no error
    REQUIRE(state->apply(rows));
    CHECK(state->get(Table::turn, turn_row_key(a, TurnNo{3}))->value() == "new");
    CHECK_FALSE(state->get(Table::turn, turn_row_key(b, TurnNo{1}))->has_value());
    size_t seen = 0;
    REQUIRE(state->scan(Table::turn, {}, {}, 100, [&](auto, auto value) {
        CHECK((value == "new" || value == "b"));
        ++seen;
        return true;
    }));
    CHECK(seen == 5);
}

TEST_CASE("state: what a one-turn session of 1.5 KB takes, as text and as incompressible bytes") {
    for (const bool text : {true, false}) {
        TempDir dir;
        auto state = open_or_fail(dir.path());
        SeededRandom random(3);
        constexpr size_t batches = 4, per_batch = 8'000;
        const auto turn = [&] {
            std::string out = mixed_text(random, 1500);
            if (text)  // letters of equal chance: still harder to compress than any language
                for (char& c : out) c = static_cast<char>('a' + static_cast<unsigned char>(c) % 26);
            return out;
        };
        for (size_t batch = 0; batch < batches; ++batch) {
            std::vector<RowOp> rows;
            for (size_t i = 0; i < per_batch; ++i) {
                const SessionKey key{TenantId{1}, make_session_id(random, 1'700'000'000'000 + batch * per_batch + i)};
                rows.push_back({Table::turn, turn_row_key(key, TurnNo{1}), turn(), false});
                rows.push_back({Table::head, session_row_key(key), mixed_text(random, 200), false});
            }
            REQUIRE(state->apply(rows));
        }
        const auto turns = state->stat(Table::turn), heads = state->stat(Table::head);
        const double per_page = static_cast<double>(turns.entries) / static_cast<double>(turns.leaf_pages);
        const size_t live = (turns.leaf_pages + turns.branch_pages + heads.leaf_pages + heads.branch_pages) *
                            turns.page_bytes / (batches * per_batch);
        MESSAGE(std::string(text ? "text: " : "incompressible: ")
                << per_page << " turns and "
                << static_cast<double>(heads.entries) / static_cast<double>(heads.leaf_pages)
                << " heads per leaf page, " << live << " bytes of live pages per session, file "
                << state->used_bytes() / (batches * per_batch));
        CHECK(turns.entries == batches * per_batch);
        CHECK(turns.overflow_pages == 0);
        CHECK(per_page >= (text ? 2.0 : 1.75));
        CHECK(live <= (text ? 2300 : 2800));
    }
}
