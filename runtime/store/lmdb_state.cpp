#include "runtime/store/lmdb_state.h"

#include <lmdb.h>
#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/base/invariant.h"
#include "runtime/store/lmdb_erase.h"
#include "runtime/store/shard_rows.h"

namespace mainstay {
namespace {

constexpr std::string_view table_names[table_count] = {"head", "turn",   "key",  "due",
                                                       "open", "entity", "meta", "memory"};
constexpr size_t frame_header_bytes = 8;
constexpr unsigned readers_max = 512;
constexpr size_t pooled_readers_max = 64;
constexpr size_t scan_chunk_rows = 128;
constexpr size_t value_bytes_max = 0x0fffffff;  // the upper four bits of the length are the encoding
constexpr uint32_t encoding_shift = 28, encoding_plain = 0, encoding_zstd = 1, encoding_lz4 = 2;
constexpr size_t compress_bytes_min = 256;
constexpr int zstd_level = 1;
// What LZ4 brings below this lies four to a page, and zstd, at five to twenty times the time, would gain little. Longer
// values are not tried: LZ4 is weak there, and a page more or less is what counts.
constexpr size_t lz4_stored_bytes_max = 960, lz4_bytes_max = 4096, lz4_header_bytes = 4;
// Rows of which exactly two fit a page (16 bytes of header; 10 per node).
constexpr size_t page_room = 4096 - 16, node_overhead = 10;

MDB_val as_val(std::string_view bytes) { return {bytes.size(), const_cast<char*>(bytes.data())}; }
std::string_view as_view(const MDB_val& val) { return {static_cast<const char*>(val.mv_data), val.mv_size}; }

/// The only place where values are compressed. The length word of what is in `out`, or of the plain value.
uint32_t compress(std::string_view value, char* out, size_t room) {
    const auto worth = [&](size_t packed) { return packed + packed / 8 < value.size(); };
    if (value.size() <= lz4_bytes_max) {
        const auto size = static_cast<uint32_t>(value.size());
        std::memcpy(out, &size, sizeof size);
        const int packed = LZ4_compress_default(value.data(), out + lz4_header_bytes, static_cast<int>(size),
                                                static_cast<int>(lz4_stored_bytes_max - lz4_header_bytes));
        if (packed > 0 && worth(static_cast<size_t>(packed) + lz4_header_bytes))
            return static_cast<uint32_t>(static_cast<size_t>(packed) + lz4_header_bytes) | encoding_lz4
                                                                                               << encoding_shift;
    }
    // One context per thread: making one costs more than compressing a turn.
    thread_local const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
    const size_t packed = ZSTD_compressCCtx(context.get(), out, room, value.data(), value.size(), zstd_level);
    if (!ZSTD_isError(packed) && worth(packed)) return static_cast<uint32_t>(packed) | encoding_zstd << encoding_shift;
    return static_cast<uint32_t>(value.size());
}

std::optional<std::string> uncompress_lz4(std::string_view stored) {
    if (stored.size() < lz4_header_bytes) return std::nullopt;
    uint32_t bytes;
    std::memcpy(&bytes, stored.data(), sizeof bytes);
    if (bytes > lz4_bytes_max) return std::nullopt;
    std::string out(bytes, '\0');
    const int got = LZ4_decompress_safe(stored.data() + lz4_header_bytes, out.data(),
                                        static_cast<int>(stored.size() - lz4_header_bytes), static_cast<int>(bytes));
    if (got < 0 || static_cast<uint32_t>(got) != bytes) return std::nullopt;
    return out;
}

uint32_t frame_crc(std::string_view key, std::string_view framed) { return crc32c(framed.substr(4), crc32c(key)); }

}  // namespace

std::string_view table_name(Table table) { return table_names[static_cast<size_t>(table)]; }

std::string frame_value(std::string_view key, std::string_view value) {
    INVARIANT(value.size() <= value_bytes_max, "a row's value fits its frame");
    std::string out;
    auto length = static_cast<uint32_t>(value.size());
    if (value.size() >= compress_bytes_min) {
        out.resize(frame_header_bytes + ZSTD_compressBound(value.size()) + 7);
        length = compress(value, out.data() + frame_header_bytes, out.size() - frame_header_bytes);
    }
    const size_t stored = length & value_bytes_max;
    out.resize(frame_header_bytes + (stored + 7) / 8 * 8);
    if (length >> encoding_shift == encoding_plain && !value.empty())
        std::memcpy(out.data() + frame_header_bytes, value.data(), value.size());
    std::memset(out.data() + frame_header_bytes + stored, 0, out.size() - frame_header_bytes - stored);
    std::memcpy(out.data() + 4, &length, sizeof length);
    const uint32_t crc = frame_crc(key, out);
    std::memcpy(out.data(), &crc, sizeof crc);
    return out;
}

std::optional<std::string> unframe_value(std::string_view key, std::string_view framed) {
    if (framed.size() < frame_header_bytes) return std::nullopt;
    uint32_t crc, length;
    std::memcpy(&crc, framed.data(), sizeof crc);
    std::memcpy(&length, framed.data() + 4, sizeof length);
    const size_t stored = length & value_bytes_max;
    if (stored > framed.size() - frame_header_bytes || crc != frame_crc(key, framed)) return std::nullopt;
    const std::string_view value = framed.substr(frame_header_bytes, stored);
    switch (length >> encoding_shift) {
        case encoding_plain: return std::string(value);
        case encoding_lz4: return uncompress_lz4(value);
        case encoding_zstd: break;
        default: return std::nullopt;
    }
    const uint64_t bytes = ZSTD_getFrameContentSize(value.data(), value.size());
    if (bytes > value_bytes_max) return std::nullopt;  // also its two error values
    thread_local const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
    std::string out(bytes, '\0');
    const size_t got = ZSTD_decompressDCtx(context.get(), out.data(), out.size(), value.data(), value.size());
    if (ZSTD_isError(got) || got != bytes) return std::nullopt;
    return out;
}

/// A read transaction from the pool; the environment cannot be reopened while one lives.
class LmdbState::Reader {
  public:
    explicit Reader(const LmdbState& state) : state_(state), lock_(state.env_mutex_), txn_(state.take_reader()) {}
    ~Reader() {
        if (txn_) state_.give_reader(txn_);
    }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    MDB_txn* txn() const { return txn_; }

  private:
    const LmdbState& state_;
    std::shared_lock<std::shared_mutex> lock_;
    MDB_txn* txn_;
};

MDB_txn* LmdbState::take_reader() const {
    MDB_txn* txn = nullptr;
    {
        std::lock_guard lock(readers_mutex_);
        if (!readers_.empty()) {
            txn = readers_.back();
            readers_.pop_back();
        }
    }
    if (txn && mdb_txn_renew(txn) == 0) return txn;
    if (txn) mdb_txn_abort(txn);
    txn = nullptr;
    return mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn) == 0 ? txn : nullptr;
}

void LmdbState::give_reader(MDB_txn* txn) const {
    mdb_txn_reset(txn);
    std::lock_guard lock(readers_mutex_);
    if (readers_.size() < pooled_readers_max) {
        readers_.push_back(txn);
    } else {
        mdb_txn_abort(txn);
    }
}

Error LmdbState::failed(std::string_view what, int code) const {
    return {
        code == MDB_MAP_FULL || code == ENOSPC || code == EDQUOT ? ErrorCode::storage_full : ErrorCode::state_damaged,
        std::string(what) + " of the state in " + config_.directory.string() + " failed: " + mdb_strerror(code), ""};
}

void LmdbState::die(std::string_view what, int code) const {
    const std::string text = failed(what, code).message;
    if (config_.abort) {
        config_.abort(text);
        return;
    }
    std::fprintf(stderr, "state: %s; the process ends\n", text.c_str());
    std::fflush(stderr);
    std::abort();
}

std::string LmdbState::name_of(Table table, std::string_view key) const {
    return "table " + std::string(table_name(table)) + ", key " + to_hex(key);
}

Result<std::unique_ptr<LmdbState>> LmdbState::open(LmdbStateConfig config) {
    std::error_code error;
    std::filesystem::create_directories(config.directory, error);
    if (error) return {ErrorCode::storage_full, config.directory.string() + " cannot be made: " + error.message(), ""};
    std::unique_ptr<LmdbState> state(new LmdbState(std::move(config)));
    if (auto opened = state->open_environment(); !opened) return opened.error();
    return state;
}

Result<void> LmdbState::open_environment() {
    int code = mdb_env_create(&env_);
    if (code == 0) code = mdb_env_set_mapsize(env_, config_.map_bytes);
    if (code == 0) code = mdb_env_set_maxdbs(env_, table_count);
    if (code == 0) code = mdb_env_set_maxreaders(env_, readers_max);
    // NORDAHEAD: heads and turns are read at random. NOTLS: a reader belongs to a call, not to a thread.
    if (code == 0) code = mdb_env_open(env_, config_.directory.c_str(), MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (code != 0) {
        const Error error = failed("opening", code);
        close_environment();
        return error;
    }
    int dead = 0;
    mdb_reader_check(env_, &dead);
    if (auto opened = open_tables(); !opened) {
        close_environment();
        return opened;
    }
    return {};
}

Result<void> LmdbState::open_tables() {
    // First as they are, without writing, so that a full disk is no obstacle; then with creation.
    for (const bool create : {false, true}) {
        MDB_txn* txn = nullptr;
        int code = mdb_txn_begin(env_, nullptr, create ? 0 : MDB_RDONLY, &txn);
        for (size_t i = 0; code == 0 && i < table_count; ++i)
            code = mdb_dbi_open(txn, table_names[i].data(), create ? MDB_CREATE : 0, &tables_[i]);
        if (code == 0)
            code = mdb_txn_commit(txn);
        else if (txn)
            mdb_txn_abort(txn);
        if (code == 0) return {};
        if (code != MDB_NOTFOUND || create) return failed("opening the tables", code);
    }
    return {};
}

void LmdbState::close_environment() {
    for (MDB_txn* txn : readers_) mdb_txn_abort(txn);
    readers_.clear();
    if (env_) mdb_env_close(env_);
    env_ = nullptr;
}

LmdbState::~LmdbState() { close_environment(); }

// --- reading ------------------------------------------------------------------------------------------------------

Result<std::optional<std::string>> LmdbState::get(Table table, std::string_view key) const {
    const Reader reader(*this);
    if (!reader.txn()) return {ErrorCode::internal, "no reader slot in the state", ""};
    MDB_val k = as_val(key), v;
    const int code = mdb_get(reader.txn(), tables_[static_cast<size_t>(table)], &k, &v);
    if (code == MDB_NOTFOUND) return std::optional<std::string>();
    if (code != 0) return {ErrorCode::state_damaged, name_of(table, key) + ": " + mdb_strerror(code), ""};
    auto value = unframe_value(key, as_view(v));
    if (!value) return {ErrorCode::state_damaged, name_of(table, key) + ": the checksum does not hold", ""};
    return std::optional<std::string>(std::move(*value));
}

Result<void> LmdbState::scan(Table table, std::string_view prefix, std::string_view from, size_t limit,
                             const std::function<bool(std::string_view, std::string_view)>& visit) const {
    return scan_rows(table, prefix, from, limit, false, visit);
}

Result<void> LmdbState::scan_whole(Table table, std::string_view from, size_t limit,
                                   const std::function<bool(std::string_view, std::string_view)>& visit) const {
    return scan_rows(table, {}, from, limit, true, visit);
}

Result<void> LmdbState::scan_rows(Table table, std::string_view prefix, std::string_view from, size_t limit,
                                  bool skip_damaged,
                                  const std::function<bool(std::string_view, std::string_view)>& visit) const {
    // In chunks that are copied out: a visitor may take its time, a read transaction may not.
    std::string next(std::max(prefix, from));
    bool after = false;  // `next` itself was seen
    std::vector<std::pair<std::string, std::string>> rows;
    while (limit > 0) {
        rows.clear();
        const size_t wanted = std::min(limit, scan_chunk_rows);
        {
            const Reader reader(*this);
            if (!reader.txn()) return {ErrorCode::internal, "no reader slot in the state", ""};
            MDB_cursor* cursor = nullptr;
            int code = mdb_cursor_open(reader.txn(), tables_[static_cast<size_t>(table)], &cursor);
            if (code != 0) return failed("scanning", code);
            MDB_val k = as_val(next), v;
            code = next.empty() ? mdb_cursor_get(cursor, &k, &v, MDB_FIRST)
                                : mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
            if (code == 0 && after && as_view(k) == next) code = mdb_cursor_get(cursor, &k, &v, MDB_NEXT);
            for (; code == 0 && rows.size() < wanted; code = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
                const std::string_view row_key = as_view(k);
                if (!row_key.starts_with(prefix)) {
                    code = MDB_NOTFOUND;
                    break;
                }
                auto value = unframe_value(row_key, as_view(v));
                if (!value && skip_damaged) continue;
                if (!value) {
                    Error error{ErrorCode::state_damaged, name_of(table, row_key) + ": the checksum does not hold", ""};
                    mdb_cursor_close(cursor);
                    return error;
                }
                rows.emplace_back(row_key, std::move(*value));
            }
            mdb_cursor_close(cursor);
            if (code != 0 && code != MDB_NOTFOUND) return failed("scanning", code);
        }
        for (const auto& [row_key, value] : rows)
            if (!visit(row_key, value)) return {};
        if (rows.size() < wanted) return {};
        limit -= rows.size();
        next = rows.back().first;
        after = true;
    }
    return {};
}

Result<std::optional<std::string>> LmdbState::scan_shard(
    ShardId shard, std::string_view meta_key,
    const std::function<Result<void>(Table, std::string_view, std::string_view)>& visit) const {
    const Reader reader(*this);
    if (!reader.txn()) return {ErrorCode::internal, "no reader slot in the state", ""};
    for (const Table table : shard_tables) {
        MDB_cursor* cursor = nullptr;
        int code = mdb_cursor_open(reader.txn(), tables_[static_cast<size_t>(table)], &cursor);
        if (code != 0) return failed("scanning", code);
        const std::string first = shard_prefix(shard);
        // Timers come in order of time: theirs is the one table where a shard's rows are not together.
        const bool together = table != Table::due;
        MDB_val k = as_val(first), v;
        code = mdb_cursor_get(cursor, &k, &v, together ? MDB_SET_RANGE : MDB_FIRST);
        Result<void> visited;
        for (; code == 0 && visited; code = mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
            const std::string_view key = as_view(k);
            if (together && !key.starts_with(first)) break;
            if (!in_shard(table, key, shard)) continue;
            auto value = unframe_value(key, as_view(v));
            if (!value)
                visited = Error{ErrorCode::state_damaged, name_of(table, key) + ": the checksum does not hold", ""};
            else
                visited = visit(table, key, *value);
        }
        mdb_cursor_close(cursor);
        if (!visited) return visited.error();
        if (code != 0 && code != MDB_NOTFOUND) return failed("scanning", code);
    }
    MDB_val k = as_val(meta_key), v;
    const int code = mdb_get(reader.txn(), tables_[static_cast<size_t>(Table::meta)], &k, &v);
    if (code == MDB_NOTFOUND) return std::optional<std::string>();
    if (code != 0) return failed("reading", code);
    auto value = unframe_value(meta_key, as_view(v));
    if (!value) return {ErrorCode::state_damaged, name_of(Table::meta, meta_key) + ": the checksum does not hold", ""};
    return std::optional<std::string>(std::move(*value));
}

LmdbTableStat LmdbState::stat(Table table) const {
    const Reader reader(*this);
    MDB_stat info{};
    if (!reader.txn() || mdb_stat(reader.txn(), tables_[static_cast<size_t>(table)], &info) != 0) return {};
    return {info.ms_entries, info.ms_leaf_pages, info.ms_branch_pages, info.ms_overflow_pages, info.ms_psize};
}

uint64_t LmdbState::used_bytes() const {
    std::shared_lock lock(env_mutex_);
    MDB_envinfo info{};
    MDB_stat stat{};
    if (mdb_env_info(env_, &info) != 0 || mdb_env_stat(env_, &stat) != 0) return 0;
    return (info.me_last_pgno + 1) * stat.ms_psize;
}

// --- writing ------------------------------------------------------------------------------------------------------

Result<void> LmdbState::apply(std::vector<RowOp>& rows) {
    MDB_txn* txn = nullptr;
    if (const int code = mdb_txn_begin(env_, nullptr, 0, &txn)) {
        die("beginning a transaction", code);
        return failed("beginning a transaction", code);
    }
    auto written = write(txn, rows);
    if (!written) {
        mdb_txn_abort(txn);
        return written.error();
    }
    if (const int code = mdb_txn_commit(txn)) {
        if (code == MDB_MAP_FULL) return failed("committing", code);
        die("committing", code);
        return failed("committing", code);
    }
    commits_.fetch_add(1, std::memory_order_relaxed);
    syncs_.fetch_add(2, std::memory_order_relaxed);  // data pages, then the meta page by a synchronous write
    rows_.fetch_add(rows.size(), std::memory_order_relaxed);
    return {};
}

Result<void> LmdbState::write(MDB_txn* txn, std::vector<RowOp>& rows) {
    // Sorted, so that neighbours are written together and LMDB fills its pages from left to right.
    std::stable_sort(rows.begin(), rows.end(), [](const RowOp& a, const RowOp& b) {
        if (a.table != b.table) return a.table < b.table;
        if (a.prefix != b.prefix) return a.prefix;
        return a.key < b.key;
    });
    std::array<MDB_cursor*, table_count> cursors{};
    struct Late {
        const RowOp* row;
        std::string framed;
    };
    std::vector<Late> late;
    bool hold_back = false;
    int code = 0;
    const auto put = [&](const RowOp& row, const std::string& framed) {
        MDB_val k = as_val(row.key), v = as_val(framed);
        code = mdb_cursor_put(cursors[static_cast<size_t>(row.table)], &k, &v, 0);
    };
    // When a row goes behind the last one of a full page, LMDB moves that last one along to the new page. Where two
    // rows fill a page, ascending order would so leave one in each. Every second row therefore comes later, between
    // its neighbours, into the half that was left.
    const auto put_late = [&] {
        for (size_t i = 0; i < late.size() && code == 0; ++i) put(*late[i].row, late[i].framed);
        late.clear();
        hold_back = false;
    };
    for (size_t i = 0; i < rows.size() && code == 0; ++i) {
        const RowOp& row = rows[i];
        INVARIANT((row.prefix || row.key.size() % 8 == 0) && row.key.size() <= 511,
                  "row keys are multiples of 8, at most 511 bytes");
        MDB_cursor*& cursor = cursors[static_cast<size_t>(row.table)];
        if (!cursor) code = mdb_cursor_open(txn, tables_[static_cast<size_t>(row.table)], &cursor);
        if (code != 0) break;
        if (!late.empty() && late.back().row->table != row.table) put_late();
        MDB_val k = as_val(row.key), v;
        if (row.prefix) {
            INVARIANT(!row.value, "a prefix is only ever deleted");
            code = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
            while (code == 0 && as_view(k).starts_with(row.key)) {
                code = mdb_cursor_del(cursor, 0);
                // Deletion may merge pages; looking up again is cheap next to a deletion and always right.
                k = as_val(row.key);
                if (code == 0) code = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
            }
            if (code == MDB_NOTFOUND) code = 0;
            continue;
        }
        if (i + 1 < rows.size() && rows[i + 1].table == row.table && !rows[i + 1].prefix && rows[i + 1].key == row.key)
            continue;  // the last one counts
        if (!row.value) {
            code = mdb_cursor_get(cursor, &k, &v, MDB_SET);
            if (code == 0) code = mdb_cursor_del(cursor, 0);
            if (code == MDB_NOTFOUND) code = 0;
            continue;
        }
        std::string framed = frame_value(row.key, *row.value);
        const size_t node = row.key.size() + framed.size() + node_overhead;
        const bool half_page = node > page_room / 3 && node <= page_room / 2;
        if (half_page && hold_back) {
            late.push_back({&row, std::move(framed)});
            hold_back = false;
            continue;
        }
        hold_back = half_page;
        if (code == 0) put(row, framed);
    }
    if (code == 0) put_late();
    for (MDB_cursor* cursor : cursors)
        if (cursor) mdb_cursor_close(cursor);
    if (code == 0) return {};
    if (code != MDB_MAP_FULL) die("writing rows", code);
    return failed("writing rows", code);
}

Result<void> LmdbState::erase_deleted() {
    // The buffers in which LMDB built earlier pages are reused without being cleared, and the gaps of later pages would
    // show what they held: a fresh environment starts with fresh buffers.
    {
        std::unique_lock lock(env_mutex_);
        close_environment();
        if (auto opened = open_environment(); !opened) {
            die("reopening after a deletion", EIO);
            return opened;
        }
    }
    for (int i = 0; i < 4; ++i) {
        std::string count(8, '\0');
        ++erase_count_;
        std::memcpy(count.data(), &erase_count_, sizeof erase_count_);
        std::vector<RowOp> rows;
        rows.push_back({Table::meta, std::string("erased\0\0", 8), std::move(count), false});
        if (auto applied = apply(rows); !applied) return applied;
    }
    return erase_unused_bytes(env_);
}

}  // namespace mainstay
