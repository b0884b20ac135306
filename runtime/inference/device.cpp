#include "runtime/inference/device.h"

namespace mainstay {

const char* to_string(StepKind kind) {
    switch (kind) {
        case StepKind::decode: return "decode";
        case StepKind::prefill: return "prefill";
        case StepKind::mixed: return "mixed";
    }
    return "?";
}

const char* to_string(DeviceAction action) {
    switch (action) {
        case DeviceAction::retry: return "retry";
        case DeviceAction::fail_request: return "fail_request";
        case DeviceAction::restart_worker: return "restart_worker";
    }
    return "?";
}

const char* to_string(DeviceFault fault) {
    switch (fault) {
        case DeviceFault::queue_full: return "queue_full";
        case DeviceFault::resource: return "resource";
        case DeviceFault::bad_shape: return "bad_shape";
        case DeviceFault::bad_block_table: return "bad_block_table";
        case DeviceFault::block_conflict: return "block_conflict";
        case DeviceFault::bad_token: return "bad_token";
        case DeviceFault::bad_bytes: return "bad_bytes";
        case DeviceFault::numeric: return "numeric";
        case DeviceFault::timeout: return "timeout";
        case DeviceFault::hardware: return "hardware";
        case DeviceFault::unsupported: return "unsupported";
    }
    return "?";
}

}  // namespace mainstay
