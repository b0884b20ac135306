#pragma once
// Erasing what LMDB leaves behind. A deleted row stays readable in three places: in pages that were freed, in the gap
// between the index and the nodes of a leaf page, and behind the end of a value on overflow pages. None of them is ever
// read by LMDB, so they can be overwritten with zeros in place, in the environment's file, while no transaction writes.

#include "runtime/base/result.h"

struct MDB_env;

namespace mainstay {

/// Precondition: no write transaction is open, none begins before the call returns, and the last two transactions
/// deleted nothing that must go. Pages that a reader may still see are left alone and reported as `internal`, to be
/// tried again. Syncs the file.
Result<void> erase_unused_bytes(MDB_env* env);

}  // namespace mainstay
