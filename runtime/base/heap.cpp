#include "runtime/base/heap.h"

// mimalloc's, where it is linked (mainstayd); null in tests and under sanitizers.
extern "C" __attribute__((weak)) void mi_collect(bool force);

namespace mainstay {

void give_back_memory() {
    if (mi_collect != nullptr) mi_collect(true);
}

}  // namespace mainstay
