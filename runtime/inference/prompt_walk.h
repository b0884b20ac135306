#pragma once
// What of a prompt's items a model is told, in which order: the one choice that requests to upstreams and chat
// templates share. Calls without an answer and approvals are left out; an answer stands right after the step that asked
// for it, though outputs of a client's functions come as items of a later turn. A longer conversation only appends.
// Pure.

#include <string>
#include <vector>

#include "runtime/inference/text_device.h"

namespace mainstay {

struct AnsweredCall {
    const Item* call;
    const Item* output;  // the item that holds its output: the call itself, where a tool of ours answered it
};

class PromptVisitor {
  public:
    virtual ~PromptVisitor() = default;
    virtual void summary(const Item& item) = 0;
    /// `tokens`: what a token device sampled for the step that is this message, and nothing else; mostly null. Only
    /// what a model said here has them, never a text that came from outside.
    virtual void message(const Item& item, const StepTokens* tokens) = 0;
    /// The calls of one step that have an answer, at least one; `text` is what the assistant said with them, or null.
    /// `tokens` as above: null as well where a call of the step is left out.
    virtual void calls(const Item* text, const std::vector<AnsweredCall>& answered, const StepTokens* tokens) = 0;
};

void walk_prompt(const PromptItems& prompt, PromptVisitor& visitor);

/// What a tool said, or why it said nothing.
std::string output_text(const Item& item);
std::string summary_text(const Item& item);
/// JSON text; a model that wrote none meant an empty object.
std::string arguments_text(const Item& call);

}  // namespace mainstay
