#include "actors/kv_tier.h"

#include <spdlog/spdlog.h>

#include <caf/send.hpp>

namespace mainstay {

caf::behavior kv_tier(caf::stateful_actor<KvTierState>* self, LmdbKvConfig config, caf::actor scheduler) {
    self->send(self, start_atom::value);
    return {
        [self, config = std::move(config), scheduler](start_atom) {
            auto found = std::make_shared<KvFound>();
            auto kv = LmdbKv::open(config);
            if (kv.ok()) {
                self->state.kv = std::move(*kv);
                self->state.kv->visit([&](const KvBlock& block) { found->blocks.push_back(block); });
            } else {
                found->open = false;
                spdlog::warn("no KV blocks are kept on disk: {}", kv.error().message);
            }
            self->send(scheduler, std::move(found));
        },
        [self, scheduler](const StoreBlocksPtr& store) {
            auto stored = std::make_shared<KvStored>();
            for (const KvBlock& block : store->blocks) stored->hashes.push_back(block.hash);
            stored->ok = false;
            if (self->state.kv) {
                auto evicted = self->state.kv->put(store->blocks);
                stored->ok = evicted.ok();
                if (evicted.ok()) stored->evicted = std::move(*evicted);
            }
            self->send(scheduler, std::move(stored));
        },
        [self, scheduler](const FetchForWorkPtr& fetch) {
            auto lost = std::make_shared<KvLost>();
            for (BlockImport& import : fetch->work->imports) {
                if (import.load.from != KvTier::disk) continue;
                auto block = self->state.kv ? self->state.kv->get(import.load.hash) : std::nullopt;
                if (block)
                    import.bytes = std::make_shared<const std::string>(std::move(block->bytes));
                else
                    lost->hashes.push_back(import.load.hash);
            }
            if (!lost->hashes.empty()) self->send(scheduler, std::move(lost));
            self->send(fetch->worker, std::move(fetch->work));
        },
        [self, scheduler](const ReadBlocksPtr& read) {
            auto answer = std::make_shared<KvRead>();
            for (const KvHash& hash : read->hashes) {
                auto block = self->state.kv ? self->state.kv->get(hash) : std::nullopt;
                answer->blocks.push_back(
                    {hash, block ? std::make_shared<const std::string>(std::move(block->bytes)) : nullptr});
            }
            self->send(scheduler, std::move(answer));
        },
        [self](const EraseBlocksPtr& erase) {
            if (self->state.kv) self->state.kv->erase(erase->hashes);
        },
        [self](const SessionGone& gone) {
            if (self->state.kv) self->state.kv->drop_session(gone.key);
        },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
