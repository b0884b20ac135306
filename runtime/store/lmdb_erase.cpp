#include "runtime/store/lmdb_erase.h"

#include <lmdb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

// The page format below is that of LMDB 0.9 on a 64-bit little-endian machine (data version 1). Whatever does not look
// exactly like it stops the erasure before anything is written to that page.

namespace mainstay {
namespace {

constexpr uint16_t page_branch = 0x01, page_leaf = 0x02, page_overflow = 0x04;
constexpr uint16_t node_big = 0x01, node_tree = 0x02;
constexpr uint32_t meta_magic = 0xBEEFC0DE;
constexpr size_t page_header = 16, node_header = 8, tree_bytes = 48, tree_root_at = 40;
constexpr uint64_t no_page = ~0ull;
constexpr unsigned depth_max = 64;

template <class T>
T get(const char* in, size_t at) {
    T value;
    std::memcpy(&value, in + at, sizeof value);
    return value;
}

bool all_zero(const char* bytes, size_t count) {
    return count == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, count - 1) == 0);
}

class Eraser {
  public:
    Eraser(int fd, size_t page_bytes) : fd_(fd), page_bytes_(page_bytes), page_(page_bytes), zeros_(page_bytes) {}

    Result<void> run(MDB_txn* txn, uint64_t last_txn) {
        if (auto free = erase_free(txn, last_txn); !free) return free;
        uint64_t root_free = no_page, root_main = no_page, last_page = 0;
        if (!newest_meta(last_txn, root_free, root_main, last_page))
            return odd(0, "no meta page of the last transaction");
        if (auto walked = walk(root_free, 0); !walked) return walked;
        if (auto walked = walk(root_main, 0); !walked) return walked;
        return erase_beyond(last_page);
    }

  private:
    static Error odd(uint64_t page, const std::string& what) {
        return {ErrorCode::state_damaged, "state page " + std::to_string(page) + ": " + what, ""};
    }

    bool read(uint64_t page, char* out) const {
        return ::pread(fd_, out, page_bytes_, static_cast<off_t>(page * page_bytes_)) ==
               static_cast<ssize_t>(page_bytes_);
    }

    Result<void> erase(uint64_t page, size_t from, size_t to, const char* present) {
        if (from >= to || all_zero(present + from, to - from)) return {};
        const auto wrote = ::pwrite(fd_, zeros_.data(), to - from, static_cast<off_t>(page * page_bytes_ + from));
        if (wrote != static_cast<ssize_t>(to - from))
            return odd(page, std::string("cannot be erased: ") + strerror(errno));
        return {};
    }

    bool newest_meta(uint64_t last_txn, uint64_t& root_free, uint64_t& root_main, uint64_t& last_page) {
        for (uint64_t page = 0; page < 2; ++page) {
            if (!read(page, page_.data())) return false;
            const char* meta = page_.data() + page_header;
            if (get<uint32_t>(meta, 0) != meta_magic || get<uint32_t>(meta, 4) != 1) return false;
            if (get<uint64_t>(meta, 128) != last_txn) continue;
            root_free = get<uint64_t>(meta, 24 + tree_root_at);
            root_main = get<uint64_t>(meta, 24 + tree_bytes + tree_root_at);
            last_page = get<uint64_t>(meta, 120);
            return true;
        }
        return false;
    }

    /// Pages freed at least two transactions ago are in no tree that either meta page knows.
    Result<void> erase_free(MDB_txn* txn, uint64_t last_txn) {
        MDB_cursor* cursor = nullptr;
        if (mdb_cursor_open(txn, 0, &cursor) != 0) return odd(0, "the free list cannot be read");
        MDB_val key, value;
        Result<void> result;
        while (result && mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
            const uint64_t freed_in = get<uint64_t>(static_cast<const char*>(key.mv_data), 0);
            const char* list = static_cast<const char*>(value.mv_data);
            const uint64_t count = get<uint64_t>(list, 0);
            if (value.mv_size < (count + 1) * 8) {
                result = odd(0, "a free list entry is short");
                break;
            }
            for (uint64_t i = 1; result && i <= count; ++i) {
                const uint64_t page = get<uint64_t>(list, i * 8);
                if (!read(page, page_.data())) continue;  // allocated, never written: beyond the end of the file
                result = freed_in + 2 <= last_txn ? erase(page, 0, page_bytes_, page_.data()) : erase_gap(page);
            }
        }
        mdb_cursor_close(cursor);
        return result;
    }

    /// page_ holds a page that the last transactions gave up: a meta page may still lead to it, so its nodes stay.
    Result<void> erase_gap(uint64_t page) {
        const auto flags = get<uint16_t>(page_.data(), 10);
        const auto lower = get<uint16_t>(page_.data(), 12), upper = get<uint16_t>(page_.data(), 14);
        if (get<uint64_t>(page_.data(), 0) != page || ((flags & 0x0f) != page_leaf && (flags & 0x0f) != page_branch))
            return {};
        if (lower < page_header || lower > upper || upper > page_bytes_) return {};
        return erase(page, lower, upper, page_.data());
    }

    Result<void> walk(uint64_t page, unsigned depth) {
        if (page == no_page) return {};
        if (depth > depth_max) return odd(page, "the tree is too deep");
        std::vector<char> bytes(page_bytes_);
        if (!read(page, bytes.data())) return odd(page, "cannot be read");
        const char* p = bytes.data();
        const auto kind = static_cast<uint16_t>(get<uint16_t>(p, 10) & 0x0f);
        const auto lower = get<uint16_t>(p, 12), upper = get<uint16_t>(p, 14);
        if (get<uint64_t>(p, 0) != page || (kind != page_branch && kind != page_leaf) || lower < page_header ||
            lower > upper || upper > page_bytes_)
            return odd(page, "is no page of a tree");
        if (auto erased = erase(page, lower, upper, p); !erased) return erased;
        for (size_t at = page_header; at < lower; at += 2) {
            const size_t node = get<uint16_t>(p, at);
            if (node + node_header > page_bytes_) return odd(page, "has a node outside of itself");
            const uint64_t low = get<uint16_t>(p, node), high = get<uint16_t>(p, node + 2);
            const auto flags = get<uint16_t>(p, node + 4);
            if (kind == page_branch) {
                if (auto walked = walk(low | high << 16 | uint64_t{flags} << 32, depth + 1); !walked) return walked;
                continue;
            }
            const size_t data = node + node_header + get<uint16_t>(p, node + 6);
            const uint64_t size = low | high << 16;
            if (flags & node_big) {
                if (data + 8 > page_bytes_) return odd(page, "has a node outside of itself");
                if (auto erased = erase_overflow(get<uint64_t>(p, data), size); !erased) return erased;
            } else if (flags & node_tree) {
                if (data + tree_bytes > page_bytes_) return odd(page, "has a node outside of itself");
                if (auto walked = walk(get<uint64_t>(p, data + tree_root_at), depth + 1); !walked) return walked;
            }
        }
        return {};
    }

    /// The last page of a large value keeps older bytes behind the value's end.
    Result<void> erase_overflow(uint64_t first, uint64_t size) {
        if (!read(first, page_.data())) return odd(first, "cannot be read");
        const auto flags = get<uint16_t>(page_.data(), 10);
        const uint64_t pages = get<uint32_t>(page_.data(), 12);
        if (get<uint64_t>(page_.data(), 0) != first || (flags & 0x0f) != page_overflow ||
            pages * page_bytes_ < page_header + size)
            return odd(first, "is no value's page");
        for (uint64_t i = (page_header + size) / page_bytes_; i < pages; ++i) {
            const uint64_t used = page_header + size;
            const size_t from = used > i * page_bytes_ ? static_cast<size_t>(used - i * page_bytes_) : 0;
            if (!read(first + i, page_.data())) return odd(first + i, "cannot be read");
            if (auto erased = erase(first + i, from, page_bytes_, page_.data()); !erased) return erased;
        }
        return {};
    }

    Result<void> erase_beyond(uint64_t last_page) {
        struct ::stat info;
        if (::fstat(fd_, &info) != 0) return odd(last_page, "the file cannot be examined");
        const uint64_t pages = static_cast<uint64_t>(info.st_size) / page_bytes_;
        for (uint64_t page = last_page + 1; page < pages; ++page) {
            if (!read(page, page_.data())) return odd(page, "cannot be read");
            if (auto erased = erase(page, 0, page_bytes_, page_.data()); !erased) return erased;
        }
        return {};
    }

    const int fd_;
    const size_t page_bytes_;
    std::vector<char> page_;
    const std::vector<char> zeros_;
};

}  // namespace

Result<void> erase_unused_bytes(MDB_env* env) {
    mdb_filehandle_t fd = -1;
    MDB_stat stat{};
    MDB_txn* txn = nullptr;
    if (mdb_env_get_fd(env, &fd) != 0 || mdb_env_stat(env, &stat) != 0 ||
        mdb_txn_begin(env, nullptr, MDB_RDONLY, &txn) != 0)
        return {ErrorCode::internal, "the state is not open", ""};
    auto erased = Eraser(fd, stat.ms_psize).run(txn, mdb_txn_id(txn));
    mdb_txn_abort(txn);
    if (!erased) return erased;
    if (::fdatasync(fd) != 0) return {ErrorCode::internal, std::string("sync after erasing: ") + strerror(errno), ""};
    return {};
}

}  // namespace mainstay
