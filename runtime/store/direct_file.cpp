#include "runtime/store/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

constexpr size_t memory_align = 4096;
constexpr size_t cached_block = 4096;
constexpr size_t zero_chunk = 1024 * 1024;
constexpr size_t read_chunk = 1024 * 1024;

/// The alignment that the file asks for, or 0 where the kernel does not tell.
size_t told_alignment(int fd) {
#ifdef STATX_DIOALIGN
    // By system call: the C library's struct statx may be older than the field.
    alignas(8) unsigned char raw[256] = {};
    if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, raw) == 0) {
        struct ::statx answer;
        static_assert(sizeof answer <= sizeof raw);
        std::memcpy(&answer, raw, sizeof answer);
        if ((answer.stx_mask & STATX_DIOALIGN) != 0 && answer.stx_dio_offset_align != 0)
            return std::max<size_t>(answer.stx_dio_offset_align, 512);
    }
#else
    (void)fd;
#endif
    return 0;
}

/// Where the kernel does not tell: a read of 512 bytes at 512 is refused if the device wants 4096.
size_t tried_alignment(int fd) {
    void* memory = nullptr;
    if (::posix_memalign(&memory, memory_align, memory_align) != 0) return 4096;
    const ssize_t got = ::pread(fd, memory, 512, 512);
    std::free(memory);
    return got < 0 ? 4096 : 512;
}

}  // namespace

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

void AlignedBuffer::reserve(size_t bytes) {
    if (bytes <= capacity_) return;
    size_t capacity = std::max(capacity_, memory_align);
    while (capacity < bytes) capacity *= 2;
    void* memory = nullptr;
    INVARIANT(::posix_memalign(&memory, memory_align, capacity) == 0, "memory for a journal group");
    if (data_ != nullptr) std::memcpy(memory, data_, capacity_);
    std::free(data_);
    data_ = static_cast<char*>(memory);
    capacity_ = capacity;
}

void AlignedBuffer::swap(AlignedBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
}

std::unique_ptr<DirectFile> DirectFile::open(const std::filesystem::path& path, bool create, bool direct, int& error) {
    const int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0);
    int fd = direct ? ::open(path.c_str(), flags | O_DIRECT, 0600) : -1;
    if (fd >= 0) {
        size_t block = told_alignment(fd);
        if (block == 0) block = tried_alignment(fd);
        if (block <= memory_align) {
            error = 0;
            return std::unique_ptr<DirectFile>(new DirectFile(fd, true, block));
        }
        ::close(fd);
    }
    fd = ::open(path.c_str(), flags, 0600);
    if (fd < 0) {
        error = errno;
        return nullptr;
    }
    error = 0;
    return std::unique_ptr<DirectFile>(new DirectFile(fd, false, cached_block));
}

DirectFile::~DirectFile() { ::close(fd_); }

int DirectFile::write(const char* data, size_t bytes, uint64_t offset) {
    return write2(data, bytes, nullptr, 0, offset);
}

int DirectFile::write2(const char* first, size_t first_bytes, const char* second, size_t second_bytes,
                       uint64_t offset) {
    size_t done = 0;
    const size_t total = first_bytes + second_bytes;
    while (done < total) {
        iovec parts[2];
        int count = 0;
        if (done < first_bytes) parts[count++] = {const_cast<char*>(first) + done, first_bytes - done};
        if (second_bytes > 0) {
            const size_t skip = done > first_bytes ? done - first_bytes : 0;
            parts[count++] = {const_cast<char*>(second) + skip, second_bytes - skip};
        }
        const ssize_t wrote = ::pwritev(fd_, parts, count, static_cast<off_t>(offset + done));
        if (wrote < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if (wrote == 0) return EIO;
        done += static_cast<size_t>(wrote);
        // The rest of a short write of an unaligned length could not be written directly any more.
        if (direct_ && done < total && done % block_ != 0) return EIO;
    }
    return 0;
}

int DirectFile::read(char* data, size_t bytes, uint64_t offset, size_t& got) {
    got = 0;
    while (got < bytes) {
        // In pieces: one direct read of a whole segment pins all of its memory first and takes four times as long.
        const size_t piece = std::min(bytes - got, read_chunk);
        const ssize_t n = ::pread(fd_, data + got, piece, static_cast<off_t>(offset + got));
        if (n < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if (n == 0) break;
        got += static_cast<size_t>(n);
        if (direct_ && got % block_ != 0) break;  // the end of a file of odd size
    }
    return 0;
}

int DirectFile::sync_data() { return ::fdatasync(fd_) == 0 ? 0 : errno; }
int DirectFile::sync_all() { return ::fsync(fd_) == 0 ? 0 : errno; }

int DirectFile::allocate(uint64_t bytes) {
    if (::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) == 0) return 0;
    return errno == EOPNOTSUPP ? 0 : errno;  // then write_zeros() allocates
}

int DirectFile::write_zeros(uint64_t offset, uint64_t bytes) {
    AlignedBuffer zeros(zero_chunk);
    std::memset(zeros.data(), 0, zero_chunk);
    for (uint64_t done = 0; done < bytes;) {
        const size_t part = static_cast<size_t>(std::min<uint64_t>(zero_chunk, bytes - done));
        if (const int error = write(zeros.data(), part, offset + done)) return error;
        done += part;
    }
    return 0;
}

uint64_t DirectFile::size() const {
    struct ::stat info;
    return ::fstat(fd_, &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

int sync_directory(const std::filesystem::path& directory) {
    const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno;
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    return error;
}

uint64_t free_bytes(const std::filesystem::path& path) {
    struct ::statvfs info;
    if (::statvfs(path.c_str(), &info) != 0) return 0;
    return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace mainstay
