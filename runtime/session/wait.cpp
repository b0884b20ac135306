#include "runtime/session/wait.h"

#include <algorithm>

namespace mainstay {

const OpenWait* Waits::find(uint32_t wait) const {
    auto at = std::find_if(waits_.begin(), waits_.end(), [wait](const OpenWait& open) { return open.wait == wait; });
    return at == waits_.end() ? nullptr : &*at;
}

bool Waits::open(const WaitOpened& event, TimeMs at) {
    if (find(event.wait)) return false;
    waits_.push_back(OpenWait{event.wait, event.kind, at, event.due, event.call, event.subject});
    return true;
}

bool Waits::close(uint32_t wait) {
    return std::erase_if(waits_, [wait](const OpenWait& open) { return open.wait == wait; }) == 1;
}

TimeMs Waits::earliest() const {
    TimeMs first = 0;
    for (const OpenWait& wait : waits_)
        if (wait.due != 0 && (first == 0 || wait.due < first)) first = wait.due;
    return first;
}

WaitOutcome outcome_when_due(WaitKind kind) {
    return kind == WaitKind::timer ? WaitOutcome::fired : WaitOutcome::expired;
}

bool outcome_allowed(WaitKind kind, WaitOutcome outcome) {
    switch (kind) {
        case WaitKind::timer: return false;  // only time fires a timer
        case WaitKind::approval: return outcome == WaitOutcome::approved || outcome == WaitOutcome::denied;
        case WaitKind::signal:
        case WaitKind::child: return outcome == WaitOutcome::signalled;
    }
    return false;
}

ToolReceipt receipt_of(const OpenWait& wait, WaitOutcome outcome, const std::string& payload, TimeMs at) {
    const TimeMs waited = at > wait.opened_at ? at - wait.opened_at : 0;
    ToolReceipt receipt;
    receipt.call = wait.call;
    receipt.duration_micros = waited * 1000;
    switch (outcome) {
        case WaitOutcome::fired: receipt.output = "slept " + std::to_string(waited) + " ms"; break;
        case WaitOutcome::approved: receipt.output = payload.empty() ? "approved" : payload; break;
        case WaitOutcome::signalled: receipt.output = payload; break;
        case WaitOutcome::denied:
            receipt.status = ItemStatus::failed;
            receipt.error = payload.empty() ? "denied" : "denied: " + payload;
            break;
        case WaitOutcome::expired:
            receipt.status = ItemStatus::failed;
            receipt.error = "nobody answered in time";
            break;
        case WaitOutcome::cancelled:
            receipt.status = ItemStatus::failed;
            receipt.error = "cancelled";
            break;
    }
    return receipt;
}

}  // namespace mainstay
