#include "runtime/base/error_code.h"

#include <doctest/doctest.h>

#include <set>

using namespace mainstay;

TEST_CASE("error code: each has one row, found by code and by name") {
    size_t count = 0;
    const ErrorInfo* table = error_table(count);
    std::set<std::string_view> names;
    for (size_t i = 0; i < count; ++i) {
        const auto& row = table[i];
        CAPTURE(row.name);
        CHECK(static_cast<size_t>(row.code) == i);
        CHECK(&error_info(row.code) == &row);
        CHECK(find_error(row.name) == &row);
        CHECK(names.insert(row.name).second);
        CHECK(row.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string_view::npos);
        CHECK(row.http_status >= 400);
        CHECK(row.http_status < 600);
        CHECK(row.type.ends_with("_error"));
    }
    CHECK(count >= 56);  // codes are only added
    CHECK(find_error("no_such_code") == nullptr);
    CHECK(find_error("") == nullptr);
}

TEST_CASE("error code: what a client must not repeat is not called retryable") {
    for (const auto code :
         {ErrorCode::invalid_request, ErrorCode::unauthenticated, ErrorCode::forbidden,
          ErrorCode::idempotency_key_reused, ErrorCode::tool_outcome_unknown, ErrorCode::state_damaged})
        CHECK_FALSE(error_info(code).retryable);
    for (const auto code : {ErrorCode::input_queue_full, ErrorCode::journal_backlog_full, ErrorCode::draining,
                            ErrorCode::storage_full, ErrorCode::model_rate_limited})
        CHECK(error_info(code).retryable);
}
