#include "runtime/inference/prompt_walk.h"

#include <deque>
#include <string_view>
#include <unordered_map>

namespace mainstay {
namespace {

using Items = std::vector<ItemPtr>;

bool is_call(const Item& item) { return item.kind == ItemKind::tool_call || item.kind == ItemKind::function_call; }

size_t end_of_calls(const Items& items, size_t from) {
    size_t end = from;
    while (end < items.size() && is_call(*items[end]) && items[end]->step == items[from]->step) ++end;
    return end;
}

/// An answer that was cut by its bound on tokens is part of the conversation: the user has seen it and may ask to go
/// on.
bool is_shown(const Item& message) {
    return message.status == ItemStatus::completed ||
           (message.status == ItemStatus::incomplete && message.role == Role::assistant);
}

class Walk {
  public:
    Walk(const PromptItems& prompt, PromptVisitor& visitor) : prompt_(prompt), visitor_(visitor) {}

    void run() {
        each_turn([&](const Items& items) {
            for (const auto& item : items)
                if (item->kind == ItemKind::function_call_output) outputs_[item->call_id].push_back(item.get());
        });
        each_turn([&](const Items& items) { visit(items); });
    }

  private:
    template <class Visit>
    void each_turn(Visit&& visit) {
        for (const auto& turn : prompt_.settled) visit(*turn);
        visit(prompt_.open);
    }

    void visit(const Items& items) {
        for (size_t i = 0; i < items.size();) {
            const Item& item = *items[i];
            if (is_call(item)) {
                i = visit_calls(nullptr, items, i);
                continue;
            }
            ++i;
            if (item.kind == ItemKind::compaction) {
                visitor_.summary(item);
            } else if (item.kind == ItemKind::message && is_shown(item)) {
                // Text and calls of one step are one message of the assistant. Tokens stand in a step's first item, so
                // a call that has them follows a message that came from outside.
                const bool calls = item.role == Role::assistant && i < items.size() && is_call(*items[i]) &&
                                   items[i]->step == item.step && !items[i]->tokens;
                if (calls)
                    i = visit_calls(&item, items, i);
                else
                    visitor_.message(item, item.tokens.get());
            }
        }
    }

    /// The calls of one step; returns where they end. An upstream refuses a call without an answer.
    size_t visit_calls(const Item* text, const Items& items, size_t from) {
        const size_t end = end_of_calls(items, from);
        std::vector<AnsweredCall> answered;
        for (size_t i = from; i < end; ++i)
            if (const Item* output = answer_of(*items[i])) answered.push_back({items[i].get(), output});
        const bool whole = answered.size() == end - from;
        if (!answered.empty())
            visitor_.calls(text, answered, whole ? (text ? *text : *items[from]).tokens.get() : nullptr);
        else if (text)
            visitor_.message(*text, nullptr);
        return end;
    }

    /// Upstreams may use one id twice in a conversation, so outputs are given out in order.
    const Item* answer_of(const Item& call) {
        if (call.kind == ItemKind::tool_call)
            return call.status == ItemStatus::in_progress || call.status == ItemStatus::incomplete ? nullptr : &call;
        const auto found = outputs_.find(call.call_id);
        if (found == outputs_.end() || found->second.empty()) return nullptr;
        const Item* output = found->second.front();
        found->second.pop_front();
        return output;
    }

    const PromptItems& prompt_;
    PromptVisitor& visitor_;
    std::unordered_map<std::string_view, std::deque<const Item*>> outputs_;  // by call id, oldest first
};

}  // namespace

void walk_prompt(const PromptItems& prompt, PromptVisitor& visitor) { Walk(prompt, visitor).run(); }

std::string output_text(const Item& item) {
    switch (item.status) {
        case ItemStatus::failed: return item.text.empty() ? "Error: " + item.error : item.text;
        case ItemStatus::unknown:
            return "The outcome of this call is unknown: it may or may not have taken effect." +
                   (item.text.empty() ? std::string() : "\n" + item.text);
        default: return item.text;
    }
}

std::string summary_text(const Item& item) { return "Summary of the earlier conversation:\n" + item.text; }

std::string arguments_text(const Item& call) { return call.arguments.empty() ? "{}" : call.arguments; }

}  // namespace mainstay
