#include "cluster/link_assembly.h"

#include <algorithm>

#include "cluster/replication_codec.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

constexpr size_t length_bytes = 4;

Error refused(const char* why) { return {ErrorCode::peer_refused, why, {}}; }

size_t length_at(std::string_view bytes) {
    size_t length = 0;
    for (size_t i = 0; i < length_bytes; ++i) length |= size_t(uint8_t(bytes[i])) << (8 * i);
    return length;
}

}  // namespace

bool MessageAssembly::complete(std::string_view& bytes, size_t size) {
    const size_t n = std::min(size - std::min(size, partial_.size()), bytes.size());
    partial_.append(bytes.substr(0, n));
    bytes.remove_prefix(n);
    return partial_.size() >= size;
}

Result<void> MessageAssembly::feed(std::string_view bytes, std::vector<ReplicationMessage>& out) {
    while (!bytes.empty()) {
        // A message that is whole in the frame is read where it is.
        const bool here = partial_.empty() && bytes.size() >= length_bytes;
        if (!here && !complete(bytes, length_bytes)) return {};
        const size_t length = length_at(here ? bytes : std::string_view(partial_));
        if (length == 0) return refused("a message without bytes");
        if (length > limits::link_message_bytes_max) return refused("a message beyond link_message_bytes_max");
        const size_t whole = length_bytes + length;
        std::string_view message;
        if (here && bytes.size() >= whole) {
            message = bytes.substr(length_bytes, length);
            bytes.remove_prefix(whole);
        } else {
            partial_.reserve(whole);
            if (!complete(bytes, whole)) return {};
            message = std::string_view(partial_).substr(length_bytes);
        }
        auto read = decode_replication(message);
        if (!read) return read.error();
        out.push_back(std::move(read).value());
        std::string().swap(partial_);
    }
    return {};
}

Result<std::optional<CallAssembly::Whole>> CallAssembly::feed(const LinkFrame& frame) {
    auto found = open_.find(frame.call);
    if (frame.type == FrameType::more) {
        if (found == open_.end()) return std::optional<Whole>();
        Open& open = found->second;
        if (frame.bytes.size() > open.total - open.bytes.size()) return refused("more bytes than the whole has");
        open.bytes.append(frame.bytes);
        if (open.bytes.size() < open.total) return std::optional<Whole>();
        Whole whole{frame.call, open.kind, std::move(open.bytes)};
        drop(frame.call);
        return std::optional<Whole>(std::move(whole));
    }
    if (found != open_.end()) return refused("a piece of a call before the last one is whole");
    if (frame.bytes.size() == frame.total)
        return std::optional<Whole>(Whole{frame.call, frame.kind, std::string(frame.bytes)});
    if (announced_ + frame.total > limits::link_queue_bytes_max)
        return refused("announces more than link_queue_bytes_max");
    Open& open = open_[frame.call];
    open.kind = frame.kind;
    open.total = frame.total;
    open.bytes.reserve(frame.total);
    open.bytes.append(frame.bytes);
    announced_ += frame.total;
    return std::optional<Whole>();
}

void CallAssembly::drop(uint64_t call) {
    const auto found = open_.find(call);
    if (found == open_.end()) return;
    announced_ -= found->second.total;
    open_.erase(found);
}

}  // namespace mainstay
