#pragma once
// Cap'n Proto messages between nodes as flat bytes: written, and read from bytes of any origin and alignment within
// bounds. Who reads says the bounds and what each field may be. Pure.

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>
#include <string>
#include <string_view>

#include "runtime/base/limits.h"
#include "runtime/base/result.h"

namespace mainstay {

/// Fills a text or data field that was made with the size of `from`.
template <class Builder>
void put_bytes(Builder to, std::string_view from) {
    if (!from.empty()) std::memcpy(to.begin(), from.data(), from.size());
}
inline std::string copied(capnp::Text::Reader from) { return {from.begin(), from.size()}; }
inline std::string copied(capnp::Data::Reader from) {
    return {reinterpret_cast<const char*>(from.begin()), from.size()};
}

inline std::string flat_bytes(capnp::MallocMessageBuilder& builder) {
    const auto words = capnp::messageToFlatArray(builder);
    const auto bytes = words.asBytes();
    return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
}

/// Bytes of a frame start anywhere, Cap'n Proto reads words. Precondition: whole words.
inline kj::Array<capnp::word> aligned_words(std::string_view bytes) {
    auto words = kj::heapArray<capnp::word>(bytes.size() / sizeof(capnp::word));
    if (!bytes.empty()) std::memcpy(words.asBytes().begin(), bytes.data(), bytes.size());
    return words;
}

/// One whole message of any bytes: what `read` makes of its root, or the error that `refused` makes of why not. Reading
/// it may follow `slack_words` more than twice its size, `nesting_max` deep.
template <class Root, class T, class Refused, class Read>
Result<T> read_flat(std::string_view bytes, uint64_t slack_words, int nesting_max, Refused refused, Read read) {
    if (bytes.size() % sizeof(capnp::word) != 0) return refused("cut off");
    if (bytes.size() > limits::link_message_bytes_max) return refused("beyond link_message_bytes_max");
    const auto words = aligned_words(bytes);
    capnp::ReaderOptions options;
    options.traversalLimitInWords = 2 * words.size() + slack_words;
    options.nestingLimit = nesting_max;
    try {
        capnp::FlatArrayMessageReader reader(words, options);
        if (reader.getEnd() != words.end()) return refused("bytes after the message");
        return read(reader.getRoot<Root>());
    } catch (const kj::Exception&) {
        return refused("damaged");
    }
}

}  // namespace mainstay
