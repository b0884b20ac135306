// Commands about the session and what goes into it.

#include <algorithm>

#include "runtime/base/limits.h"
#include "runtime/session/decider.h"

namespace mainstay {
namespace {

std::string bound(std::string_view what, size_t max) { return std::string(what) + ": at most " + std::to_string(max); }

}  // namespace

bool Decider::items_fit(const std::vector<ItemPtr>& items) {
    if (items.size() > limits::input_items_max) {
        refuse(ErrorCode::invalid_request, bound("items of one request", limits::input_items_max), "input");
        return false;
    }
    size_t bytes = 0, parts = 0;
    for (const ItemPtr& item : items) {
        INVARIANT(!item->tokens, "only what a model said here has tokens");
        bytes += item->bytes();
        parts += item->more_parts.size();
    }
    if (parts > limits::input_parts_max) {  // empty ones have no bytes
        refuse(ErrorCode::invalid_request, bound("parts of one request's items", limits::input_parts_max), "input");
        return false;
    }
    if (bytes <= limits::input_bytes_max) return true;
    refuse(ErrorCode::body_too_large, bound("bytes of one request's items", limits::input_bytes_max), "input");
    return false;
}

void Decider::decide(const CreateSession& command) {
    if (session_.exists_) return refuse_noted(ErrorCode::conflict, "the session exists");
    if (!items_fit(command.items)) return;
    if (command.created.metadata.size() > limits::options_bytes_max)
        return refuse(ErrorCode::invalid_request, bound("bytes of metadata", limits::options_bytes_max), "metadata");
    SessionCreated created = command.created;
    created.tenant = session_.key_.tenant;
    const TurnNo base = created.parent.valid() ? created.parent_turn : TurnNo{0};
    if (!command.items.empty()) begin(TurnNo{base.value + 1});
    emit(std::move(created));
    if (command.items.empty()) return;
    emit(ItemsAdded{command.items, context_.principal});
    decided_.settled.push_back(turn_);
}

// False: the key decides the command, by repetition or refusal.
bool Decider::key_admits(const SubmitInput& command) {
    if (!context_.key) return true;
    std::optional<KnownKey> known = session_.find_key(*context_.key, now_);
    if (!known && command.known_key && now_ < command.known_key->at + limits::idempotency_key_lifetime_ms)
        known = command.known_key;
    if (!known) return true;
    if (known->request_digest != context_.request_digest) {
        refuse_noted(ErrorCode::idempotency_key_reused, "the idempotency key was used for another request");
        return false;
    }
    decided_.repeated = true;
    decided_.turn = known->turn;
    return false;
}

void Decider::decide(const SubmitInput& command) {
    if (!session_.exists_ && !command.create) return refuse(ErrorCode::session_not_found, "no such session");
    if (!key_admits(command) || !items_fit(command.input.items)) return;
    // To everybody but a repetition it is gone as soon as it is idle, even while it is kept for its key.
    if (session_.exists_ && session_.ephemeral() && session_.last_turn_ > session_.turn_base_)
        return command.after_turn
                   ? refuse(ErrorCode::previous_response_not_found, "the previous response was not stored")
                   : refuse(ErrorCode::session_not_found, "no such session");
    if (command.input.options.size() > limits::options_bytes_max)
        return refuse(ErrorCode::invalid_request, bound("bytes of options", limits::options_bytes_max));
    const bool create = !session_.exists_;
    if (create && command.create->metadata.size() > limits::options_bytes_max)
        return refuse(ErrorCode::invalid_request, bound("bytes of metadata", limits::options_bytes_max), "metadata");

    TurnNo last = session_.last_turn_;
    if (create) last = command.create->parent.valid() ? command.create->parent_turn : TurnNo{0};
    // No decision record: the shell forks, and the fork is the record.
    if (command.after_turn && (*command.after_turn != last || !session_.open_.empty()))
        return refuse(ErrorCode::conflict, "the previous response is not the idle tip of the session");
    if (session_.open_.size() > limits::input_queue_max)
        return refuse_noted(ErrorCode::input_queue_full, bound("inputs behind the open turn", limits::input_queue_max));
    if (context_.key && session_.keys_.full())
        return refuse_noted(ErrorCode::apply_backlog_full,
                            bound("idempotency keys not yet in the store", limits::recent_keys_max));

    begin(TurnNo{last.value + 1});
    decided_.turn = turn_;
    if (create) {
        SessionCreated created = *command.create;
        created.tenant = session_.key_.tenant;
        emit(std::move(created));
        // A fork's prompts begin where its parent's do: they share what is cached of them.
        if (command.inherited && command.inherited->up_to.value != 0 && command.inherited->up_to < last)
            emit(*command.inherited);
    }
    keep_window();
    InputAccepted input = command.input;
    input.key = context_.key;
    input.request_digest = context_.request_digest;
    if (input.principal.empty()) input.principal = context_.principal;
    emit(std::move(input));
    if (create && command.placed) emit(*command.placed);
}

void Decider::decide(const AddItems& command) {
    if (!session_.open_.empty()) return refuse_noted(ErrorCode::session_busy, "a turn of the session is open");
    if (!items_fit(command.items)) return;
    begin(TurnNo{session_.last_turn_.value + 1});
    decided_.turn = turn_;
    keep_window();
    emit(ItemsAdded{command.items, context_.principal});
    decided_.settled.push_back(turn_);
}

// Where prompts begin is recorded when a turn opens, before its first prompt: whoever makes the session again begins
// them at the same turn. The window moves half a window at a time, so this is rare.
void Decider::keep_window() {
    if (!session_.exists_ || !session_.window_complete_) return;
    const TurnNo left_out = session_.left_out();
    if (left_out > session_.compacted_to_) emit(Compacted{left_out, session_.summary_});
}

void Decider::decide(const SetMetadata& command) {
    if (command.metadata.size() > limits::options_bytes_max)
        return refuse(ErrorCode::invalid_request, bound("bytes of metadata", limits::options_bytes_max), "metadata");
    emit(MetadataSet{command.metadata});
}

void Decider::decide(const DeleteSession&) { emit(SessionDeleted{context_.principal}); }

void Decider::decide(const ForkSession& command) {
    if (command.at > session_.last_turn_) return refuse(ErrorCode::response_not_found, "the session has no such turn");
    // A turn that was cancelled while it waited may be settled before older ones: what a fork shares must not change.
    if (!session_.open_.empty() && command.at >= session_.open_.front().turn.no)
        return refuse_noted(ErrorCode::conflict, "the turn or one before it is not settled yet");
    // A request that is repeated before its child is there names the same child again.
    if (std::find(session_.recent_forks_.begin(), session_.recent_forks_.end(), command.child) !=
        session_.recent_forks_.end()) {
        decided_.repeated = true;
        return;
    }
    emit(Forked{command.child, command.at});
}

}  // namespace mainstay
