#include "runtime/session/fold.h"

#include <algorithm>

#include "runtime/session/turn_row.h"

namespace mainstay {
namespace {

/// One call of SessionFold::fold.
class Folding {
  public:
    Folding(const SessionKey& key, uint16_t shard_count) : key_(key), shard_count_(shard_count), session_(key) {}

    Result<void> load(std::optional<std::string_view> head) {
        if (head) {
            auto session = Session::decode_head(key_, *head, &head_batches_);
            if (!session) return session.error();
            session_ = std::move(*session);
            for (const OpenBatchBytes& batch : head_batches_) {
                auto decoded = decode_batch(batch.bytes);
                if (!decoded) return decoded.error();
                open_.push_back(Open{decoded->turn, {batch.first_sequence, batch.bytes}});
            }
        }
        session_.forget_history();
        wake_before_ = session_.wake_at();
        open_before_ = !session_.idle();
        return {};
    }

    Result<void> add(const FoldRecord& record) {
        if (record.first_sequence.value <= session_.last_sequence().value) return {};  // the head contains it
        auto batch = decode_batch(record.payload);
        if (!batch) return batch.error();
        if (!session_.try_apply(*batch, record.first_sequence))
            return Error{ErrorCode::journal_damaged,
                         "record " + std::to_string(record.first_sequence.value) + " does not follow its session",
                         {}};
        changed_ = true;
        if (session_.deleted()) return {};
        put_key_row(*batch);
        const Session::RawBatch raw{record.first_sequence, record.payload};
        if (batch->turn.value == 0) {
            put(Table::turn, session_batch_row_key(key_, record.first_sequence, shard_count_), encode_turn_row({raw}));
            return {};
        }
        open_.push_back(Open{batch->turn, raw});
        if (settles(*batch)) put_turn_row(batch->turn);
        return {};
    }

    void finish(std::vector<RowOp>& rows) {
        if (!changed_) return;
        const std::string prefix = session_row_key(key_, shard_count_);
        const TimeMs wake = session_.wake_at();
        if (session_.deleted()) {
            const bool shared = session_.children() != 0;
            std::erase_if(rows_, [shared](const RowOp& row) { return !shared || row.table != Table::turn; });
            rows_.push_back(RowOp{Table::key, prefix, std::nullopt, true});
            // A fork reads the turns that it shares from its parent's rows: they stay while there may be one.
            if (!shared) rows_.push_back(RowOp{Table::turn, prefix, std::nullopt, true});
            rows_.push_back(RowOp{Table::open, prefix, std::nullopt, false});
        } else if (open_before_ != !session_.idle()) {
            rows_.push_back(
                RowOp{Table::open, prefix, session_.idle() ? std::nullopt : std::optional(std::string()), false});
        }
        if (wake != wake_before_) {
            if (wake_before_ != 0)
                rows_.push_back(RowOp{Table::due, due_row_key(wake_before_, key_, shard_count_), std::nullopt, false});
            if (wake != 0) put(Table::due, due_row_key(wake, key_, shard_count_), std::string());
        }
        put_head(prefix);
        std::move(rows_.begin(), rows_.end(), std::back_inserter(rows));
    }

  private:
    struct Open {
        TurnNo turn;
        Session::RawBatch raw;
    };

    static bool settles(const EventBatch& batch) {
        return std::any_of(batch.events.begin(), batch.events.end(), [](const Event& event) {
            return std::holds_alternative<TurnSettled>(event) || std::holds_alternative<ItemsAdded>(event);
        });
    }

    void put(Table table, std::string key, std::string value) {
        rows_.push_back(RowOp{table, std::move(key), std::move(value), false});
    }

    void put_key_row(const EventBatch& batch) {
        for (const Event& event : batch.events)
            if (const auto* input = std::get_if<InputAccepted>(&event); input && input->key)
                put(Table::key, key_row_key(key_, *input->key, shard_count_),
                    encode_key_row(KnownKey{batch.turn, input->request_digest, batch.at}));
    }

    void put_turn_row(TurnNo turn) {
        std::vector<Session::RawBatch> batches;
        for (const Open& open : open_)
            if (open.turn == turn) batches.push_back(open.raw);
        std::erase_if(open_, [turn](const Open& open) { return open.turn == turn; });
        put(Table::turn, turn_row_key(key_, turn, shard_count_), encode_turn_row(batches));
    }

    void put_head(const std::string& prefix) {
        std::vector<Session::RawBatch> batches;
        if (session_.deleted()) {
            // An ephemeral session has an id that nobody can ask for again, and there are many: it leaves nothing. Only
            // forks look for their parent, and a key that lives on would make the session anew.
            if (session_.forgettable()) {
                rows_.push_back(RowOp{Table::head, prefix, std::nullopt, false});
                return;
            }
        } else {
            for (const Open& open : open_) batches.push_back(open.raw);
        }
        put(Table::head, prefix, session_.encode_head(batches));
    }

    const SessionKey& key_;
    const uint16_t shard_count_;
    Session session_;
    std::vector<OpenBatchBytes> head_batches_;
    std::vector<Open> open_;  // raw batches of open turns, in order
    std::vector<RowOp> rows_;
    TimeMs wake_before_ = 0;
    bool open_before_ = false, changed_ = false;
};

}  // namespace

bool SessionFold::expired(Table table, std::string_view value, TimeMs now) const {
    return table == Table::key && decode_key_row(value).ok() && key_row_expired(value, now);
}

Result<void> SessionFold::fold(const SessionKey& key, std::optional<std::string_view> head,
                               const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) {
    Folding folding(key, shard_count_);
    if (auto loaded = folding.load(head); !loaded) return loaded;
    for (const FoldRecord& record : records)
        if (auto added = folding.add(record); !added) return added;
    folding.finish(rows);
    return {};
}

}  // namespace mainstay
