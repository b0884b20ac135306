#include "runtime/inference/nrt_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace mainstay {

namespace {

constexpr const char* library_name = "libnrt.so.1";
constexpr const char* package_path = "/opt/aws/neuron/lib/libnrt.so.1";

std::string last_problem() {
    const char* said = ::dlerror();
    return said ? said : "no reason given";
}

// One row for each code of nrt_status.h, in its order. Retry: nothing happened, the device is well. Fail the request:
// the input is to blame, or its own numbers. Restart: the runtime's documents say that nothing but a new process helps,
// or they do not say that anything less does.
constexpr auto retry = DeviceAction::retry;
constexpr auto fail = DeviceAction::fail_request;
constexpr auto restart = DeviceAction::restart_worker;
constexpr NrtStatusMeaning meanings[] = {
    {1, "NRT_FAILURE", restart, DeviceFault::hardware, ErrorCode::model_not_loadable},
    {2, "NRT_INVALID", fail, DeviceFault::bad_shape, ErrorCode::model_not_loadable},
    {3, "NRT_INVALID_HANDLE", fail, DeviceFault::bad_shape, ErrorCode::model_not_loadable},
    {4, "NRT_RESOURCE", retry, DeviceFault::resource, ErrorCode::model_not_loadable},
    {5, "NRT_TIMEOUT", restart, DeviceFault::timeout, ErrorCode::model_not_loadable},
    {6, "NRT_HW_ERROR", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {7, "NRT_QUEUE_FULL", retry, DeviceFault::queue_full, ErrorCode::model_not_loadable},
    {9, "NRT_LOAD_NOT_ENOUGH_NC", restart, DeviceFault::unsupported, ErrorCode::device_absent},
    {10, "NRT_UNSUPPORTED_NEFF_VERSION", restart, DeviceFault::unsupported, ErrorCode::model_not_loadable},
    {11, "NRT_FAIL_HOST_MEM_ALLOC", restart, DeviceFault::resource, ErrorCode::model_not_loadable},
    {13, "NRT_UNINITIALIZED", restart, DeviceFault::unsupported, ErrorCode::device_absent},
    {14, "NRT_CLOSED", restart, DeviceFault::unsupported, ErrorCode::device_absent},
    {15, "NRT_QUEUE_EMPTY", retry, DeviceFault::queue_full, ErrorCode::model_not_loadable},
    {101, "NRT_EXEC_UNIT_UNRECOVERABLE", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1002, "NRT_EXEC_BAD_INPUT", fail, DeviceFault::bad_shape, ErrorCode::model_not_loadable},
    {1003, "NRT_EXEC_COMPLETED_WITH_NUM_ERR", fail, DeviceFault::numeric, ErrorCode::model_not_loadable},
    {1004, "NRT_EXEC_COMPLETED_WITH_ERR", restart, DeviceFault::hardware, ErrorCode::model_not_loadable},
    {1005, "NRT_EXEC_NC_BUSY", retry, DeviceFault::queue_full, ErrorCode::device_absent},
    {1006, "NRT_EXEC_OOB", fail, DeviceFault::bad_block_table, ErrorCode::model_not_loadable},
    {1100, "NRT_COLL_PENDING", retry, DeviceFault::queue_full, ErrorCode::model_not_loadable},
    {1200, "NRT_EXEC_HW_ERR_COLLECTIVES", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1201, "NRT_EXEC_HW_ERR_HBM_UE", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1202, "NRT_EXEC_HW_ERR_NC_UE", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1203, "NRT_EXEC_HW_ERR_DMA_ABORT", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1204, "NRT_EXEC_SW_NQ_OVERFLOW", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1205, "NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE", restart, DeviceFault::hardware, ErrorCode::device_absent},
    {1206, "NRT_NETWORK_PROXY_FAILURE", restart, DeviceFault::hardware, ErrorCode::device_absent},
};

std::string called(const char* function, const NrtStatusMeaning& meaning) {
    return std::string("nrt_") + function + ": " + meaning.name + " (" + std::to_string(meaning.status) + ")";
}

}  // namespace

std::string nrt_type_name(int type) {
    switch (NrtType(type)) {
        case NrtType::uint64: return "uint64";
        case NrtType::int8: return "int8";
        case NrtType::uint8: return "uint8";
        case NrtType::int16: return "int16";
        case NrtType::uint16: return "uint16";
        case NrtType::bfloat16: return "bfloat16";
        case NrtType::float16: return "float16";
        case NrtType::int32: return "int32";
        case NrtType::uint32: return "uint32";
        case NrtType::float32: return "float32";
        case NrtType::int64: return "int64";
    }
    return "type " + std::to_string(type);
}

size_t nrt_type_bytes(int type) {
    switch (NrtType(type)) {
        case NrtType::int8:
        case NrtType::uint8: return 1;
        case NrtType::int16:
        case NrtType::uint16:
        case NrtType::bfloat16:
        case NrtType::float16: return 2;
        case NrtType::int32:
        case NrtType::uint32:
        case NrtType::float32: return 4;
        case NrtType::uint64:
        case NrtType::int64: return 8;
    }
    return 0;
}

NrtStatusMeaning nrt_status_meaning(int status) {
    for (const NrtStatusMeaning& meaning : meanings)
        if (meaning.status == status) return meaning;
    return {status, "an unknown status"};
}

DeviceError nrt_error(const char* function, int status) {
    const NrtStatusMeaning meaning = nrt_status_meaning(status);
    return {meaning.action, meaning.fault, called(function, meaning), std::nullopt, status};
}

Error nrt_start_error(const char* function, int status, const std::string& what) {
    const NrtStatusMeaning meaning = nrt_status_meaning(status);
    return {meaning.at_start, what + ": " + called(function, meaning), "device"};
}

Result<std::shared_ptr<const NrtLibrary>> NrtLibrary::open(const std::string& path) {
    const std::vector<std::string> places =
        path.empty() ? std::vector<std::string>{library_name, package_path} : std::vector<std::string>{path};
    void* handle = nullptr;
    std::string problems;
    std::shared_ptr<NrtLibrary> library(new NrtLibrary);
    for (const std::string& place : places) {
        handle = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
        library->path_ = place;
        if (handle) break;
        problems += (problems.empty() ? "" : "; ") + last_problem();
    }
    if (!handle)
        return Error{ErrorCode::device_absent, "the Neuron runtime is not on this machine: " + problems, "library"};
    NrtFunctions& f = library->functions_;
    std::string missing;
#define MAINSTAY_X(name, returned, parameters) \
    f.name = reinterpret_cast<decltype(f.name)>(::dlsym(handle, "nrt_" #name));
    MAINSTAY_NRT_FUNCTIONS(MAINSTAY_X)
    MAINSTAY_NRT_OPTIONAL(MAINSTAY_X)
#undef MAINSTAY_X
#define MAINSTAY_X(name, returned, parameters) \
    if (!f.name) missing += (missing.empty() ? "nrt_" : ", nrt_") + std::string(#name);
    MAINSTAY_NRT_FUNCTIONS(MAINSTAY_X)
#undef MAINSTAY_X
    if (!missing.empty()) {
        ::dlclose(handle);  // nothing of it was called
        return Error{ErrorCode::device_absent,
                     library->path_ + " is no Neuron runtime that we can use: it lacks " + missing, "library"};
    }
    return std::shared_ptr<const NrtLibrary>(std::move(library));
}

}  // namespace mainstay
