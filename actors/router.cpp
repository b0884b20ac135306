#include "actors/router.h"

namespace mainstay {

caf::behavior router(caf::stateful_actor<RouterState>* self, NodeContext*, caf::actor node_supervisor) {
    return {
        [self, node_supervisor](const EnvelopePtr& envelope) {
            const auto found = self->state.tenants.find(envelope->key.tenant);
            self->send(found != self->state.tenants.end() ? found->second : node_supervisor, envelope);
        },
        [self](TenantId tenant, const caf::actor& supervisor) { self->state.tenants[tenant] = supervisor; },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
