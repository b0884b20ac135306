#include "runtime/inference/device_clock.h"

#include <algorithm>

namespace mainstay {

namespace {

constexpr double tera = 1e12, gib = 1024.0 * 1024 * 1024;

// Rates: vendor's documentation, per chip. Watts: assumed (public statements are "above 1,000 W, liquid cooled" for
// Trn3 and relative efficiencies); an idle chip is assumed to take three tenths.
constexpr DeviceHardware table[] = {
    {"inf2", 190 * tera, 47.5 * tera, 820 * gib, 39, 130},
    {"trn1", 190 * tera, 47.5 * tera, 820 * gib, 60, 200},
    {"trn2", 667 * tera, 181 * tera, 2.9 * tera, 150, 500},
    {"trn3", 671 * tera, 183 * tera, 4.9 * tera, 300, 1000},
};

}  // namespace

std::span<const DeviceHardware> device_hardware() { return table; }

Result<DeviceHardware> find_device_hardware(std::string_view name) {
    std::string names;
    for (const DeviceHardware& hardware : table) {
        if (hardware.name == name) return hardware;
        names += (names.empty() ? "" : ", ") + std::string(hardware.name);
    }
    return Error{ErrorCode::unsupported_value, "no hardware \"" + std::string(name) + "\" (there are " + names + ")",
                 "hardware"};
}

StepTime device_time(const DeviceHardware& hardware, const StepShape& shape) {
    StepTime out;
    out.flops = 2 * shape.body_parameters * shape.tokens + 2 * shape.head_parameters * shape.head_rows +
                shape.attention_flops * shape.context_pairs;
    out.bytes = shape.weight_bytes + shape.kv_token_bytes * (shape.context_read + shape.tokens) +
                shape.activation_bytes * shape.tokens;
    const double peak = shape.bf16 ? hardware.bf16_flops : hardware.fp32_flops;
    const double compute = double(out.flops) / (peak * hardware.compute_efficiency);
    const double memory = double(out.bytes) / (hardware.memory_bandwidth * hardware.memory_efficiency);
    const double busy = std::max(compute, memory);
    out.seconds = busy + hardware.launch_s;
    out.joules = hardware.idle_watts * out.seconds + (hardware.busy_watts - hardware.idle_watts) * busy;
    return out;
}

}  // namespace mainstay
