#pragma once
// One model step on a device of our own, from a request to tokens and from tokens to a result: the prompt rendered and
// counted, which tokens may come (a grammar where a call or a schema is required), what of the text may be shown, and
// the outcome. The scheduler knows tokens only, the session texts only; this stands between. Pure; one owner.
//
// The seed follows from the step's idempotency key, so a step that is run again after a crash says the same; a further
// attempt after a failure has another one, or the model would make the same mistake again. A step that was paused goes
// on from the tokens that it had: the seed and a token's position decide what comes, not where it is computed.

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "runtime/inference/chat_template.h"
#include "runtime/inference/generation_options.h"
#include "runtime/inference/scheduler.h"
#include "runtime/inference/text_device.h"
#include "runtime/inference/tool_grammar.h"

namespace mainstay {

/// What every step of a model shares. Immutable.
struct GenerationModel {
    std::shared_ptr<const ChatTemplate> chat_template;
    std::shared_ptr<const GrammarVocabulary> vocabulary;
    std::vector<TokenId> stops;  // any of them ends a step
    uint32_t context_max = 0;    // tokens, prompt and answer together
};

class Generation {
  public:
    /// Fails with class context_overflow (tokens and limit are told: a quarter of the context, or as much as the
    /// request may generate if that is less, is kept free for the answer) or invalid. The request's `deadline` is wall
    /// time; `now_wall` and `now` are the same moment.
    static std::variant<Generation, ModelError> begin(const ModelRequest& request, const GenerationModel& model,
                                                      TimeMs now_wall, TimeUs now);

    /// For Scheduler::submit, once.
    TokenRequest take_request() { return std::move(request_); }

    /// What the request's `resume` already shows, once: it is no token of take().
    std::string take_resumed_text() { return std::move(resumed_text_); }

    /// A token was sampled; returns text that may be shown now.
    std::string take(TokenId token);
    /// What was said so far, that of `resume` included: for another device to go on from.
    StepTokens so_far() const;
    /// A stop text was met: nothing further is wanted (Scheduler::stop).
    bool stopped() const { return stopped_; }
    bool masked() const { return cursor_ != nullptr; }
    /// StepRow::allowed of the next token; masked() only.
    const std::vector<uint64_t>& allowed() { return cursor_->allowed(); }

    /// The outcome, once. `tail` is text that was held back and belongs to the result.
    std::variant<ModelResult, ModelError> finish(const SequenceEnded& ended, bool simulated, std::string& tail);

  private:
    Generation() = default;
    /// False, and what reads the answer is spoilt: they are not what this step could have said and gone on from.
    bool resume(const StepTokens& tokens);

    std::shared_ptr<const ChatTemplate> template_;
    std::string model_name_;
    TokenRequest request_;
    std::unique_ptr<GrammarCursor> cursor_;
    std::unique_ptr<ReplyReader> reader_;
    std::vector<TokenId> taken_;  // all that was said
    size_t resumed_ = 0;          // of it: before this request
    std::string resumed_text_;
    bool stopped_ = false;
};

/// What a scheduler's refusal means to a session.
ModelError to_model_error(const Refusal& refusal);

}  // namespace mainstay
