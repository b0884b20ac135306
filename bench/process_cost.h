#pragma once
// What a server costs, read from outside: CPU and memory of its process tree from /proc, bytes that reached the block
// device from /proc/diskstats, and what its data directory occupies. The device counters contain what other programs
// wrote and what the file system wrote about it: an upper bound. /proc/PID/io is not used, it over-counts on kernels
// with large folios. Plain functions, called by one thread between the phases of a measurement.

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace mainstay::bench {

inline std::string file_text(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

/// The process and all its living descendants (tool servers are children of the daemon).
inline std::vector<int> process_tree(int root) {
    std::vector<int> found{root};
    for (size_t i = 0; i < found.size(); ++i) {
        std::error_code error;
        std::string tasks = "/proc/" + std::to_string(found[i]) + "/task";
        for (const auto& task : std::filesystem::directory_iterator(tasks, error)) {
            std::istringstream children(file_text(task.path().string() + "/children"));
            for (int child = 0; children >> child;) found.push_back(child);
        }
    }
    return found;
}

/// User and system time of the tree in milliseconds, all threads; of the root also its reaped children. 10 ms steps.
inline double tree_cpu_ms(int root) {
    const double ms_per_tick = 1000.0 / static_cast<double>(::sysconf(_SC_CLK_TCK));
    double total = 0;
    for (int pid : process_tree(root)) {
        std::string stat = file_text("/proc/" + std::to_string(pid) + "/stat");
        size_t paren = stat.rfind(')');  // the name before it may contain spaces
        if (paren == std::string::npos) continue;
        std::istringstream fields(stat.substr(paren + 1));
        std::string skipped;
        for (int i = 0; i < 11; ++i) fields >> skipped;  // state .. cmajflt
        double user = 0, system = 0, reaped_user = 0, reaped_system = 0;
        fields >> user >> system >> reaped_user >> reaped_system;
        total += user + system;
        if (pid == root) total += reaped_user + reaped_system;
    }
    return total * ms_per_tick;
}

struct MemoryKilobytes {
    uint64_t pss = 0;
    uint64_t anonymous = 0;
};

inline MemoryKilobytes tree_memory(int root) {
    MemoryKilobytes total;
    for (int pid : process_tree(root)) {
        std::istringstream rollup(file_text("/proc/" + std::to_string(pid) + "/smaps_rollup"));
        for (std::string line; std::getline(rollup, line);) {
            std::istringstream fields(line);
            std::string name;
            uint64_t kilobytes = 0;
            fields >> name >> kilobytes;
            if (name == "Pss:") total.pss += kilobytes;
            if (name == "Anonymous:") total.anonymous += kilobytes;
        }
    }
    return total;
}

/// Bytes written so far to the block device that holds `path`, after everything dirty on it was flushed. Nothing where
/// the device is not a plain one (overlay, network).
inline std::optional<uint64_t> device_bytes_written(const std::string& path) {
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return std::nullopt;
    struct stat info {};
    bool flushed = ::fstat(fd, &info) == 0 && ::syncfs(fd) == 0;
    ::close(fd);
    if (!flushed) return std::nullopt;
    std::istringstream devices(file_text("/proc/diskstats"));
    for (std::string line; std::getline(devices, line);) {
        std::istringstream fields(line);
        unsigned major_number = 0, minor_number = 0;
        std::string name;
        uint64_t reads = 0, reads_merged = 0, sectors_read = 0, ms_reading = 0, writes = 0, writes_merged = 0,
                 sectors = 0;
        fields >> major_number >> minor_number >> name >> reads >> reads_merged >> sectors_read >> ms_reading >>
            writes >> writes_merged >> sectors;
        if (major_number == major(info.st_dev) && minor_number == minor(info.st_dev)) return sectors * 512;
    }
    return std::nullopt;
}

/// Allocated (not apparent) bytes of a directory, by its direct entries. A file that vanishes meanwhile counts as none.
inline std::map<std::string, uint64_t> allocated_bytes(const std::string& directory) {
    std::map<std::string, uint64_t> total;
    std::error_code error;
    for (auto it = std::filesystem::recursive_directory_iterator(directory, error);
         it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
        struct stat info {};
        if (::lstat(it->path().c_str(), &info) != 0) continue;
        auto relative = std::filesystem::relative(it->path(), directory, error);
        if (!relative.empty()) total[relative.begin()->string()] += static_cast<uint64_t>(info.st_blocks) * 512;
    }
    return total;
}

inline double own_cpu_ms() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    auto ms = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) * 1000.0 + static_cast<double>(t.tv_usec) / 1000.0;
    };
    return ms(usage.ru_utime) + ms(usage.ru_stime);
}

}  // namespace mainstay::bench
