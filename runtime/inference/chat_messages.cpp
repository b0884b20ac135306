#include "runtime/inference/chat_messages.h"

#include "runtime/inference/chat_request.h"
#include "runtime/inference/prompt_walk.h"

namespace mainstay {

namespace {

using Speaker = ChatMessage::Speaker;

std::string text_of(const Item& item) {
    std::string text = item.text;
    for (const auto& part : item.more_parts) {
        text += '\n';
        text += part;
    }
    return text;
}

Speaker speaker_of(Role role) {
    switch (role) {
        case Role::user: return Speaker::user;
        case Role::assistant: return Speaker::assistant;
        case Role::system:
        case Role::developer: break;
    }
    return Speaker::system;
}

class Collector final : public PromptVisitor {
  public:
    explicit Collector(const ModelRequest& request) : request_(request) {
        if (!request.instructions.empty())
            messages.push_back({Speaker::system, request.instructions, {}, nullptr, true});
    }

    void summary(const Item& item) override { messages.push_back({Speaker::system, summary_text(item), {}}); }
    void message(const Item& item, const StepTokens* tokens) override {
        messages.push_back({speaker_of(item.role), text_of(item), {}, item.role == Role::assistant ? tokens : nullptr});
    }
    void calls(const Item* text, const std::vector<AnsweredCall>& answered, const StepTokens* tokens) override {
        ChatMessage message{Speaker::assistant, text ? text_of(*text) : std::string(), {}, tokens};
        for (const auto& [call, output] : answered)
            message.calls.push_back(
                {offered_name(request_.tools, call->server_label, call->name), arguments_text(*call)});
        messages.push_back(std::move(message));
        for (const auto& [call, output] : answered) messages.push_back({Speaker::tool, output_text(*output), {}});
    }

    std::vector<ChatMessage> messages;

  private:
    const ModelRequest& request_;
};

}  // namespace

std::vector<ChatMessage> chat_messages(const ModelRequest& request) {
    Collector collector(request);
    walk_prompt(request.prompt, collector);
    return std::move(collector.messages);
}

}  // namespace mainstay
