#pragma once
// What a step would take on an AWS accelerator: a roofline over the shapes that the hardware would compute, padding
// included. A model, not a measurement: everything that comes from here is labelled simulated wherever it is printed,
// and power is assumed, because AWS publishes none. Pure.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/result.h"

namespace mainstay {

/// One chip. Sources: AWS Neuron documentation (aws-neuron-sdk, about-neuron/arch/neuron-hardware) for the first three.
struct DeviceHardware {
    std::string_view name;
    double bf16_flops = 0;        // dense, per second
    double fp32_flops = 0;        // per second
    double memory_bandwidth = 0;  // HBM bytes per second
    double idle_watts = 0;        // assumed
    double busy_watts = 0;        // assumed
    // Assumed until somebody calibrates them on hardware.
    double compute_efficiency = 0.4;
    double memory_efficiency = 0.7;
    double launch_s = 50e-6;  // of one step
};

/// inf2, trn1, trn2, trn3.
std::span<const DeviceHardware> device_hardware();
/// Fails with unsupported_value and the names that there are.
Result<DeviceHardware> find_device_hardware(std::string_view name);

/// A step as the hardware would see it.
struct StepShape {
    uint64_t body_parameters = 0;   // of all layers' matrices
    uint64_t head_parameters = 0;   // of the last one
    uint64_t weight_bytes = 0;      // of both
    uint64_t kv_token_bytes = 0;    // keys and values of one token in all layers
    uint64_t attention_flops = 0;   // of one query token against one token of context, all layers
    uint64_t activation_bytes = 0;  // of one token
    uint64_t tokens = 0;            // padded
    uint64_t head_rows = 0;         // padded
    uint64_t context_pairs = 0;     // query tokens times what each sees, padded
    uint64_t context_read = 0;      // tokens of context read, padded
    bool bf16 = true;
};

struct StepTime {
    double seconds = 0;
    double joules = 0;
    uint64_t flops = 0;
    uint64_t bytes = 0;
};

StepTime device_time(const DeviceHardware& hardware, const StepShape& shape);

}  // namespace mainstay
