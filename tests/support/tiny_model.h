#pragma once
// The model that the project ships, as a test's configuration names it: one device, small caches, nothing on disk.

#include <string>

#include "runtime/base/agent_spec.h"

namespace mainstay {

inline const std::string models_directory = MAINSTAY_SOURCE_DIR "/config/models";

inline ModelSpec tiny_model() {
    ModelSpec model;
    model.name = "mainstay_tiny";
    model.device = "neuron_core_sim";
    model.context_window = 768;
    model.own.path = "mainstay_tiny";
    model.own.devices = 1;
    model.own.threads = 1;
    model.own.block_tokens = 16;
    model.own.rows_max = 16;
    model.own.tokens_max = 64;
    model.own.kv_device_bytes = 16 << 20;
    model.own.kv_host_bytes = 16 << 20;
    model.own.kv_disk_bytes = 0;
    return model;
}

}  // namespace mainstay
