#include "actors/router.h"

namespace mainstay {

caf::behavior router(caf::stateful_actor<RouterState>* self, NodeContext* node, caf::actor node_supervisor) {
    return {
        [self, node, node_supervisor](const EnvelopePtr& envelope) {
            if (node->shards != nullptr) {
                const ShardId shard = node->shard_of(envelope->key);
                const auto place = node->shards->find(shard);
                if (place.where != ShardPlace::Where::here)
                    return refuse(envelope->ask, NodeContext::elsewhere(place, shard));
            }
            const auto found = self->state.tenants.find(envelope->key.tenant);
            self->send(found != self->state.tenants.end() ? found->second : node_supervisor, envelope);
        },
        [self](TenantId tenant, const caf::actor& supervisor) { self->state.tenants[tenant] = supervisor; },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
