#pragma once
// What two doors say to each other, as values and as Cap'n Proto bytes (schema/hop.capnp, docs/formats/hop.md). Pure.
// A peer is one of ours, but what it sent is judged all the same: unknown enumerators, damaged messages and header
// lines that would end a header are refused, and nothing is read beyond the bytes that came.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "gateway/exchange.h"

namespace mainstay {

/// A request that outlives its connection's buffer.
struct HopRequest {
    HttpMethod method = HttpMethod::other;
    bool head = false;
    std::string path, query, content_type, idempotency_key, timeout_ms, body;
    Principal principal;

    static HopRequest of(const HttpRequest& request);
    /// Views into this.
    HttpRequest view() const;
};

struct HopHead {
    uint16_t status = 200;
    std::string content_type, headers;
    bool stream = false;
    std::optional<ErrorCode> error;
    std::optional<ShardId> shard;
};
struct HopBody {
    std::string bytes;
};
using HopPart = std::variant<HopHead, HopBody>;

std::string encode_hop_request(const HopRequest& request);
std::string encode_hop_head(const HopHead& head);
std::string encode_hop_body(std::string_view bytes);

/// Errors: peer_refused.
Result<HopRequest> decode_hop_request(std::string_view bytes);
Result<HopPart> decode_hop_part(std::string_view bytes);

}  // namespace mainstay
