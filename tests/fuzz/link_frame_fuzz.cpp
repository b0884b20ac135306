// What a peer sends: frames, and the replication messages in them; the first byte says which. Whatever the bytes, they
// are refused with words, or what was read is within its bounds, and a message writes and reads as the same again.
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <cstdint>
#include <cstring>

#include "cluster/link_assembly.h"
#include "cluster/link_frame.h"
#include "cluster/replication_codec.h"
#include "runtime/base/limits.h"
#include "tests/fuzz/require.h"

namespace {

using namespace mainstay;

void message(std::string_view bytes) {
    const auto read = decode_replication(bytes);
    if (!read) return require(read.error().code == ErrorCode::peer_refused && !read.error().message.empty());
    const std::string again = flat(encode_replication(*read));
    const auto second = decode_replication(again);
    require(second.ok());
    require(flat(encode_replication(*second)) == again);
}

/// The bytes as the frames of one stream, cut where the first of them says.
void stream(std::string_view bytes) {
    if (bytes.empty()) return;
    const size_t step = 1 + uint8_t(bytes[0]);
    bytes.remove_prefix(1);
    MessageAssembly assembly;
    std::vector<ReplicationMessage> out;
    for (; !bytes.empty(); bytes.remove_prefix(std::min(step, bytes.size()))) {
        if (!assembly.feed(bytes.substr(0, step), out)) return;
        require(assembly.bytes() <= limits::link_message_bytes_max + 4);
    }
}

void frame(std::string_view bytes, LinkEnd end, CallAssembly& calls) {
    auto words = kj::heapArray<capnp::word>(bytes.size() / sizeof(capnp::word));
    if (words.size() == 0) return;
    std::memcpy(words.asBytes().begin(), bytes.data(), words.asBytes().size());
    try {
        capnp::ReaderOptions options;
        options.traversalLimitInWords = 8 * limits::link_chunk_bytes_max / sizeof(capnp::word);
        options.nestingLimit = 64;
        capnp::FlatArrayMessageReader reader(words, options);
        const auto read = decode_frame(reader.getRoot<wire::Frame>(), end);
        if (!read) return require(!read.error().message.empty());
        require(takes(end, read->type) && read->bytes.size() <= limits::link_chunk_bytes_max);
        require(read->total <= limits::link_message_bytes_max);
        if (read->type == FrameType::request || read->type == FrameType::part || read->type == FrameType::more)
            (void)calls.feed(*read).ok();
        require(calls.bytes() <= limits::link_queue_bytes_max);
        (void)decode_hello(reader.getRoot<wire::Hello>());
    } catch (const kj::Exception&) {
        // What has no root: the link's connection ends before a frame is seen.
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    CallAssembly calls;
    if (data[0] == 'm') message(bytes);
    if (data[0] == 's') stream(bytes);
    if (data[0] == 'a') frame(bytes, LinkEnd::accepted, calls);
    if (data[0] == 'd') frame(bytes, LinkEnd::dialled, calls);
    return 0;
}
