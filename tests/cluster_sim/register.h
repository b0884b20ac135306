#pragma once
// The sessions of the simulated shard, as small as they can be and still show every loss, repeat and reorder: each is a
// register whose version counts its writes and whose hash covers their order. A write names its request, so that a
// client may repeat it. A plain value: a snapshot is its bytes.

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "runtime/base/digest.h"

namespace mainstay::cluster_sim {

constexpr size_t session_count = 4;
constexpr size_t requests_max = 512;

struct Write {
    uint16_t request = 0;
    uint8_t session = 0;
};

inline std::shared_ptr<const std::string> encode(const Write& write) {
    const char bytes[3] = {static_cast<char>(write.request & 0xff), static_cast<char>(write.request >> 8),
                           static_cast<char>(write.session)};
    return std::make_shared<const std::string>(bytes, sizeof bytes);
}

inline Write decode(const std::string& bytes) {
    Write write;
    write.request = static_cast<uint16_t>(static_cast<uint8_t>(bytes[0]) | (static_cast<uint8_t>(bytes[1]) << 8));
    write.session = static_cast<uint8_t>(bytes[2]);
    return write;
}

struct Registers {
    std::array<uint32_t, session_count> version{};
    std::array<uint64_t, session_count> hash{};
    std::array<uint16_t, requests_max> result{};  // version that the request's write made; 0: it was not applied

    /// False: the request was applied before, so somebody applied it twice.
    bool apply(const std::string& bytes) {
        const Write write = decode(bytes);
        if (result[write.request] != 0) return false;
        hash[write.session] = xxh64(bytes, hash[write.session]);
        result[write.request] = static_cast<uint16_t>(++version[write.session]);
        return true;
    }
    std::string snapshot() const { return {reinterpret_cast<const char*>(this), sizeof *this}; }
    static Registers restore(const std::string& bytes) {
        Registers out;
        if (bytes.size() == sizeof out) std::memcpy(&out, bytes.data(), sizeof out);
        return out;
    }
};

}  // namespace mainstay::cluster_sim
