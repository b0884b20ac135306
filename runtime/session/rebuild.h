#pragma once
// A session from what the store has of it: its head, then the records of the tail that the head does not contain. This
// is the whole of recovery, and everybody who wants a session that is not awake comes here: who reads its history, who
// lists it, who activates it. Bytes come from a disk, so nothing of them is trusted.
//
// Pure; any thread.

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/session/session.h"

namespace mainstay {

struct TailBatch {
    Sequence first_sequence;
    std::string_view payload;
};

/// A session that never was has no head and no tail: then exists() is false. Fails with state_damaged for a head and
/// journal_damaged for a record that cannot be read or does not follow. Bytes are borrowed for the call.
Result<Session> rebuild(SessionKey key, std::optional<std::string_view> head, const std::vector<TailBatch>& tail);

/// The same from the image that a store loads: `head` (optional bytes) and `tail` of {first_sequence, payload (pointer
/// to bytes)}. A template, because no room of the runtime includes another.
template <class Image>
Result<Session> rebuild(SessionKey key, const Image& image) {
    std::vector<TailBatch> tail;
    tail.reserve(image.tail.size());
    for (const auto& record : image.tail) tail.push_back(TailBatch{record.first_sequence, *record.payload});
    return rebuild(key, image.head ? std::optional<std::string_view>(*image.head) : std::nullopt, tail);
}

}  // namespace mainstay
