#pragma once
// The actor that owns one device. It opens the device on its own thread, runs one piece of work after another and
// reports each; it knows blocks and tokens, and neither the store, sessions, nor other workers. What it does blocks, so
// it is detached. It never retries: a device that fails for good is reported, and the scheduler decides about another
// incarnation.

#include <caf/event_based_actor.hpp>
#include <caf/stateful_actor.hpp>
#include <functional>
#include <memory>

#include "actors/token_messages.h"

namespace mainstay {

using OpenDevice = std::function<Result<std::unique_ptr<Device>>()>;

struct AcceleratorWorkerState {
    std::unique_ptr<Device> device;
};

/// Reports DeviceOpened, then DeviceWorkDone for each RunDeviceWork, to `scheduler`.
caf::behavior accelerator_worker(caf::stateful_actor<AcceleratorWorkerState>* self, WorkerTag tag, caf::actor scheduler,
                                 OpenDevice open);

}  // namespace mainstay
