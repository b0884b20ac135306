#pragma once
// The actor that owns a model's KV cache on disk (runtime/store/lmdb_kv). What it does may block for the disk, so it is
// detached; the token scheduler decides what is stored and fetched, and learns of everything that went.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <memory>

#include "actors/token_messages.h"
#include "runtime/store/lmdb_kv.h"

namespace mainstay {

struct KvTierState {
    std::unique_ptr<LmdbKv> kv;  // null: it could not be opened, everything is missing
};

/// Reports KvFound once, then KvStored for each StoreBlocks and KvRead for each ReadBlocks; work goes on to its worker
/// with the bytes that it wants from the disk, and blocks that were missing or damaged are told as KvLost.
caf::behavior kv_tier(caf::stateful_actor<KvTierState>* self, LmdbKvConfig config, caf::actor scheduler);

}  // namespace mainstay
