#include "cluster/local_coordinator.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "runtime/base/digest.h"

namespace mainstay {
namespace {

constexpr uint64_t format_version = 1;
constexpr size_t slot_bytes = 4096;  // a slot never shares a sector with the other
constexpr size_t slots = 2;
constexpr int incarnation_random_bits = 22;  // 42 of milliseconds: to the year 2109
constexpr std::string_view identity_magic = "mainstay-identity", epoch_magic = "mainstay-epoch";

class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return fd_; }
    bool ok() const { return fd_ >= 0; }
    int release() { return std::exchange(fd_, -1); }

  private:
    int fd_;
};

Error failed(const std::string& what, const std::string& path) {
    const int why = errno;
    return {why == ENOSPC || why == EDQUOT ? ErrorCode::storage_full : ErrorCode::invalid_request,
            path + ": " + what + ": " + std::strerror(why),
            {}};
}

Error damaged(const std::string& path, const std::string& what) {
    return {ErrorCode::state_damaged, path + ": " + what, {}};
}

bool write_all(int fd, std::string_view bytes, off_t at) {
    while (!bytes.empty()) {
        const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), at);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        bytes.remove_prefix(static_cast<size_t>(written));
        at += written;
    }
    return true;
}

/// At most `max` bytes from the start; nothing if it cannot be read.
std::optional<std::string> read_all(int fd, size_t max) {
    std::string out(max, '\0');
    size_t have = 0;
    while (have < max) {
        const ssize_t got = ::pread(fd, out.data() + have, max - have, static_cast<off_t>(have));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return std::nullopt;
        if (got == 0) break;
        have += static_cast<size_t>(got);
    }
    out.resize(have);
    return out;
}

Result<void> sync_directory(const std::string& directory) {
    const Descriptor folder(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder.ok() || ::fsync(folder.get()) != 0) return failed("cannot be synced", directory);
    return {};
}

/// A file appears whole or not at all: written beside, synced, renamed, and the directory synced.
Result<void> create_file(const std::string& directory, const std::string& name, std::string_view bytes) {
    const std::string path = directory + "/" + name, beside = path + ".new";
    const Descriptor file(::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!file.ok()) return failed("cannot be made", beside);
    if (!write_all(file.get(), bytes, 0)) return failed("cannot be written", beside);
    if (::fsync(file.get()) != 0) return failed("cannot be synced", beside);
    if (::rename(beside.c_str(), path.c_str()) != 0) return failed("cannot be put in place", path);
    return sync_directory(directory);
}

// --- the lock
// -----------------------------------------------------------------------------------------------------------

std::string holder_of(int fd) {
    std::string text = read_all(fd, 64).value_or(std::string());
    text.erase(std::min(text.find_first_not_of("0123456789"), text.size()));
    return text.empty() ? "another process" : "process " + text;
}

Result<int> lock_directory(const std::string& directory) {
    const std::string path = directory + "/lock";
    Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file.ok()) return failed("cannot be opened", path);
    if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) return failed("cannot be locked", path);
        return {ErrorCode::conflict, directory + ": this data directory is in use by " + holder_of(file.get())};
    }
    // For people only, so a full disk does not matter. Padded: a shorter pid must not leave digits of a longer one.
    std::string pid = std::to_string(::getpid());
    pid.resize(20, ' ');
    (void)write_all(file.get(), pid + "\n", 0);
    return file.release();
}

// --- lines of "key value", ended by the checksum of what stands before --------------------------------------------

std::string with_checksum(std::string text) {
    const uint32_t sum = crc32c(text);
    char hex[9];
    std::snprintf(hex, sizeof hex, "%08x", sum);
    return text + "crc32c " + hex + "\n";
}

/// Takes "key value\n" from the front.
std::optional<std::string_view> take(std::string_view& text, std::string_view key) {
    if (!text.starts_with(key) || text.size() <= key.size() || text[key.size()] != ' ') return std::nullopt;
    const size_t end = text.find('\n');
    if (end == std::string_view::npos || end <= key.size()) return std::nullopt;
    const auto value = text.substr(key.size() + 1, end - key.size() - 1);
    text.remove_prefix(end + 1);
    return value;
}

template <class Number>
std::optional<Number> parse_number(std::optional<std::string_view> text, int base) {
    Number value{};
    if (!text) return std::nullopt;
    const auto [end, failure] = std::from_chars(text->data(), text->data() + text->size(), value, base);
    if (failure != std::errc{} || end != text->data() + text->size()) return std::nullopt;
    return value;
}

/// The text before the checksum line, if the checksum is right. Zero bytes after it are padding.
std::optional<std::string_view> checked(std::string_view text) {
    const size_t last = text.find("crc32c ");
    if (last == std::string_view::npos || (last != 0 && text[last - 1] != '\n')) return std::nullopt;
    auto tail = text.substr(last);
    const auto sum = parse_number<uint32_t>(take(tail, "crc32c"), 16);
    if (!sum || *sum != crc32c(text.substr(0, last))) return std::nullopt;
    return text.substr(0, last);
}

// --- identity
// -----------------------------------------------------------------------------------------------------------

std::optional<NodeUuid> parse_uuid(std::optional<std::string_view> text) {
    if (!text || text->size() != 36) return std::nullopt;
    std::string hex;
    for (const char c : *text)
        if (c != '-') hex += c;
    if (hex.size() != 32) return std::nullopt;
    NodeUuid out;
    for (size_t i = 0; i < out.size(); ++i) {
        const auto byte = parse_number<uint8_t>(std::string_view(hex).substr(2 * i, 2), 16);
        if (!byte) return std::nullopt;
        out[i] = *byte;
    }
    return to_text(out) == *text ? std::optional(out) : std::nullopt;
}

/// RFC 9562, version 4.
NodeUuid make_uuid(Random& random) {
    NodeUuid out;
    const uint64_t words[2] = {random.next(), random.next()};
    std::memcpy(out.data(), words, out.size());
    out[6] = static_cast<uint8_t>((out[6] & 0x0f) | 0x40);
    out[8] = static_cast<uint8_t>((out[8] & 0x3f) | 0x80);
    return out;
}

Result<ReplicaName> parse_identity(const std::string& path, std::string_view text) {
    // The format first: what a newer release wrote may have a checksum that this one does not know.
    auto rest = text;
    const auto version = parse_number<uint64_t>(take(rest, identity_magic), 10);
    if (version && *version > format_version)
        return damaged(path, "was written by a newer release (format " + std::to_string(*version) +
                                 ", this one knows " + std::to_string(format_version) + ")");
    const auto whole = checked(text);
    if (!whole || !version) return damaged(path, "is damaged: its checksum does not hold");
    const auto node = parse_uuid(take(rest, "node")), disk = parse_uuid(take(rest, "disk"));
    if (!node || !disk) return damaged(path, "is damaged: node or disk id is missing");
    return ReplicaName{*node, *disk};
}

// --- epoch ----------------------------------------------------------------------------------------------------------

std::string epoch_slot(uint64_t epoch, uint64_t incarnation) {
    char hex[17];
    std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(incarnation));
    std::string text = with_checksum(std::string(epoch_magic) + " " + std::to_string(format_version) + "\nepoch " +
                                     std::to_string(epoch) + "\nincarnation " + hex + "\n");
    text.resize(slot_bytes, '\0');
    return text;
}

struct Start {
    uint64_t epoch = 0, incarnation = 0;
};

std::optional<Start> parse_start(std::string_view slot) {
    auto text = checked(slot);
    if (!text) return std::nullopt;
    const auto version = parse_number<uint64_t>(take(*text, epoch_magic), 10);
    if (!version || *version > format_version) return std::nullopt;
    const auto epoch = parse_number<uint64_t>(take(*text, "epoch"), 10);
    const auto incarnation = parse_number<uint64_t>(take(*text, "incarnation"), 16);
    if (!epoch || !incarnation) return std::nullopt;
    return Start{*epoch, *incarnation};
}

/// A later start has a higher one, because peers refuse whoever was there before a life that they have seen. The clock
/// keeps that true where the directory is lost and made anew, the directory where the clock is set back.
uint64_t next_incarnation(uint64_t before, Random& random) {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    const auto ms = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(since).count());
    return std::max((ms << incarnation_random_bits) | random.below(uint64_t{1} << incarnation_random_bits), before + 1);
}

/// Makes another incarnation the owner of the next epoch, durably.
Result<Start> raise_epoch(const std::string& directory, Random& random) {
    const std::string path = directory + "/epoch";
    const Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!file.ok()) return failed("cannot be opened", path);
    const auto bytes = read_all(file.get(), slots * slot_bytes);
    if (!bytes) return failed("cannot be read", path);
    std::optional<Start> newest;
    size_t newest_slot = 0;
    for (size_t slot = 0; slot < slots && bytes->size() >= (slot + 1) * slot_bytes; ++slot) {
        const auto start = parse_start(std::string_view(*bytes).substr(slot * slot_bytes, slot_bytes));
        if (!start || (newest && start->epoch <= newest->epoch)) continue;
        newest = start;
        newest_slot = slot;
    }
    if (!newest) return damaged(path, "is damaged: no slot has an epoch with a checksum that holds");
    if (newest->epoch == UINT64_MAX) return damaged(path, "is damaged: there is no higher epoch");
    if (newest->incarnation == UINT64_MAX) return damaged(path, "is damaged: there is no higher incarnation");
    const Start next{newest->epoch + 1, next_incarnation(newest->incarnation, random)};
    const size_t next_slot = (newest_slot + 1) % slots;
    if (!write_all(file.get(), epoch_slot(next.epoch, next.incarnation), static_cast<off_t>(next_slot * slot_bytes)))
        return failed("cannot be written", path);
    if (::fsync(file.get()) != 0) return failed("cannot be synced", path);
    return next;
}

bool exists(const std::string& path) {
    struct stat unused;
    return ::stat(path.c_str(), &unused) == 0;
}

/// First start: both slots hold epoch 0, so that raising is the same code ever after. The identity comes last: where it
/// is, everything is.
Result<void> format_directory(const std::string& directory, Random& random) {
    if (!exists(directory + "/epoch"))
        if (auto made = create_file(directory, "epoch", epoch_slot(0, 0) + epoch_slot(0, 0)); !made) return made;
    const auto text = std::string(identity_magic) + " " + std::to_string(format_version) + "\nnode " +
                      to_text(make_uuid(random)) + "\ndisk " + to_text(make_uuid(random)) + "\n";
    return create_file(directory, "identity", with_checksum(text));
}

Result<ReplicaName> read_identity(const std::string& directory) {
    const std::string path = directory + "/identity";
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.ok()) return failed("cannot be opened", path);
    const auto text = read_all(file.get(), 4096);
    if (!text) return failed("cannot be read", path);
    return parse_identity(path, *text);
}

Result<void> make_directory(const std::string& directory) {
    if (::mkdir(directory.c_str(), 0700) == 0) {
        const size_t slash = directory.find_last_of('/');
        return sync_directory(slash == std::string::npos ? "." : slash == 0 ? "/" : directory.substr(0, slash));
    }
    struct stat found;
    if (errno != EEXIST) return failed("cannot be made", directory);
    if (::stat(directory.c_str(), &found) != 0 || !S_ISDIR(found.st_mode))
        return {ErrorCode::invalid_request, directory + ": is not a directory"};
    return {};
}

}  // namespace

Result<std::unique_ptr<LocalCoordinator>> LocalCoordinator::open(const std::string& given, Random& random) {
    std::string directory = given;
    while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
    if (auto made = make_directory(directory); !made) return made.error();
    auto locked = lock_directory(directory);
    if (!locked) return locked.error();
    Descriptor lock(*locked);
    if (!exists(directory + "/identity"))
        if (auto formatted = format_directory(directory, random); !formatted) return formatted.error();
    const auto self = read_identity(directory);
    if (!self) return self.error();
    const auto start = raise_epoch(directory, random);
    if (!start) return start.error();
    return std::unique_ptr<LocalCoordinator>(
        new LocalCoordinator(lock.release(), *self, Epoch(start->epoch), start->incarnation));
}

LocalCoordinator::~LocalCoordinator() { ::close(lock_); }

Result<ShardRecord> LocalCoordinator::ownership(ShardId shard) {
    ShardRecord record;
    record.shard = shard;
    record.epoch = epoch_;
    record.primary = self_;
    record.incarnation = incarnation_;
    record.in_sync = {self_};
    record.replicas = {self_.node};
    record.config_version = epoch_.value;
    return record;
}

}  // namespace mainstay
