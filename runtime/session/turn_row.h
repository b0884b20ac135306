#pragma once
// The value of a turn row: the journal's batches of one settled turn, as they were, one after the other. The format is
// docs/formats/items.md.
//
// Thread-safe: the context that uncompresses old rows is per thread.

#include <string>
#include <string_view>
#include <vector>

#include "runtime/session/session.h"

namespace mainstay {

std::string encode_turn_row(const std::vector<Session::RawBatch>& batches);
/// The entries of a row, uncompressed into `storage` if need be; the views live as long as `row` and `storage`.
/// state_damaged for anything that is not a row.
Result<std::vector<Session::RawBatch>> decode_turn_row(std::string_view row, std::string& storage);

}  // namespace mainstay
