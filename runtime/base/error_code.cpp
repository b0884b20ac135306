#include "runtime/base/error_code.h"

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

constexpr ErrorInfo table[] = {
#define MAINSTAY_X(name, status, type, retry) {ErrorCode::name, #name, status, type, retry},
    MAINSTAY_ERROR_CODES(MAINSTAY_X)
#undef MAINSTAY_X
};

}  // namespace

const ErrorInfo& error_info(ErrorCode code) {
    const auto at = static_cast<size_t>(code);
    INVARIANT(at < sizeof(table) / sizeof(table[0]), "an error code comes from the list");
    return table[at];
}

const ErrorInfo* find_error(std::string_view name) {
    for (const auto& row : table)
        if (row.name == name) return &row;
    return nullptr;
}

const ErrorInfo* error_table(size_t& count) {
    count = sizeof(table) / sizeof(table[0]);
    return table;
}

}  // namespace mainstay
