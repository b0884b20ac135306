#pragma once
// The answer of a Chat Completions upstream: the pieces of a stream put together, or one whole JSON answer, or an
// error answer put into a class. Pure; owned by one step on one thread. Everything that an upstream may send too much
// of is bounded, and nothing that it sends is trusted to have the right shape.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/http_client.h"
#include "runtime/inference/model_error.h"
#include "runtime/inference/text_device.h"

namespace mainstay {

class ChatReply {
  public:
    /// `call_seed` makes the ids of calls to which the upstream gave none; stable over attempts of a step.
    explicit ChatReply(uint64_t call_seed) : call_seed_(call_seed) {}

    /// The data of one event of the stream; `text` becomes what it adds to the visible text. An error is final.
    std::optional<ModelError> take_event(std::string_view data, std::string& text);
    /// A whole answer, where the upstream did not stream.
    std::optional<ModelError> take_whole(std::string_view body, std::string& text);
    /// True after [DONE], or after a whole answer: what follows does not matter.
    bool finished() const { return finished_; }
    /// The outcome, once. Before [DONE] the stream was cut: `lost` without a finish_reason, else `protocol`.
    std::variant<ModelResult, ModelError> finish();

  private:
    struct Reader;
    friend struct Reader;

    const uint64_t call_seed_;
    ModelResult result_;
    std::vector<int64_t> call_indexes_;  // the upstream's number of each call of result_
    bool finished_ = false;
};

/// Replaces every occurrence of a secret (nothing where it is empty).
void cut_secret(std::string& text, std::string_view secret);
/// What an answer with a status other than 200 means. `secret` is cut out of the upstream's own words. Rules:
/// docs/MODELS.md.
ModelError classify_upstream_error(int status, const std::vector<HttpHeader>& headers, std::string_view body,
                                   TimeMs now, std::string_view secret);
/// Milliseconds that an answer's headers ask to wait, 0 where they say nothing that can be read; at most
/// upstream_retry_after_ms_max.
uint32_t retry_after_ms(const std::vector<HttpHeader>& headers, TimeMs now);
/// What a request that got no answer, or only a part, means. `answering`: the head of an answer had come.
ModelError classify_transport_error(const HttpError& error, bool answering);

}  // namespace mainstay
