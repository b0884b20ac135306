#pragma once
// A NeuronCore through libnrt: the Device contract over compiled graphs. Shapes are static, so it is always strict: one
// graph for each bucket, KV blocks allocated once on the device and changed in place by every graph (the same tensor is
// in the input and in the output set), small inputs written before each step, logits read after it. Tokens are chosen
// on the host from the logits, within the row's mask, by the sampler that every device uses.
//
// libnrt is process-global and owns its cores until the process ends. The daemon therefore never opens this device
// itself: a worker does (nrt_worker.h), and the daemon has a NrtProcessDevice (nrt_process.h). Owned by one thread.

#include <memory>
#include <string>

#include "runtime/inference/device.h"
#include "runtime/inference/nrt_library.h"

namespace mainstay {

/// The library between nrt_init and nrt_close, which the last owner calls. One in a process.
class NrtRuntime {
  public:
    /// Errors: device_absent where no core is to be seen or the runtime does not start.
    static Result<std::shared_ptr<const NrtRuntime>> start(std::shared_ptr<const NrtLibrary> library);
    ~NrtRuntime();
    NrtRuntime(const NrtRuntime&) = delete;
    NrtRuntime& operator=(const NrtRuntime&) = delete;

    const NrtFunctions& functions() const { return library_->functions(); }

  private:
    explicit NrtRuntime(std::shared_ptr<const NrtLibrary> library) : library_(std::move(library)) {}
    std::shared_ptr<const NrtLibrary> library_;
};

/// Loads every graph of the folder (docs/formats/nrt_model.md) onto the first visible core and allocates its tensors.
/// Errors: model_not_loadable, naming key, file or tensor; device_absent where the core is taken.
Result<std::unique_ptr<Device>> make_nrt_device(std::shared_ptr<const NrtRuntime> runtime,
                                                const std::string& directory);

}  // namespace mainstay
