#pragma once
// The worker's side of a Neuron device: a process of its own that owns libnrt and the cores which its environment shows
// it (NEURON_RT_VISIBLE_CORES), opens one device and answers one request after the other until the channel ends. What
// kills it, a hang, a crash or the hardware, takes nothing else along. One thread.

#include <string>

#include "runtime/inference/device.h"

namespace mainstay {

/// Descriptor of the channel in the worker: what is printed to the others by a library cannot get in between.
constexpr int nrt_worker_channel = 3;

struct NrtWorkerOptions {
    std::string library;    // as NrtLibrary::open
    std::string directory;  // of the model
    int channel = nrt_worker_channel;
};

/// The exit status: 0 once the channel has ended, 1 where the device could not be opened (the other side was told), 2
/// where the channel carried what is no request.
int run_nrt_worker(const NrtWorkerOptions& options);

/// The part that needs no hardware: answers for `device` until the channel ends.
int serve_device(Device& device, int channel);

}  // namespace mainstay
