#pragma once
// One frame of a link as a plain struct, and what may be in it. A frame is checked as a whole before anything is done
// with it: after decode_frame every field is within its bound. Pure functions, any thread.

#include <cstdint>
#include <string>
#include <string_view>

#include "cluster/coordinator.h"
#include "runtime/base/result.h"
#include "schema/cluster.capnp.h"

namespace mainstay {

/// Of frames and of what is in them. Both ends must have the same.
constexpr uint32_t link_format = 1;
/// Of an error's message and param each; more is cut off.
constexpr size_t link_error_text_max = 2048;

enum class FrameType : uint8_t { ping, replication, request, more, cancel, part, end };

/// Each end of a connection takes its own types: the end that was dialled, and the end that dialled.
enum class LinkEnd : uint8_t { accepted, dialled };
bool takes(LinkEnd end, FrameType type);

struct LinkFrame {
    ClusterUuid cluster{};
    uint64_t incarnation = 0;  // of the sender
    FrameType type = FrameType::ping;
    uint64_t call = 0;       // 0: of no call
    uint8_t kind = 0;        // request; may be unknown here
    uint32_t total = 0;      // request, part: bytes of the whole
    std::string_view bytes;  // replication, request, more, part; into what was read
    bool failed = false;     // end
    Error failure;
};

/// peer_refused where it is no frame that this end takes. `bytes` lives as long as what `from` reads.
Result<LinkFrame> decode_frame(wire::Frame::Reader from, LinkEnd end);

/// All but the bytes, for which there is room of `size`; null where the type has none.
char* encode_frame(wire::Frame::Builder to, const LinkFrame& frame, size_t size);

/// Who speaks: the first thing that both ends say.
struct LinkHello {
    ClusterUuid cluster{};
    NodeUuid node{};
    uint64_t incarnation = 0;
    uint32_t format = link_format;
    std::string version;
};
LinkHello decode_hello(wire::Hello::Reader from);
void encode_hello(wire::Hello::Builder to, const LinkHello& hello);

}  // namespace mainstay
