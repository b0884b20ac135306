#include "actors/node_fold.h"

#include <doctest/doctest.h>

#include <map>

#include "runtime/agent/catalogue.h"
#include "runtime/memory/user_memory.h"

using namespace mainstay;

namespace {

std::map<std::string, std::string> rows_of(const std::vector<std::string>& payloads) {
    std::vector<FoldRecord> records;
    for (const auto& payload : payloads) records.push_back({Lsn{1}, Epoch{1}, Sequence{}, payload});
    std::vector<RowOp> rows;
    NodeFold fold;
    REQUIRE(fold.fold({TenantId{1}, {}}, std::nullopt, records, rows).ok());
    std::map<std::string, std::string> out;
    for (const auto& row : rows) {
        CHECK(row.table == Table::entity);
        CHECK(row.key.size() % 8 == 0);
        out[row.key] = row.value.value_or("");
    }
    return out;
}

std::string entity(const std::string& kind, const std::string& name, uint64_t version, TimeMs at) {
    return encode_entity({kind, name, version, "{}", at, "admin", false});
}

}  // namespace

TEST_CASE("node fold: every version of every entity has a row of its own") {
    const std::vector<std::string> payloads = {entity("agent", "a", 1, 10), entity("agent", "a", 2, 20),
                                               entity("model", "a", 1, 30),
                                               entity("agent", "another-longer-name", 1, 40)};
    const auto rows = rows_of(payloads);
    CHECK(rows.size() == 4);
    for (const auto& payload : payloads) {
        size_t found = 0;
        for (const auto& [key, value] : rows) found += value == payload;
        CHECK(found == 1);
    }
}

TEST_CASE("node fold: a version that is applied again replaces its row, with the later time") {
    const auto rows = rows_of({entity("agent", "a", 1, 10), entity("agent", "a", 2, 20), entity("agent", "a", 1, 30)});
    CHECK(rows.size() == 2);
    size_t latest = 0;
    for (const auto& [key, value] : rows) latest += decode_entity(value).value().at == 30;
    CHECK(latest == 1);
}

TEST_CASE("node fold: a record that is no entity is damage") {
    std::vector<RowOp> rows;
    NodeFold fold;
    const auto folded = fold.fold({TenantId{1}, {}}, std::nullopt, {{Lsn{1}, Epoch{1}, Sequence{}, "nonsense"}}, rows);
    REQUIRE(!folded.ok());
    CHECK(folded.error().code == ErrorCode::state_damaged);
}

TEST_CASE("node fold: a user's memory is one row, the newest record's, and its deletions reach the store") {
    const auto key = memory_key(TenantId{1}, "ann", "customer");
    const auto record = [](uint64_t version, std::string body, bool removed) {
        return encode_entity({"memory", "customer", version, std::move(body), 10, "ann", removed});
    };
    const std::string set = record(1, "{1}", false), forgot = record(2, "{2}", true), gone = record(3, "", true);
    struct Row {
        std::vector<std::string> payloads;
        bool erases;
        std::string value;  // "" : no row
    };
    const Row rows[] = {{{set}, false, set},
                        {{set, forgot}, true, forgot},
                        {{forgot, set}, true, set},
                        {{set, forgot, gone}, true, ""},
                        {{gone, set}, true, set}};
    for (const auto& row : rows) {
        std::vector<FoldRecord> records;
        for (const auto& payload : row.payloads) records.push_back({Lsn{1}, Epoch{1}, Sequence{}, payload});
        std::vector<RowOp> made;
        NodeFold fold;
        REQUIRE(fold.fold(key, std::nullopt, records, made).ok());
        bool erases = false;
        std::string value;
        for (const auto& op : made) {
            CHECK(op.table == Table::memory);
            CHECK(op.key == memory_row_key(key));
            if (op.value) value = *op.value;
            erases = erases || (op.prefix && !op.value);
        }
        CHECK(erases == row.erases);
        CHECK(value == row.value);
    }
    std::vector<RowOp> none;
    NodeFold fold;
    CHECK_FALSE(fold.fold(key, std::nullopt, {{Lsn{1}, Epoch{1}, Sequence{}, "nonsense"}}, none).ok());
}
