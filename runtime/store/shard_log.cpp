#include "runtime/store/shard_log.h"

#include "runtime/base/digest.h"

namespace mainstay {

uint64_t chain_of(uint64_t previous, const LogEntry& entry) {
    char head[17];
    for (size_t i = 0; i < 8; ++i) {
        head[i] = static_cast<char>(entry.epoch.value >> (8 * i));
        head[8 + i] = static_cast<char>(entry.index >> (8 * i));
    }
    head[16] = static_cast<char>(entry.kind);
    return xxh64({head, sizeof head}, xxh64(entry.bytes(), previous));
}

}  // namespace mainstay
