#pragma once
// What is durable in the journal and not yet in the state. The journal is never read while the process runs: the tail
// keeps payloads in memory, shared with whoever loads a session. It is cut into generations of apply_batch_bytes; the
// applier takes the oldest as one transaction and drops it as a whole, so pruning costs nothing per record and readers
// always find a record either here or in the state. Thread-safe; readers look here first and into the state second.

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/store/journal.h"
#include "runtime/store/record.h"

namespace mainstay {

struct TailRecord {
    Lsn lsn;
    Epoch epoch;
    RecordKind kind = RecordKind::events;
    Sequence first_sequence;
    TurnNo turn;
    bool at_rest = false, deletes = false;
    std::shared_ptr<const std::string> payload;
};

/// Whether folding these records of a session can change the row of `turn`: one that is older than all of them is
/// settled, and its row as it was. A deletion changes them all.
bool may_touch(const std::vector<TailRecord>& records, TurnNo turn);

struct TailGeneration {
    std::unordered_map<SessionKey, std::vector<TailRecord>> sessions;
    uint64_t bytes = 0, records = 0;
    uint64_t end_lsn = 0;                                // everything before is applied once this generation is
    uint64_t appended_count = 0;                         // likewise, in appends of this process
    std::vector<std::pair<uint16_t, uint64_t>> indexes;  // highest index of each shard that wrote (unsorted, last wins)
    bool touched = false;                                // holds anything, be it only a moved end
};

class Tail {
  public:
    explicit Tail(size_t generation_bytes) : generation_bytes_(generation_bytes) {}

    void add(const RecordHeader& header, std::shared_ptr<const std::string> payload, size_t stored_bytes);
    /// A position of a shard that no record brings with it: a barrier's.
    void add_index(ShardId shard, uint64_t index);
    /// Everything added so far ends at `end_lsn`. Returns the number of bytes that are not applied.
    uint64_t close_group(uint64_t end_lsn, uint64_t appended_count);
    /// add() for all records of a group and close_group(), under one lock.
    template <class Records>
    uint64_t add_group(const Records& records, uint64_t end_lsn, uint64_t appended_count) {
        std::lock_guard lock(mutex_);
        for (const auto& record : records) add_locked(record.header, record.payload, record.stored_bytes);
        return close_locked(end_lsn, appended_count);
    }

    std::vector<TailRecord> records_of(const SessionKey& key) const;
    std::vector<SessionKey> sessions() const;
    /// Sessions whose newest record says that they are at rest.
    std::vector<SessionKey> resting() const;
    /// Indexes of the shards in the tail, the highest last.
    std::vector<std::pair<uint16_t, uint64_t>> indexes() const;
    /// Tenants' entity records, grouped by tenant, in order; memories of users, which have keys of their own, left out.
    std::vector<std::pair<SessionKey, std::vector<TailRecord>>> entities() const;

    /// The oldest generation, sealed: nothing is added to it any more. It stays visible to readers until drop().
    /// Null where the tail is empty.
    std::shared_ptr<const TailGeneration> take();
    /// Forgets the generation that take() gave.
    void drop();

    uint64_t bytes() const;
    uint64_t records() const;
    bool empty() const;
    /// More than one generation waits: the applier has a full transaction to do.
    bool has_full_generation() const;

  private:
    void add_locked(const RecordHeader& header, std::shared_ptr<const std::string> payload, size_t stored_bytes);
    uint64_t close_locked(uint64_t end_lsn, uint64_t appended_count);
    TailGeneration& open_generation();

    const size_t generation_bytes_;
    mutable std::mutex mutex_;
    std::deque<std::shared_ptr<TailGeneration>> generations_;
    bool sealed_ = false;  // the last generation takes no more
    uint64_t bytes_ = 0, records_ = 0;
};

}  // namespace mainstay
