#include "runtime/store/shard_rows.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

constexpr size_t row_header_bytes = 12, trailer_bytes = 24;
constexpr uint8_t trailer_mark = 0xff;
constexpr size_t part_bytes = limits::replication_snapshot_part_bytes_max;

Error failed(const char* what) {
    const int code = errno;
    return {code == ENOSPC || code == EDQUOT ? ErrorCode::storage_full : ErrorCode::internal,
            std::string(what) + " a snapshot's file: " + std::strerror(code),
            {}};
}

Result<int> open_unnamed(const std::filesystem::path& directory) {
    std::error_code made;
    std::filesystem::create_directories(directory, made);
    std::string name = (directory / "rows.XXXXXX").string();
    const int file = ::mkostemp(name.data(), O_CLOEXEC);
    if (file < 0) return failed("making");
    ::unlink(name.c_str());
    return file;
}

Result<void> write_all(int file, std::string_view bytes, uint64_t at) {
    while (!bytes.empty()) {
        const ssize_t wrote = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(at));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return failed("writing");
        bytes.remove_prefix(static_cast<size_t>(wrote));
        at += static_cast<uint64_t>(wrote);
    }
    return {};
}

Result<std::string> read_all(int file, uint64_t at, size_t size) {
    std::string out(size, '\0');
    for (size_t got = 0; got < size;) {
        const ssize_t read = ::pread(file, out.data() + got, size - got, static_cast<off_t>(at + got));
        if (read < 0 && errno == EINTR) continue;
        if (read <= 0) return failed("reading");
        got += static_cast<size_t>(read);
    }
    return out;
}

template <class T>
void put_number(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
T number_at(std::string_view in, size_t at) {
    T value;
    std::memcpy(&value, in.data() + at, sizeof value);
    return value;
}

class SpooledSnapshot final : public ShardSnapshot {
  public:
    SpooledSnapshot(int file, uint64_t bytes, const LogPosition& position)
        : file_(file), bytes_(bytes), position_(position) {}
    ~SpooledSnapshot() override { ::close(file_); }
    LogPosition position() const override { return position_; }
    uint32_t parts() const override { return static_cast<uint32_t>((bytes_ + part_bytes - 1) / part_bytes); }
    Result<std::string> read(uint32_t part) override {
        const uint64_t at = uint64_t(part) * part_bytes;
        if (at >= bytes_) return {ErrorCode::internal, "a snapshot has no such part", {}};
        return read_all(file_, at, static_cast<size_t>(std::min<uint64_t>(part_bytes, bytes_ - at)));
    }

  private:
    const int file_;
    const uint64_t bytes_;
    const LogPosition position_;
};

}  // namespace

std::string shard_prefix(ShardId shard) {
    return {static_cast<char>(shard.value >> 8), static_cast<char>(shard.value)};
}

bool in_shard(Table table, std::string_view key, ShardId shard) {
    if (table == Table::due) key.remove_prefix(std::min<size_t>(8, key.size()));
    return table != Table::meta && key.starts_with(shard_prefix(shard));
}

// --- writing --------------------------------------------------------------------------------------------------------

Result<std::unique_ptr<ShardRowsWriter>> ShardRowsWriter::create(const std::filesystem::path& directory) {
    const auto file = open_unnamed(directory);
    if (!file) return file.error();
    return std::unique_ptr<ShardRowsWriter>(new ShardRowsWriter(*file));
}

ShardRowsWriter::~ShardRowsWriter() {
    if (file_ >= 0) ::close(file_);
}

Result<void> ShardRowsWriter::put(std::string_view bytes) {
    buffer_ += bytes;
    return buffer_.size() < part_bytes ? Result<void>() : flush();
}

Result<void> ShardRowsWriter::flush() {
    if (auto written = write_all(file_, buffer_, bytes_); !written) return written;
    bytes_ += buffer_.size();
    buffer_.clear();
    return {};
}

Result<void> ShardRowsWriter::add(Table table, std::string_view key, std::string_view value) {
    std::string row;
    row.reserve(row_header_bytes + key.size() + value.size());
    put_number(row, static_cast<uint32_t>(table));
    put_number(row, static_cast<uint32_t>(key.size()));
    put_number(row, static_cast<uint32_t>(value.size()));
    row += key;
    row += value;
    digest_ = xxh64(row, digest_);
    ++rows_;
    return put(row);
}

Result<std::unique_ptr<ShardSnapshot>> ShardRowsWriter::finish(const LogPosition& position) && {
    std::string trailer;
    put_number(trailer, static_cast<uint32_t>(trailer_mark));
    put_number(trailer, uint32_t{0});
    put_number(trailer, rows_);
    put_number(trailer, digest_);
    if (auto written = put(trailer); !written) return written.error();
    if (auto written = flush(); !written) return written.error();
    return std::unique_ptr<ShardSnapshot>(
        std::make_unique<SpooledSnapshot>(std::exchange(file_, -1), bytes_, position));
}

// --- reading --------------------------------------------------------------------------------------------------------

Result<std::unique_ptr<ShardRowsReader>> ShardRowsReader::create(const std::filesystem::path& directory) {
    const auto file = open_unnamed(directory);
    if (!file) return file.error();
    return std::unique_ptr<ShardRowsReader>(new ShardRowsReader(*file));
}

ShardRowsReader::~ShardRowsReader() { ::close(file_); }

Result<void> ShardRowsReader::add(std::string_view part) {
    if (auto written = write_all(file_, part, bytes_); !written) return written;
    bytes_ += part.size();
    return {};
}

Result<std::vector<RowOp>> ShardRowsReader::rows() {
    const Error damaged{ErrorCode::state_damaged, "a snapshot's rows are cut or damaged", {}};
    if (bytes_ < trailer_bytes) return damaged;
    void* const mapped = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file_, 0);
    if (mapped == MAP_FAILED) return failed("mapping");
    std::string_view in(static_cast<const char*>(mapped), bytes_);
    std::vector<RowOp> out;
    uint64_t digest = 0;
    bool whole = false;
    while (in.size() >= row_header_bytes) {
        const auto table = number_at<uint32_t>(in, 0);
        if (table == trailer_mark) {
            whole = in.size() == trailer_bytes && number_at<uint64_t>(in, 8) == out.size() &&
                    number_at<uint64_t>(in, 16) == digest;
            break;
        }
        const auto key_bytes = number_at<uint32_t>(in, 4), value_bytes = number_at<uint32_t>(in, 8);
        const uint64_t size = row_header_bytes + uint64_t(key_bytes) + value_bytes;
        if (table >= table_count || table == static_cast<uint32_t>(Table::meta) || size > in.size()) break;
        digest = xxh64(in.substr(0, size), digest);
        out.push_back({static_cast<Table>(table), std::string(in.substr(row_header_bytes, key_bytes)),
                       std::string(in.substr(row_header_bytes + key_bytes, value_bytes)), false});
        in.remove_prefix(size);
    }
    ::munmap(mapped, bytes_);
    if (!whole) return damaged;
    return out;
}

}  // namespace mainstay
