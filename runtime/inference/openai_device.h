#pragma once
// Model steps from any server that speaks OpenAI's Chat Completions. One submit is one HTTP request, never two: an
// error goes up with its class and the supervisor decides. The key is read from the environment for each request and
// stands in no message, log or error. A session's requests go to one address and carry a digest of its id, so that
// upstreams and what balances their load find the cached prefix (upstream_choice.h). One device serves every such
// model; outcomes come on the HTTP client's thread, refusals that need no upstream (no key, a deadline that has passed)
// on the submitting one. Destroying the device cancels its steps and waits for a call to a sink that has begun (so
// never destroy it from a sink).

#include <memory>

#include "runtime/base/http_client.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

class OpenAiDevice final : public TextDevice {
  public:
    /// `stall_timeout_ms`: a step ends where its upstream is silent for so long.
    explicit OpenAiDevice(std::shared_ptr<HttpClient> http,
                          uint32_t stall_timeout_ms = limits::upstream_stall_timeout_ms);
    ~OpenAiDevice() override;
    OpenAiDevice(const OpenAiDevice&) = delete;
    OpenAiDevice& operator=(const OpenAiDevice&) = delete;

    /// Whether a model's addresses can be called.
    static Result<void> check(const ModelSpec& model);

    void submit(ModelRequest request, std::shared_ptr<ModelSink> sink) override;
    /// A call to the sink that has already begun may still be under way when this returns; no further one follows.
    void cancel(uint64_t request_id) override;

  private:
    struct Shared;
    class Step;

    const std::shared_ptr<HttpClient> http_;
    const uint32_t stall_timeout_ms_;
    const std::shared_ptr<Shared> shared_;  // with the steps in flight
};

}  // namespace mainstay
