#pragma once
// Cap'n Proto messages between nodes as flat bytes: written, and read from bytes of any origin and alignment within
// bounds. Who reads says the bounds and what each field may be. Pure.

#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>
#include <string>
#include <string_view>

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

}  // namespace mainstay
