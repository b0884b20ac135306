#include "runtime/session/event.h"

#include "runtime/base/invariant.h"

namespace mainstay {

std::string_view to_word(TurnStatus status) {
    switch (status) {
        case TurnStatus::queued: return "queued";
        case TurnStatus::in_progress: return "in_progress";
        case TurnStatus::completed: return "completed";
        case TurnStatus::failed: return "failed";
        case TurnStatus::incomplete: return "incomplete";
        case TurnStatus::cancelled: return "cancelled";
    }
    INVARIANT(false, "every status has a word");
}

std::string_view event_name(const Event& event) {
    static constexpr std::string_view names[] = {
        "SessionCreated", "InputAccepted",  "ModelStepSettled", "ToolIntent",      "ToolReceipt",
        "StepFailed",     "RetryScheduled", "TurnSettled",      "CancelRequested", "WaitOpened",
        "WaitResolved",   "Decision",       "MemorySet",        "UnknownResolved", "ItemsAdded",
        "MetadataSet",    "SessionDeleted", "StreamReserved",   "Compacted",       "Forked"};
    static_assert(std::size(names) == std::variant_size_v<Event>);
    return names[event.index()];
}

}  // namespace mainstay
