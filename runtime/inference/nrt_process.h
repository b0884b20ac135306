#pragma once
// A Neuron device in the daemon: a worker process that owns libnrt and a set of cores (nrt_worker.h), and a Device that
// asks it. libnrt cannot be recovered from its fatal errors within a process, hangs without end where the hardware
// does, and may crash; so each call has a timeout, and a worker that hangs, dies, says what makes no sense, or reports
// a fault of the hardware is killed. The device is lost then: this and every later call is
// `restart_worker` with the whole explanation (what happened, how the process ended, its last words on stderr), and who
// supervises it opens another.
//
// Invariants: the worker inherits no descriptor but its channel and stderr; it dies with the thread that opened the
// device (PR_SET_PDEATHSIG), which must live as long as the device; whoever destroys the device has reaped it.
// Owned by that thread.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/inference/device.h"

namespace mainstay {

struct NrtOptions {
    std::string directory;       // of the model: docs/formats/nrt_model.md
    std::string library;         // libnrt to load; empty: where it is usually installed
    std::string visible_cores;   // NEURON_RT_VISIBLE_CORES of the worker: "0" or "0-3"; empty: as the daemon's
    std::string worker_program;  // empty: mainstay-nrt-worker beside the running program
    uint32_t step_timeout_ms = limits::nrt_step_timeout_ms_default;    // of each call
    uint32_t start_timeout_ms = limits::nrt_start_timeout_ms_default;  // until all graphs are loaded
    /// Over what the worker gets anyhow: PATH, HOME, LANG, LD_LIBRARY_PATH and NEURON_* of the daemon.
    std::map<std::string, std::string> environment;
};

/// Starts a worker and waits until its device is open. Errors: unsupported_value (an option, named as `param`);
/// device_absent (no worker program, library, core, or the cores are taken); model_not_loadable (the folder, its
/// graphs, or a worker that died or hung while it loaded them).
Result<std::unique_ptr<Device>> open_nrt_device(const NrtOptions& options);

}  // namespace mainstay
