#pragma once
// What the codecs of this room share: packed messages in and out of strings without a throw, and the values that
// batches and heads have in common; items are those of messages between nodes, too (actors/model_step_message.cpp).
// Only codecs and tests include this: nobody else sees Cap'n Proto.
//
// Thread-safe: the scratch segment is per thread.

#include <capnp/message.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/session/event.h"
#include "schema/session.capnp.h"

namespace mainstay::wire {

/// Thrown by readers inside whoever catches it, unpack_message among them, and nowhere else.
struct Malformed {
    const char* what;
};

inline capnp::Text::Reader as_text(const std::string& text) { return {text.c_str(), text.size()}; }
inline capnp::Data::Reader as_data(std::string_view bytes) {
    return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}
inline std::string text_of(capnp::Text::Reader text) { return {text.begin(), text.size()}; }
inline std::string bytes_of(capnp::Data::Reader data) {
    return {reinterpret_cast<const char*>(data.begin()), data.size()};
}

/// The 128 random bits of a session, big-endian.
std::string session_bytes(const SessionId& id);
/// Family zero is no session; otherwise the bytes are exactly 16, else Malformed.
SessionId session_of(uint64_t family, capnp::Data::Reader bytes);

void write(Usage::Builder out, const mainstay::Usage& usage);
mainstay::Usage read(Usage::Reader in);

template <class Own, class Wire>
Own checked(Wire value, Own last) {
    if (static_cast<uint16_t>(value) > static_cast<uint16_t>(last)) throw Malformed{"an enumerator is out of range"};
    return static_cast<Own>(value);
}

/// Elements of lists are counted: a list of structs that are empty costs no bytes, neither packed nor in the message,
/// and may claim any number of them.
inline void take(size_t& room, size_t elements) {
    if (elements > room) throw Malformed{"a message with more elements than any that is written"};
    room -= elements;
}

/// Without the item's tokens, which are a step's.
void write(Item::Builder out, const mainstay::Item& item);
std::shared_ptr<mainstay::Item> read_item(Item::Reader in, size_t& room);

std::string pack_message(const std::function<void(capnp::MessageBuilder&)>& build);
/// Runs `read` over the unpacked message; what went wrong, or nothing. Bounds: eight times the packed size and
/// batch_unpacked_bytes_max (what is mostly zeros packs to nearly nothing) may be traversed, 64 levels deep.
std::optional<std::string> unpack_message(std::string_view bytes,
                                          const std::function<void(capnp::MessageReader&)>& read);

}  // namespace mainstay::wire
