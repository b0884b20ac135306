#include "runtime/inference/chat_messages.h"

#include <deque>
#include <unordered_map>

#include "runtime/inference/chat_request.h"

namespace mainstay {

namespace {

using Speaker = ChatMessage::Speaker;

bool is_call(const Item& item) { return item.kind == ItemKind::tool_call || item.kind == ItemKind::function_call; }

std::string text_of(const Item& item) {
    std::string text = item.text;
    for (const auto& part : item.more_parts) {
        text += '\n';
        text += part;
    }
    return text;
}

std::string output_of(const Item& item) {
    if (item.status == ItemStatus::failed) return item.text.empty() ? "Error: " + item.error : item.text;
    if (item.status == ItemStatus::unknown)
        return "The outcome of this call is unknown: it may or may not have taken effect." +
               (item.text.empty() ? std::string() : "\n" + item.text);
    return item.text;
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

class Collector {
  public:
    explicit Collector(const ModelRequest& request) : request_(request) {}

    std::vector<ChatMessage> collect() {
        each_turn([&](const std::vector<ItemPtr>& items) {
            for (const auto& item : items)
                if (item->kind == ItemKind::function_call_output) outputs_[item->call_id].push_back(item.get());
        });
        if (!request_.instructions.empty()) messages_.push_back({Speaker::system, request_.instructions, {}});
        each_turn([&](const std::vector<ItemPtr>& items) { add_turn(items); });
        return std::move(messages_);
    }

  private:
    template <class Visit>
    void each_turn(Visit&& visit) {
        for (const auto& turn : request_.prompt.settled) visit(*turn);
        visit(request_.prompt.open);
    }

    void add_turn(const std::vector<ItemPtr>& items) {
        for (size_t i = 0; i < items.size();) {
            const Item& item = *items[i];
            if (is_call(item)) {
                const size_t end = end_of_calls(items, i);
                add_calls({}, items, i, end);
                i = end;
                continue;
            }
            ++i;
            if (item.kind == ItemKind::compaction) {
                messages_.push_back({Speaker::system, "Summary of the earlier conversation:\n" + item.text, {}});
            } else if (item.kind == ItemKind::message && item.status == ItemStatus::completed) {
                const bool calls = item.role == Role::assistant && i < items.size() && is_call(*items[i]) &&
                                   items[i]->step == item.step;
                const size_t end = calls ? end_of_calls(items, i) : i;
                if (!calls || !add_calls(text_of(item), items, i, end))
                    messages_.push_back({speaker_of(item.role), text_of(item), {}});
                i = end;
            }
        }
    }

    static size_t end_of_calls(const std::vector<ItemPtr>& items, size_t from) {
        size_t end = from;
        while (end < items.size() && is_call(*items[end]) && items[end]->step == items[from]->step) ++end;
        return end;
    }

    /// False where no call of the step has an answer.
    bool add_calls(std::string text, const std::vector<ItemPtr>& items, size_t from, size_t end) {
        ChatMessage message{Speaker::assistant, std::move(text), {}};
        std::vector<std::string> answers;
        for (size_t i = from; i < end; ++i) {
            const Item& call = *items[i];
            const Item* output = answer_of(call);
            if (!output) continue;
            message.calls.push_back({offered_name(request_.tools, call.server_label, call.name),
                                     call.arguments.empty() ? "{}" : call.arguments});
            answers.push_back(output_of(*output));
        }
        if (answers.empty()) return false;
        messages_.push_back(std::move(message));
        for (auto& answer : answers) messages_.push_back({Speaker::tool, std::move(answer), {}});
        return true;
    }

    /// One id may be used twice in a conversation, so outputs are given out in order.
    const Item* answer_of(const Item& call) {
        if (call.kind == ItemKind::tool_call)
            return call.status == ItemStatus::in_progress || call.status == ItemStatus::incomplete ? nullptr : &call;
        const auto found = outputs_.find(call.call_id);
        if (found == outputs_.end() || found->second.empty()) return nullptr;
        const Item* output = found->second.front();
        found->second.pop_front();
        return output;
    }

    const ModelRequest& request_;
    std::vector<ChatMessage> messages_;
    std::unordered_map<std::string_view, std::deque<const Item*>> outputs_;
};

}  // namespace

std::vector<ChatMessage> chat_messages(const ModelRequest& request) { return Collector(request).collect(); }

}  // namespace mainstay
