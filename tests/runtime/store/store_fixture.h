#pragma once
// What the store's tests share: a small fold whose rows a test can predict, targets that remember acknowledgements,
// temporary directories, and one harness over both stores so that the contract suite is written once.

#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/fold.h"
#include "runtime/base/random.h"
#include "runtime/store/disk_store.h"
#include "runtime/store/journal.h"

namespace mainstay::store_test {

inline SessionKey session_key(uint64_t n, uint32_t tenant = 7) {
    // Families ordered by n, spread over the shards as real ones are.
    return {TenantId{tenant}, SessionId{FamilyId{(n << 22) + 1}, n * 0x9e3779b97f4a7c15ull, n}};
}

/// Payloads: one letter, then text. T: a settled turn with that text (turn number = sequence); O: a turn is open;
/// D: the session is deleted; E<8 letters><body>: an entity; under a memory's key M<body>: the memory, D: it is
/// deleted. The head is the last sequence and the number of turns.
class TestFold final : public Fold {
  public:
    Result<void> fold(const SessionKey& key, std::optional<std::string_view> head,
                      const std::vector<FoldRecord>& records, std::vector<RowOp>& rows) override {
        ++folds;
        if (!key.session.valid() && key.session != SessionId{}) {
            const std::string row_key = memory_row_key(key, shard_count);
            const std::string_view last = records.back().payload;
            rows.push_back({Table::memory, row_key, std::nullopt, true});
            if (last[0] == 'M') rows.push_back({Table::memory, row_key, std::string(last.substr(1)), false});
            return {};
        }
        if (!key.session.valid()) {
            for (const auto& record : records)
                rows.push_back({Table::entity, std::string(record.payload.substr(1, 8)),
                                std::string(record.payload.substr(9)), false});
            return {};
        }
        uint64_t last = 0, turns = 0;
        if (head) {
            std::memcpy(&last, head->data(), 8);
            std::memcpy(&turns, head->data() + 8, 8);
        }
        bool deleted = false;
        for (const auto& record : records) {
            if (record.first_sequence.value <= last) continue;
            if (record.first_sequence.value != last + 1 && last != 0)
                return {ErrorCode::internal, "a sequence is missing", ""};
            last = record.first_sequence.value;
            const std::string_view text = record.payload.substr(1);
            if (record.payload[0] == 'T') {
                ++turns;
                rows.push_back({Table::turn, turn_row_key(key, TurnNo{static_cast<uint32_t>(last)}, shard_count),
                                std::string(text), false});
            } else if (record.payload[0] == 'D') {
                deleted = true;
            }
        }
        const std::string row_key = session_row_key(key, shard_count);
        if (deleted) {
            std::erase_if(rows, [&](const RowOp& row) { return row.key.starts_with(row_key); });
            rows.push_back({Table::turn, row_key, std::nullopt, true});
            rows.push_back({Table::head, row_key, std::nullopt, false});
            rows.push_back({Table::open, row_key, std::nullopt, false});
            return {};
        }
        std::string value(16, '\0');
        std::memcpy(value.data(), &last, 8);
        std::memcpy(value.data() + 8, &turns, 8);
        rows.push_back({Table::head, row_key, std::move(value), false});
        const bool open = !records.empty() && records.back().payload[0] == 'O';
        rows.push_back({Table::open, row_key, open ? std::optional<std::string>("") : std::nullopt, false});
        return {};
    }

    std::atomic<uint64_t> folds{0};
    uint16_t shard_count = shard_count_default;
};

inline uint64_t head_last(const std::string& head) {
    uint64_t value;
    std::memcpy(&value, head.data(), 8);
    return value;
}

class Acks final : public AckTarget {
  public:
    void acknowledged(Sequence durable, Sequence committed) override {
        std::lock_guard lock(mutex_);
        durable_ = durable.value;
        committed_ = committed.value;
        ++calls_;
        if (durable.value < highest_) fell_ = true;
        highest_ = std::max(highest_, durable.value);
    }
    uint64_t durable() const {
        std::lock_guard lock(mutex_);
        return durable_;
    }
    uint64_t committed() const {
        std::lock_guard lock(mutex_);
        return committed_;
    }
    uint64_t calls() const {
        std::lock_guard lock(mutex_);
        return calls_;
    }
    bool fell() const {
        std::lock_guard lock(mutex_);
        return fell_;
    }

  private:
    mutable std::mutex mutex_;
    uint64_t durable_ = 0, committed_ = 0, calls_ = 0, highest_ = 0;
    bool fell_ = false;
};

inline Append events(const SessionKey& key, uint64_t sequence, std::string payload,
                     std::shared_ptr<AckTarget> target = nullptr) {
    Append append;
    append.session = key;
    append.first_sequence = Sequence{sequence};
    append.event_count = 1;
    append.turn = TurnNo{static_cast<uint32_t>(sequence)};
    append.deletes = payload.starts_with('D');
    append.payload = std::move(payload);
    append.target = std::move(target);
    return append;
}

/// Polls a condition with a bound; never sleeps in the hope that it has become true.
inline bool eventually(const std::function<bool()>& condition, unsigned bound_ms = 20'000) {
    for (unsigned waited = 0; waited < bound_ms; ++waited) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return condition();
}

class TempDir {
  public:
    explicit TempDir(const std::filesystem::path& under = std::filesystem::path(MAINSTAY_BINARY_DIR)) {
        std::string name = (under / "store_test_XXXXXX").string();
        path_ = ::mkdtemp(name.data());
    }
    ~TempDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

inline DiskStoreConfig small_config(const std::filesystem::path& directory, Fold& fold, uint64_t epoch = 1) {
    DiskStoreConfig config;
    config.directory = directory;
    config.uuid = {1, 2, 3, 4};
    config.epoch = Epoch{epoch};
    config.fold = &fold;
    config.segment_bytes = 256 * 1024;
    config.group_bytes_max = 64 * 1024;
    config.apply_batch_bytes = 256 * 1024;
    config.apply_interval_ms = 20;
    config.state_map_bytes = 1ull << 30;
    config.disk_reserve_bytes = 0;
    return config;
}

}  // namespace mainstay::store_test
