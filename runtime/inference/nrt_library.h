#pragma once
// The AWS Neuron runtime as this process sees it: libnrt is a closed shared library that is looked for when a device of
// kind "nrt" is opened, never linked. Its declarations are written here from the public headers (aws-neuron-sdk,
// src/libnrt/include/nrt), only what is used. Absence is an answer (device_absent, saying what was looked for), and
// nothing takes the library's place.
//
// A library stays loaded until the process ends: libnrt starts threads, and unloading under them is undefined.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/result.h"
#include "runtime/inference/device.h"

namespace mainstay {

// --- the library's own types, by its names in our spelling ------------------------------------------------------
struct NrtModel;   // nrt_model_t
struct NrtTensor;  // nrt_tensor_t
using NrtTensorSet = void;

enum class NrtPlacement : int { device = 0, host = 1, virtual_memory = 2 };
enum class NrtUsage : int { input = 0, output = 1 };
constexpr int nrt_framework_none = 1;
constexpr int nrt_success = 0;

/// nrt_dtype_t
enum class NrtType : int {
    uint64 = 0x1,
    int8 = 0x2,
    uint8 = 0x3,
    int16 = 0x4,
    uint16 = 0x5,
    bfloat16 = 0x6,
    float16 = 0x7,
    int32 = 0x8,
    uint32 = 0x9,
    float32 = 0xa,
    int64 = 0xc,
};
/// "float32"; "type 13" for one that we do not compute with.
std::string nrt_type_name(int type);
/// 0 for a type that we do not know.
size_t nrt_type_bytes(int type);

/// nrt_tensor_info_t
struct NrtTensorInfo {
    char name[256];
    NrtUsage usage;
    size_t size;  // bytes
    int type;     // NrtType, or one of those that we do not know
    uint32_t* shape;
    uint32_t rank;
};

/// nrt_tensor_info_array_t: `count` entries follow.
struct NrtTensorInfos {
    uint64_t count;
    NrtTensorInfo* entries() { return reinterpret_cast<NrtTensorInfo*>(this + 1); }
};

/// nrt_vnc_memory_stats_t; later versions append fields.
struct NrtMemoryStats {
    size_t bytes_used;
    size_t bytes_limit;
};

// X(name without the prefix nrt_, returned type, parameters): the order is that of use.
#define MAINSTAY_NRT_FUNCTIONS(X)                                                                \
    X(get_total_vnc_count, int, (uint32_t*))                                                     \
    X(get_visible_vnc_count, int, (uint32_t*))                                                   \
    X(init, int, (int framework, const char* framework_version, const char* layer_version))      \
    X(close, void, ())                                                                           \
    X(load, int, (const void* neff, size_t size, int32_t vnc, int32_t vnc_count, NrtModel**))    \
    X(unload, int, (NrtModel*))                                                                  \
    X(get_model_tensor_info, int, (NrtModel*, NrtTensorInfos**))                                 \
    X(free_model_tensor_info, int, (NrtTensorInfos*))                                            \
    X(tensor_allocate, int, (NrtPlacement, int vnc, size_t size, const char* name, NrtTensor**)) \
    X(tensor_free, void, (NrtTensor**))                                                          \
    X(tensor_read, int, (const NrtTensor*, void* to, size_t offset, size_t size))                \
    X(tensor_write, int, (NrtTensor*, const void* from, size_t offset, size_t size))             \
    X(allocate_tensor_set, int, (NrtTensorSet**))                                                \
    X(destroy_tensor_set, void, (NrtTensorSet**))                                                \
    X(add_tensor_to_tensor_set, int, (NrtTensorSet*, const char* name, NrtTensor*))              \
    X(execute, int, (NrtModel*, const NrtTensorSet* in, NrtTensorSet* out))
/// Used where they are there.
#define MAINSTAY_NRT_OPTIONAL(X)                                                                                   \
    X(get_vnc_memory_stats, int, (uint32_t vnc, NrtMemoryStats*, size_t size_in, size_t * size_out))               \
    X(tensor_copy, int, (const NrtTensor* from, size_t from_offset, NrtTensor* to, size_t to_offset, size_t size)) \
    X(tensor_memset, int, (NrtTensor*, uint64_t offset, int value, size_t size))                                   \
    X(get_status_as_str, const char*, (int status))

struct NrtFunctions {
#define MAINSTAY_X(name, returned, parameters) returned(*name) parameters = nullptr;
    MAINSTAY_NRT_FUNCTIONS(MAINSTAY_X)
    MAINSTAY_NRT_OPTIONAL(MAINSTAY_X)
#undef MAINSTAY_X
};

class NrtLibrary {
  public:
    /// Loads `path`, or where it is empty libnrt.so.1 by the system's search and then from where the vendor's package
    /// puts it. Errors: device_absent, naming each place that was tried and why it did not serve, or the function that
    /// is missing.
    static Result<std::shared_ptr<const NrtLibrary>> open(const std::string& path);

    const NrtFunctions& functions() const { return functions_; }
    const std::string& path() const { return path_; }

  private:
    NrtLibrary() = default;
    NrtFunctions functions_;
    std::string path_;
};

/// What a status code of the runtime means: during a step for its caller, at the start for who opens the device.
struct NrtStatusMeaning {
    int status = 0;
    const char* name = "";
    DeviceAction action = DeviceAction::restart_worker;
    DeviceFault fault = DeviceFault::hardware;
    ErrorCode at_start = ErrorCode::model_not_loadable;
};
/// Codes that are not in the table mean what NRT_FAILURE means: the worker is not trusted any more.
NrtStatusMeaning nrt_status_meaning(int status);
/// For a failed call during a step: "nrt_execute: NRT_TIMEOUT (5)".
DeviceError nrt_error(const char* function, int status);
/// For a failed call while the device is opened.
Error nrt_start_error(const char* function, int status, const std::string& what);

}  // namespace mainstay
