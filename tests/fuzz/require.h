#pragma once
// What a fuzz target promises of what it was given: the sanitizers' runtime reports an abort as a finding.

#include <cstdlib>

inline void require(bool condition) {
    if (!condition) std::abort();
}
