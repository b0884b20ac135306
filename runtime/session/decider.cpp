#include "runtime/session/decider.h"

#include <algorithm>

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"

namespace mainstay {
namespace {

template <class T, class... Ts>
constexpr bool one_of = (std::is_same_v<T, Ts> || ...);

// Results and the passing of time come from the runtime itself: too late for the session, they are ignored.
template <class T>
constexpr bool from_the_runtime =
    one_of<T, ModelStepDone, ModelStepFailed, ModelStepPaused, ToolStepDone, ToolFailed, RetryVerdict, Tick, Recover>;

}  // namespace

std::string clip(std::string_view text, size_t bytes_max) {
    return std::string(text.substr(0, utf8_floor(text, bytes_max)));
}

Decider::Decider(const Session& session, const CommandContext& context)
    : session_(session), context_(context), now_(std::max(context.now, session.now_)) {}

bool Decider::admits(const CommandBody& body) {
    return std::visit(
        [&](const auto& command) {
            using C = std::decay_t<decltype(command)>;
            if constexpr (from_the_runtime<C>) return session_.exists();
            if constexpr (std::is_same_v<C, DeleteSession>)
                if (session_.deleted_) return false;
            const bool creates = one_of<C, CreateSession, SubmitInput>;
            if (session_.deleted_ || (!session_.exists_ && !creates)) {
                refuse(ErrorCode::session_not_found, "no such session");
                return false;
            }
            if (context_.deadline != 0 && now_ > context_.deadline) {
                refuse_noted(ErrorCode::request_timeout, "the deadline of the request has passed");
                return false;
            }
            return true;
        },
        body);
}

void Decider::refuse(ErrorCode code, std::string message, std::string param) {
    decided_.refused = Error{code, std::move(message), std::move(param)};
}

void Decider::refuse_noted(ErrorCode code, std::string message) {
    refuse(code, message);
    const auto noted = noted_of(error_name(code));
    INVARIANT(noted, "a noted refusal has a bit");
    if (!session_.exists_) return;
    const TurnProgress* turn = session_.open_.empty() ? nullptr : &session_.open_.front();
    if ((turn ? turn->noted : session_.noted_) & static_cast<uint32_t>(*noted)) return;
    if (turn) begin(*turn);
    emit(Decision{std::string(error_name(code)), clip(context_.principal, limits::name_bytes_max), std::move(message)});
}

void Decider::begin(TurnNo turn) { turn_ = turn; }

void Decider::begin(const TurnProgress& turn) {
    turn_ = turn.turn.no;
    if (decided_.turn.value == 0 && !decided_.refused) decided_.turn = turn_;
    outstanding_ = turn.calls.outstanding();
    turn_bytes_ = turn.bytes;
    model_steps_ = turn.turn.model_steps;
    output_tokens_ = turn.turn.usage.output_tokens;
    client_calls_ = turn.calls.outstanding() != 0 && turn.client_calls;
    limits_ = turn.turn.limits;
}

const TurnProgress* Decider::running(TurnNo turn) const {
    if (session_.open_.empty() || session_.open_.front().turn.no != turn) return nullptr;
    return &session_.open_.front();
}

Decided Decider::take() {
    if (!events_.empty()) {
        decided_.batch.emplace();
        decided_.batch->at = now_;
        decided_.batch->turn = turn_;
        decided_.batch->events = std::move(events_);
    }
    return std::move(decided_);
}

}  // namespace mainstay
