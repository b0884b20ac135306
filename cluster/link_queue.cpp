#include "cluster/link_queue.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

constexpr size_t length_bytes = 4;

std::string length_of(const EncodedMessage& message) {
    std::string out(length_bytes, '\0');
    for (size_t i = 0; i < length_bytes; ++i) out[i] = char(message.bytes >> (8 * i));
    return out;
}

}  // namespace

void LinkQueue::push(EncodedMessage message) { messages_.push_back(std::move(message)); }

size_t LinkQueue::push(CallItem item) {
    const uint64_t call = item.call;
    const bool drops = item.drops;
    const size_t dropped = drops ? drop(call) : 0;
    Stream& stream = calls_[call];
    if (stream.items.empty() && drops)
        turns_.push_front(call);  // before another message begins in the room that this gives back at the receiver
    else if (stream.items.empty())
        turns_.push_back(call);
    stream.items.push_back(std::move(item));
    return dropped;
}

size_t LinkQueue::drop(uint64_t call) {
    const auto found = calls_.find(call);
    if (found == calls_.end()) return 0;
    size_t cost = 0;
    for (const CallItem& item : found->second.items) cost += item.cost();
    calls_.erase(found);
    turns_.erase(std::remove(turns_.begin(), turns_.end(), call), turns_.end());
    return cost;
}

std::optional<LinkQueue::Next> LinkQueue::next(bool calls) {
    if (has_replication()) return next_replication();
    if (calls && has_calls()) return next_call();
    return {};
}

void LinkQueue::add_pieces(const EncodedMessage& message, size_t from, size_t size) {
    const auto add = [&](const std::string& bytes) {
        if (from >= bytes.size()) {
            from -= bytes.size();
            return;
        }
        const size_t n = std::min(size, bytes.size() - from);
        if (n != 0) pieces_.push_back({bytes.data() + from, n});
        from = 0;
        size -= n;
    };
    lengths_.push_back(length_of(message));
    add(lengths_.back());
    add(message.head);
    for (size_t i = 0; i < message.payloads.size() && size != 0; ++i) add(*message.payloads[i]);
}

LinkQueue::Next LinkQueue::next_replication() {
    Next out;
    out.frame.type = FrameType::replication;
    while (has_replication() && out.bytes < limits::link_chunk_bytes_max) {
        EncodedMessage& message = messages_.front();
        const size_t whole = cost(message);
        const size_t n = std::min(whole - offset_, limits::link_chunk_bytes_max - out.bytes);
        const bool ends = offset_ + n == whole;
        // Moved before pieces point into it: the head may be in the string object itself.
        EncodedMessage* holder = &message;
        if (ends) {
            if (spent_.capacity() == spent_.size() && !spent_.empty()) break;
            if (spent_.capacity() == 0) spent_.reserve(4096);
            spent_.push_back(std::move(message));
            holder = &spent_.back();
        }
        add_pieces(*holder, offset_, n);
        out.bytes += n;
        offset_ += n;
        if (!ends) break;
        messages_.pop_front();
        offset_ = 0;
        out.released += whole;
        ++out.messages;
    }
    return out;
}

LinkQueue::Next LinkQueue::next_call() {
    const uint64_t call = turns_.front();
    turns_.pop_front();
    Stream& stream = calls_[call];
    CallItem& item = stream.items.front();
    Next out;
    out.frame.call = call;
    out.frame.type = stream.offset == 0 ? item.type : FrameType::more;
    out.frame.kind = item.kind;
    out.frame.total = uint32_t(item.bytes.size());
    out.frame.failed = item.failed;
    out.frame.failure = item.failure;
    out.bytes = std::min(item.bytes.size() - stream.offset, limits::link_chunk_bytes_max);
    const size_t from = stream.offset;
    stream.offset += out.bytes;
    const CallItem* holder = &item;
    if (stream.offset == item.bytes.size()) {
        out.released = item.cost();
        spent_items_.push_back(std::move(item));
        holder = &spent_items_.back();
        stream.items.pop_front();
        stream.offset = 0;
    }
    if (out.bytes != 0) pieces_.push_back({holder->bytes.data() + from, out.bytes});
    if (stream.items.empty())
        calls_.erase(call);
    else
        turns_.push_back(call);
    return out;
}

void LinkQueue::fill(char* out) {
    for (const Piece& piece : pieces_) {
        std::memcpy(out, piece.data, piece.size);
        out += piece.size;
    }
    pieces_.clear();
    lengths_.clear();
    spent_.clear();
    spent_items_.clear();
}

}  // namespace mainstay
