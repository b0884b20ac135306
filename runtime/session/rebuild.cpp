#include "runtime/session/rebuild.h"

#include <string>

namespace mainstay {

Result<Session> rebuild(SessionKey key, std::optional<std::string_view> head, const std::vector<TailBatch>& tail) {
    Session session(key);
    if (head) {
        auto decoded = Session::decode_head(key, *head);
        if (!decoded) return decoded.error();
        session = std::move(*decoded);
    }
    for (const TailBatch& record : tail) {
        if (record.first_sequence <= session.last_sequence()) continue;  // the head contains it
        auto batch = decode_batch(record.payload);
        if (!batch) return batch.error();
        if (!session.try_apply(*batch, record.first_sequence))
            return Error{ErrorCode::journal_damaged,
                         "record " + std::to_string(record.first_sequence.value) + " does not follow its session",
                         {}};
    }
    return session;
}

}  // namespace mainstay
