#include "actors/event_page.h"

#include <algorithm>
#include <map>

#include "runtime/session/event_json.h"
#include "runtime/session/fold.h"
#include "runtime/session/session.h"

namespace mainstay {
namespace {

// Batches of the session itself (forks, metadata, refusals) hold a few events; the page may begin inside one.
constexpr uint64_t session_batch_reach = 64;

bool ran(const std::vector<SequencedBatch>& turn) {
    return std::any_of(turn.begin(), turn.end(), [](const SequencedBatch& batch) {
        return std::any_of(batch.second.events.begin(), batch.second.events.end(), [](const Event& event) {
            return std::holds_alternative<ModelStepSettled>(event) || std::holds_alternative<ItemsAdded>(event);
        });
    });
}

uint64_t end_of(const SequencedBatch& batch) { return batch.first + batch.second.events.size(); }

class Page {
  public:
    Page(Store& store, const SessionKey& key, uint64_t after, size_t limit, uint16_t shard_count)
        : store_(store), key_(key), after_(after), to_(after + limit), shard_count_(shard_count) {}

    Result<void> gather(TurnNo first_own) {
        uint32_t open_from = first_own.value;  // turns from here on may be open or in the tail
        if (auto read = read_image(open_from); !read) return read;
        uint32_t next = 0;
        if (auto found = first_turn_behind(first_own.value, open_from, next); !found) return found;
        if (auto read = read_back(first_own.value, next); !read) return read;
        if (auto read = scan(turn_row_key(key_, TurnNo{next}, shard_count_), turn_rows_end(key_, shard_count_)); !read)
            return read;
        const uint64_t from = after_ > session_batch_reach ? after_ - session_batch_reach : 0;
        return scan(session_batch_row_key(key_, Sequence{from}, shard_count_), {});
    }

    std::vector<EventEntry> entries() const {
        std::vector<EventEntry> out;
        for (const auto& [first, batch] : batches_)
            for (size_t i = 0; i < batch.events.size(); ++i) {
                const uint64_t sequence = first + i;
                if (sequence <= after_ || sequence > to_) continue;
                out.push_back({sequence, batch.at, batch.turn, std::string(event_name(batch.events[i])),
                               event_json(batch.events[i], Sequence{sequence}, batch.turn, batch.at)});
            }
        return out;
    }

  private:
    void add(SequencedBatch batch) {
        if (end_of(batch) > after_ + 1 && batch.first <= to_) batches_.emplace(batch.first, std::move(batch.second));
    }

    /// The open batches of the head and the tail. The image first, the rows later: what leaves the tail is in a row.
    Result<void> read_image(uint32_t& open_from) {
        auto image = store_.load(key_);
        if (!image.ok()) return image.error();
        if (image->head) {
            std::vector<OpenBatchBytes> open;
            auto head = Session::decode_head(key_, *image->head, &open);
            if (!head.ok()) return head.error();
            open_from = std::max(open_from, head->last_turn().value + 1);
            for (const auto& raw : open) {
                auto batch = decode_batch(raw.bytes);
                if (!batch.ok()) return batch.error();
                if (batch->turn.value != 0) open_from = std::min(open_from, batch->turn.value);
                add({raw.first_sequence.value, std::move(*batch)});
            }
        }
        for (size_t i = 0; i < image->tail.size(); ++i) {
            const auto& record = image->tail[i];
            if (record.first_sequence.value > to_) break;
            if (i + 1 < image->tail.size() && image->tail[i + 1].first_sequence.value <= after_ + 1) continue;
            auto batch = decode_batch(*record.payload);
            if (!batch.ok()) return batch.error();
            add({record.first_sequence.value, std::move(*batch)});
        }
        return {};
    }

    Result<std::vector<SequencedBatch>> turn(uint32_t no) {
        auto row = store_.read_row(Table::turn, turn_row_key(key_, TurnNo{no}, shard_count_));
        if (!row.ok()) return row.error();
        if (!*row) return std::vector<SequencedBatch>{};
        return batches_from_row(**row);
    }

    /// The first turn below `end` that begins behind the page's start; `end` if there is none.
    Result<void> first_turn_behind(uint32_t begin, uint32_t end, uint32_t& found) {
        while (begin < end) {
            const uint32_t middle = begin + (end - begin) / 2;
            auto batches = turn(middle);
            if (!batches.ok()) return batches.error();
            if (batches->empty() || batches->front().first <= after_) {
                begin = middle + 1;
            } else {
                end = middle;
            }
        }
        found = begin;
        return {};
    }

    /// Turns that began before the page and may reach into it.
    Result<void> read_back(uint32_t begin, uint32_t end) {
        for (uint32_t no = end; no-- > begin;) {
            auto batches = turn(no);
            if (!batches.ok()) return batches.error();
            const bool over = batches->empty() || (end_of(batches->back()) <= after_ + 1 && ran(*batches));
            for (auto& batch : *batches) add(std::move(batch));
            if (over) break;
        }
        return {};
    }

    /// Rows from one key on, until one begins behind the page. `end` empty: to the session's last.
    Result<void> scan(const std::string& from, const std::string& end) {
        Result<void> failed;
        const auto prefix = session_row_key(key_, shard_count_);
        auto scanned = store_.scan(Table::turn, prefix, from, SIZE_MAX, [&](std::string_view at, std::string_view row) {
            if (!end.empty() && at >= end) return false;
            auto batches = batches_from_row(row);
            if (!batches.ok()) {
                failed = batches.error();
                return false;
            }
            if (!batches->empty() && batches->front().first > to_) return false;
            for (auto& batch : *batches) add(std::move(batch));
            return true;
        });
        return scanned.ok() ? failed : scanned;
    }

    Store& store_;
    const SessionKey& key_;
    const uint64_t after_, to_;
    const uint16_t shard_count_;
    std::map<uint64_t, EventBatch> batches_;  // by first sequence: rows of turns interleave where inputs queued
};

}  // namespace

Result<std::vector<EventEntry>> read_event_page(Store& store, const SessionKey& key, TurnNo first_own, uint64_t after,
                                                size_t limit, uint16_t shard_count) {
    if (after > UINT64_MAX - limit - 1) return std::vector<EventEntry>{};
    Page page(store, key, after, limit, shard_count);
    if (auto gathered = page.gather(first_own); !gathered.ok()) return gathered.error();
    return page.entries();
}

}  // namespace mainstay
