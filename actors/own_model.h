#pragma once
// A model on devices of our own, as the text device that sessions know: in front of its token scheduler. Prompts are
// rendered and counted on the submitting thread once the model is loaded. Any thread; stop() before the actor system
// ends.

#include <caf/actor_system.hpp>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "actors/token_scheduler.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

class OwnModel final : public TextDevice {
  public:
    /// Starts to load at once.
    OwnModel(caf::actor_system& system, TokenSchedulerConfig config);
    ~OwnModel() override;
    OwnModel(const OwnModel&) = delete;
    OwnModel& operator=(const OwnModel&) = delete;

    void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) override;
    /// A call to the sink that has already begun may still be under way when this returns; no further one follows.
    void cancel(uint64_t request_id) override;
    bool pause(uint64_t request_id) override;
    void session_idle(const SessionKey& session) override;
    void session_deleted(const SessionKey& session) override;

    void read(ReplyTo<ModelInfo> done);
    void drain(uint32_t worker, bool on, ReplyTo<ModelInfo> done);
    // Blocks to and from other nodes; answered from the scheduler's thread.
    void list_kv(ListKvPtr list);
    void export_kv(ExportKvPtr wanted);
    void take_kv(TakeKvPtr take);
    void count_kv(const KvTransferFigures& more);
    const std::string& name() const { return name_; }
    /// Ends its actors; what was in flight fails as lost. Idempotent.
    void stop();

  private:
    class Settled;
    caf::actor scheduler() const;

    const std::string name_;
    const std::shared_ptr<PublishedModel> published_;
    const Clock& clock_;
    struct Calls {
        std::mutex mutex;
        std::unordered_map<uint64_t, ModelCallPtr> open;
    };
    const std::shared_ptr<Calls> calls_;
    caf::actor scheduler_;  // under the calls' lock; null: stopped
};

}  // namespace mainstay
