#pragma once
// A file written past the page cache. The journal writes whole groups once and never reads them back while it runs, so
// the cache would only cost a copy and round each group up to a page. Where the file system refuses direct I/O (tmpfs)
// the same calls go through the cache with a block of 4 KiB. Owned by one thread at a time; errors are errno values.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

namespace mainstay {

/// Memory that direct I/O accepts: aligned to 4 KiB, grows by doubling, keeps its content.
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(size_t bytes) { reserve(bytes); }
    ~AlignedBuffer();
    AlignedBuffer(const AlignedBuffer&) = delete;
    AlignedBuffer& operator=(const AlignedBuffer&) = delete;
    void reserve(size_t bytes);
    void swap(AlignedBuffer& other) noexcept;
    char* data() { return data_; }
    const char* data() const { return data_; }
    size_t capacity() const { return capacity_; }

  private:
    char* data_ = nullptr;
    size_t capacity_ = 0;
};

class DirectFile {
  public:
    /// Opens for reading and writing; direct where `direct` and the file system allow it. Null and errno in `error`.
    static std::unique_ptr<DirectFile> open(const std::filesystem::path& path, bool create, bool direct, int& error);
    ~DirectFile();
    DirectFile(const DirectFile&) = delete;
    DirectFile& operator=(const DirectFile&) = delete;

    /// Writes must start, end and lie in memory at multiples of this.
    size_t block() const { return block_; }
    bool direct() const { return direct_; }
    /// 0 or errno. All of it or an error: a short write is EIO, except where the disk is full.
    int write(const char* data, size_t bytes, uint64_t offset);
    /// Two neighbouring ranges in one request.
    int write2(const char* first, size_t first_bytes, const char* second, size_t second_bytes, uint64_t offset);
    /// 0 or errno; `got` may be short at the end of the file.
    int read(char* data, size_t bytes, uint64_t offset, size_t& got);
    int sync_data();
    int sync_all();
    /// Reserves disk for [0, bytes): ENOSPC comes here, not in the middle. Still unwritten: write_zeros() follows, so
    /// that later writes change no metadata and one fdatasync is one flush.
    int allocate(uint64_t bytes);
    int write_zeros(uint64_t offset, uint64_t bytes);
    uint64_t size() const;

  private:
    DirectFile(int fd, bool direct, size_t block) : fd_(fd), direct_(direct), block_(block) {}
    const int fd_;
    const bool direct_;
    const size_t block_;
};

/// Makes created, renamed and removed names durable. 0 or errno.
int sync_directory(const std::filesystem::path& directory);
/// Free bytes for this process on the file system of `path`; 0 where it cannot be told.
uint64_t free_bytes(const std::filesystem::path& path);

}  // namespace mainstay
