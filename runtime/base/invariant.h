#pragma once
// A bug, as opposed to bad input or a failing disk: the check stays in release builds and aborts the node, because the
// journal recovers from a crash and from nothing else. User input never trips one.

namespace mainstay {

[[noreturn]] void invariant_failed(const char* condition, const char* file, int line, const char* what);

}  // namespace mainstay

#define INVARIANT(condition, what) \
    (static_cast<bool>(condition) ? void(0) : ::mainstay::invariant_failed(#condition, __FILE__, __LINE__, what))
