#include "runtime/base/invariant.h"

#include <cstdio>
#include <cstdlib>

namespace mainstay {

void invariant_failed(const char* condition, const char* file, int line, const char* what) {
    std::fprintf(stderr, "INVARIANT failed at %s:%d: %s (%s)\n", file, line, condition, what);
    std::fflush(stderr);
    std::abort();
}

}  // namespace mainstay
