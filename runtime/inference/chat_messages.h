#pragma once
// A prompt's items as the messages that a chat template speaks of: who said what, which calls were made, what they
// gave. Which of them, and in which order, is prompt_walk's choice. Pure; a longer conversation only appends.

#include <string>
#include <vector>

#include "runtime/inference/text_device.h"

namespace mainstay {

struct ChatCall {
    std::string name;
    std::string arguments;  // JSON text as the model wrote it
};

struct ChatMessage {
    enum class Speaker : uint8_t { system, user, assistant, tool };
    Speaker speaker = Speaker::user;
    std::string text;             // of a tool: its result
    std::vector<ChatCall> calls;  // of the assistant
    /// What a token device sampled for this message of the assistant: a template that they fit shows these instead of
    /// the text. Borrowed of the request's items; null: the text counts.
    const StepTokens* tokens = nullptr;
    bool definition = false;  // the agent's instructions, which nobody said
};

/// The instructions, where there are any, come first as a message of the system. `request` must outlive the messages.
std::vector<ChatMessage> chat_messages(const ModelRequest& request);

}  // namespace mainstay
