#pragma once
// Events as JSON for people: `session events`, `explain` and the golden tests. Not a format that anything reads back;
// the journal's is schema/session.capnp. Pure.

#include <string>

#include "runtime/session/event.h"

namespace mainstay {

/// One object: {"event":"ToolIntent","sequence":7,"turn":1,"at":1700000000000, ...the event's own fields}. Fields that
/// have their default are left out; enumerators are words; digests and token ids are hexadecimal.
std::string event_json(const Event& event, Sequence sequence, TurnNo turn, TimeMs at);
/// A JSON array of the batch's events.
std::string batch_json(const EventBatch& batch, Sequence first_sequence);

}  // namespace mainstay
