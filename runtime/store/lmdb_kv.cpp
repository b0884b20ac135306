#include "runtime/store/lmdb_kv.h"

#include <lmdb.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

// crc32c of key and what follows, length of the bytes, order, identity, owner, tokens, zero; then the bytes.
constexpr size_t header_bytes = 72;
constexpr uint64_t page_bytes = 4096;
constexpr uint64_t page_header_bytes = 16;
static_assert(std::endian::native == std::endian::little);

struct Header {
    uint32_t crc = 0, bytes = 0;
    uint64_t order = 0;
    KeyHash identity{};
    uint64_t family = 0, high = 0, low = 0;
    uint32_t tenant = 0, tokens = 0, zero[2] = {0, 0};
};
static_assert(sizeof(Header) == header_bytes);

MDB_val as_val(std::string_view bytes) { return {bytes.size(), const_cast<char*>(bytes.data())}; }
std::string_view as_view(const MDB_val& val) { return {static_cast<const char*>(val.mv_data), val.mv_size}; }
std::string_view as_view(const KeyHash& hash) { return {reinterpret_cast<const char*>(hash.data()), hash.size()}; }

/// Pages that a value takes.
uint64_t room_of(size_t bytes) {
    return (bytes + header_bytes + page_header_bytes + page_bytes - 1) / page_bytes * page_bytes;
}

uint32_t checksum(std::string_view key, const Header& header, std::string_view bytes) {
    Header copy = header;
    copy.crc = 0;
    return crc32c(bytes, crc32c({reinterpret_cast<const char*>(&copy), sizeof copy}, crc32c(key)));
}

std::optional<Header> header_of(std::string_view value) {
    if (value.size() < header_bytes) return std::nullopt;
    Header header;
    std::memcpy(&header, value.data(), sizeof header);
    if (value.size() - header_bytes != header.bytes) return std::nullopt;
    return header;
}

Error failed(const LmdbKvConfig& config, std::string_view what, int code) {
    return {ErrorCode::storage_full,
            std::string(what) + " of the KV tier in " + config.directory.string() + " failed: " + mdb_strerror(code),
            ""};
}

}  // namespace

std::string current_boot_id() {
    std::ifstream in("/proc/sys/kernel/random/boot_id");
    std::string id;
    std::getline(in, id);
    return id;
}

size_t LmdbKv::HashOf::operator()(const KeyHash& hash) const noexcept {
    size_t out;
    std::memcpy(&out, hash.data(), sizeof out);
    return out;
}

LmdbKv::LmdbKv(LmdbKvConfig config) : config_(std::move(config)), identity_(key_hash("kv tier", config_.identity)) {}

LmdbKv::~LmdbKv() { close_environment(); }

void LmdbKv::close_environment() {
    if (env_) mdb_env_close(env_);
    env_ = nullptr;
}

Result<std::unique_ptr<LmdbKv>> LmdbKv::open(LmdbKvConfig config) {
    std::error_code error;
    std::filesystem::create_directories(config.directory, error);
    if (error) return {ErrorCode::storage_full, config.directory.string() + " cannot be made: " + error.message(), ""};
    std::unique_ptr<LmdbKv> kv(new LmdbKv(std::move(config)));
    const auto marker = kv->config_.directory / "boot_id";
    std::string last;
    {
        std::ifstream in(marker);
        std::getline(in, last);
    }
    const auto empty = [&] {
        for (const char* name : {"data.mdb", "lock.mdb"}) std::filesystem::remove(kv->config_.directory / name, error);
        kv->stats_.emptied = true;
    };
    // What was written before the machine went down may be half there in ways that no checksum of a value sees.
    const bool there = std::filesystem::exists(kv->config_.directory / "data.mdb", error);
    if (there && (last.empty() || last != kv->config_.boot_id)) empty();
    {
        std::ofstream out(marker, std::ios::trunc);
        out << kv->config_.boot_id << "\n";
        out.flush();
        if (!out) return {ErrorCode::storage_full, marker.string() + " cannot be written", ""};
    }
    auto opened = kv->open_environment();
    if (!opened) {
        kv->close_environment();
        kv->held_.clear();
        kv->by_age_.clear();
        kv->by_owner_.clear();
        kv->room_ = 0;
        empty();
        opened = kv->open_environment();
    }
    if (!opened) return opened.error();
    return kv;
}

Result<void> LmdbKv::open_environment() {
    int code = mdb_env_create(&env_);
    // Twice the bound: pages that are free are only reused by later transactions.
    const uint64_t map = std::min<uint64_t>(limits::kv_disk_map_bytes_max, config_.bytes_max * 2 + (64ull << 20));
    if (code == 0) code = mdb_env_set_mapsize(env_, size_t(map));
    if (code == 0)
        code = mdb_env_open(env_, config_.directory.c_str(), MDB_NOSYNC | MDB_NOMETASYNC | MDB_NORDAHEAD | MDB_NOTLS,
                            0600);
    MDB_txn* txn = nullptr;
    if (code == 0) code = mdb_txn_begin(env_, nullptr, 0, &txn);
    if (code == 0) {
        code = mdb_dbi_open(txn, nullptr, 0, &table_);
        if (code == 0) {
            code = mdb_txn_commit(txn);
        } else {
            mdb_txn_abort(txn);
        }
    }
    if (code == 0) code = load_index();
    if (code != 0) return failed(config_, "opening", code);
    return {};
}

/// Only headers are read; whether the bytes hold is checked when they are asked for.
int LmdbKv::load_index() {
    struct Row {
        uint64_t order;
        KeyHash hash;
        SessionKey owner;
        uint32_t tokens;
        uint64_t room;
        bool ours;
    };
    std::vector<Row> rows;
    std::vector<std::string> bad;
    MDB_txn* txn = nullptr;
    int code = mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn);
    if (code != 0) return code;
    MDB_cursor* cursor = nullptr;
    code = mdb_cursor_open(txn, table_, &cursor);
    if (code == 0) {
        MDB_val key, value;
        for (code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST); code == 0;
             code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
            const auto header = header_of(as_view(value));
            if (key.mv_size != sizeof(KeyHash) || !header) {
                bad.emplace_back(as_view(key));
                continue;
            }
            Row row{header->order,
                    {},
                    {TenantId{header->tenant}, SessionId{FamilyId{header->family}, header->high, header->low}},
                    header->tokens,
                    room_of(header->bytes),
                    header->identity == identity_};
            std::memcpy(row.hash.data(), key.mv_data, sizeof(KeyHash));
            rows.push_back(row);
        }
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    if (code != MDB_NOTFOUND) return code;
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.order < b.order; });
    for (const Row& row : rows) index(row.hash, row.owner, row.tokens, row.room, row.ours);
    if (!rows.empty()) order_ = rows.back().order;
    stats_.damaged += bad.size();
    if (bad.empty()) return 0;
    code = mdb_txn_begin(env_, nullptr, 0, &txn);
    if (code != 0) return code;
    for (const std::string& name : bad) {
        MDB_val key = as_val(name);
        mdb_del(txn, table_, &key, nullptr);
    }
    return mdb_txn_commit(txn);
}

void LmdbKv::index(const KeyHash& hash, const SessionKey& owner, uint32_t tokens, uint64_t room, bool ours) {
    unindex(hash);
    by_age_.push_back(hash);
    held_[hash] = {owner, tokens, room, ours, std::prev(by_age_.end())};
    by_owner_[owner].insert(hash);
    room_ += room;
}

void LmdbKv::unindex(const KeyHash& hash) {
    const auto found = held_.find(hash);
    if (found == held_.end()) return;
    by_age_.erase(found->second.place);
    room_ -= found->second.room;
    const auto owner = by_owner_.find(found->second.owner);
    owner->second.erase(hash);
    if (owner->second.empty()) by_owner_.erase(owner);
    held_.erase(found);
}

/// One transaction: `out` leaves, `blocks` come.
int LmdbKv::write(std::span<const KvBlock> blocks, const std::vector<KeyHash>& out) {
    MDB_txn* txn = nullptr;
    int code = mdb_txn_begin(env_, nullptr, 0, &txn);
    if (code != 0) return code;
    for (const KeyHash& hash : out) {
        MDB_val key = as_val(as_view(hash));
        if (code = mdb_del(txn, table_, &key, nullptr); code == MDB_NOTFOUND) code = 0;
        if (code != 0) break;
    }
    uint64_t order = order_;
    for (const KvBlock& block : blocks) {
        if (code != 0) break;
        Header header;
        header.bytes = uint32_t(block.bytes.size());
        header.order = ++order;
        header.identity = identity_;
        header.family = block.owner.session.family.value;
        header.high = block.owner.session.high;
        header.low = block.owner.session.low;
        header.tenant = block.owner.tenant.value;
        header.tokens = block.tokens;
        header.crc = checksum(as_view(block.hash), header, block.bytes);
        MDB_val key = as_val(as_view(block.hash)), value{header_bytes + block.bytes.size(), nullptr};
        code = mdb_put(txn, table_, &key, &value, MDB_RESERVE);
        if (code != 0) break;
        std::memcpy(value.mv_data, &header, sizeof header);
        if (!block.bytes.empty())
            std::memcpy(static_cast<char*>(value.mv_data) + header_bytes, block.bytes.data(), block.bytes.size());
    }
    if (code != 0) {
        mdb_txn_abort(txn);
        return code;
    }
    if (code = mdb_txn_commit(txn); code == 0) order_ = order;
    return code;
}

Result<std::vector<KeyHash>> LmdbKv::put(std::span<const KvBlock> blocks) {
    uint64_t wanted = 0;
    std::set<KeyHash> coming;
    for (const KvBlock& block : blocks) {
        if (block.bytes.size() > limits::kv_disk_value_bytes_max) {
            ++stats_.refused;
            return {ErrorCode::storage_full, "a KV block of " + std::to_string(block.bytes.size()) +
                                                 " bytes, at most " + std::to_string(limits::kv_disk_value_bytes_max) +
                                                 " (kv_disk_value_bytes_max)"};
        }
        coming.insert(block.hash);
        wanted += room_of(block.bytes.size());
    }
    if (wanted > config_.bytes_max) {
        ++stats_.refused;
        return {ErrorCode::storage_full, std::to_string(wanted) + " bytes of KV blocks, and the tier holds " +
                                             std::to_string(config_.bytes_max)};
    }
    std::vector<KeyHash> out;
    uint64_t room = room_;
    for (const KeyHash& hash : coming)
        if (const auto known = held_.find(hash); known != held_.end()) room -= known->second.room;
    auto oldest = by_age_.begin();
    const auto evict_one = [&] {
        while (oldest != by_age_.end() && coming.contains(*oldest)) ++oldest;
        if (oldest == by_age_.end()) return false;
        room -= held_.at(*oldest).room;
        out.push_back(*oldest++);
        return true;
    };
    while (room + wanted > config_.bytes_max && evict_one()) {
    }
    int code = write(blocks, out);
    if (code == MDB_MAP_FULL) {
        // Free pages are scattered: a larger gap is made, once.
        for (uint64_t freed = room; freed - room < 2 * wanted && evict_one();) {
        }
        code = write(blocks, out);
    }
    if (code != 0) {
        ++stats_.refused;
        return failed(config_, "writing", code);
    }
    for (const KeyHash& hash : out) unindex(hash);
    for (const KvBlock& block : blocks) index(block.hash, block.owner, block.tokens, room_of(block.bytes.size()), true);
    stats_.puts += blocks.size();
    stats_.evicted += out.size();
    return out;
}

std::optional<KvBlock> LmdbKv::get(const KeyHash& hash) {
    const auto found = held_.find(hash);
    if (found == held_.end()) {
        ++stats_.misses;
        return std::nullopt;
    }
    std::optional<KvBlock> out;
    bool foreign = false;
    MDB_txn* txn = nullptr;
    if (mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn) == 0) {
        MDB_val key = as_val(as_view(hash)), value;
        if (mdb_get(txn, table_, &key, &value) == 0) {
            const auto header = header_of(as_view(value));
            const std::string_view bytes = header ? as_view(value).substr(header_bytes) : std::string_view();
            if (header && header->crc == checksum(as_view(hash), *header, bytes)) {
                foreign = header->identity != identity_;
                if (!foreign) out = KvBlock{hash, found->second.owner, header->tokens, std::string(bytes)};
            }
        }
        mdb_txn_abort(txn);
    }
    if (out) {
        ++stats_.hits;
        by_age_.splice(by_age_.end(), by_age_, found->second.place);
        return out;
    }
    ++stats_.misses;
    ++(foreign ? stats_.foreign : stats_.damaged);
    erase(std::span(&hash, 1));
    return std::nullopt;
}

void LmdbKv::erase(std::span<const KeyHash> hashes) {
    std::vector<KeyHash> out(hashes.begin(), hashes.end());
    // Where even deleting fails the rows are not served any more in this run, and their values still guard themselves.
    write({}, out);
    for (const KeyHash& hash : out) unindex(hash);
}

std::vector<KeyHash> LmdbKv::drop_session(const SessionKey& owner) {
    const auto found = by_owner_.find(owner);
    if (found == by_owner_.end()) return {};
    const std::vector<KeyHash> out(found->second.begin(), found->second.end());
    erase(out);
    return out;
}

std::vector<KeyHash> LmdbKv::drop_tenant(TenantId tenant) {
    std::vector<KeyHash> out;
    for (auto at = by_owner_.lower_bound(SessionKey{tenant, SessionId{}});
         at != by_owner_.end() && at->first.tenant == tenant; ++at)
        out.insert(out.end(), at->second.begin(), at->second.end());
    if (!out.empty()) erase(out);
    return out;
}

void LmdbKv::visit(const std::function<void(const KvBlock&)>& each) const {
    for (const KeyHash& hash : by_age_) {
        const Held& held = held_.at(hash);
        if (held.ours) each(KvBlock{hash, held.owner, held.tokens, {}});
    }
}

LmdbKvStats LmdbKv::stats() const {
    LmdbKvStats out = stats_;
    out.blocks = held_.size();
    out.bytes = room_;
    return out;
}

}  // namespace mainstay
