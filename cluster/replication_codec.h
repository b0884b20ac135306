#pragma once
// Replication messages as bytes (docs/formats/link.md): a head of Cap'n Proto, then the payloads as they are. The head
// is made once, payloads are only referred to, so an entry is copied when it goes into a frame and not before. Pure
// functions, any thread.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/replication_message.h"
#include "runtime/base/result.h"

namespace mainstay {

struct EncodedMessage {
    std::string head;                                          // its length (u32, little-endian) included
    std::vector<std::shared_ptr<const std::string>> payloads;  // none null, none empty
    size_t bytes = 0;                                          // of all together
};

EncodedMessage encode_replication(const ReplicationMessage& message);
/// The same in one piece.
std::string flat(const EncodedMessage& message);
/// From exactly the bytes of one message. peer_refused for anything else; no bytes make it use more memory than a small
/// multiple of their number. The payload of a barrier is null, no other is.
Result<ReplicationMessage> decode_replication(std::string_view bytes);

}  // namespace mainstay
