#include "cluster/local_coordinator.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

using namespace mainstay;

namespace {

class Folder {
  public:
    Folder() {
        std::string path = (std::filesystem::temp_directory_path() / "mainstay-coordinator-XXXXXX").string();
        REQUIRE(mkdtemp(path.data()) != nullptr);
        root_ = path;
    }
    ~Folder() { std::filesystem::remove_all(root_); }
    Folder(const Folder&) = delete;
    std::string data() const { return root_ + "/data"; }
    std::string read(const std::string& name) const {
        std::ifstream in(data() + "/" + name, std::ios::binary);
        std::stringstream out;
        out << in.rdbuf();
        return out.str();
    }
    void write(const std::string& name, const std::string& bytes) const {
        std::ofstream(data() + "/" + name, std::ios::binary | std::ios::trunc) << bytes;
    }

  private:
    std::string root_;
};

SecureRandom kernel_random;

Result<std::unique_ptr<LocalCoordinator>> open(const Folder& folder) {
    return LocalCoordinator::open(folder.data(), kernel_random);
}

/// Another process that holds the directory until it is told to go (or is killed). Says its epoch through a pipe.
class Holder {
  public:
    explicit Holder(const Folder& folder) {
        int up[2], down[2];
        REQUIRE(pipe(up) == 0);
        REQUIRE(pipe(down) == 0);
        child_ = fork();
        REQUIRE(child_ >= 0);
        if (child_ == 0) {
            close(up[0]);
            close(down[1]);
            SecureRandom random;
            auto held = LocalCoordinator::open(folder.data(), random);
            const uint64_t epoch = held ? (*held)->epoch().value : 0;
            (void)!::write(up[1], &epoch, sizeof epoch);
            char byte;
            (void)!::read(down[0], &byte, 1);  // ends when the parent closes its side
            _exit(0);
        }
        close(up[1]);
        close(down[0]);
        hold_ = down[1];
        REQUIRE(::read(up[0], &epoch_, sizeof epoch_) == ssize_t(sizeof epoch_));
        close(up[0]);
    }
    ~Holder() { kill_now(); }
    Holder(const Holder&) = delete;
    void kill_now() {
        if (child_ <= 0) return;
        ::kill(child_, SIGKILL);
        waitpid(child_, nullptr, 0);
        close(hold_);
        child_ = 0;
    }
    uint64_t epoch() const { return epoch_; }
    pid_t pid() const { return child_; }

  private:
    pid_t child_ = 0;
    int hold_ = -1;
    uint64_t epoch_ = 0;
};

}  // namespace

TEST_CASE("local coordinator: each start raises the epoch by one and the incarnation, and keeps who the node is") {
    const Folder folder;
    ReplicaName self;
    uint64_t before = 0;
    for (uint64_t start = 1; start <= 5; ++start) {
        const auto opened = open(folder);
        REQUIRE_MESSAGE(opened.ok(), opened.error().message);
        auto& coordinator = **opened;
        CHECK(coordinator.epoch() == Epoch(start));
        if (start == 1) self = coordinator.self();
        CHECK(coordinator.self() == self);
        CHECK(coordinator.incarnation() > before);
        before = coordinator.incarnation();
        const auto record = coordinator.ownership(ShardId(17));
        REQUIRE(record.ok());
        CHECK(record->epoch == Epoch(start));
        CHECK(record->primary == self);
        CHECK(record->incarnation == coordinator.incarnation());
        CHECK(record->in_sync == std::vector<ReplicaName>{self});
    }
    // A directory that was lost and made anew is later too: only the clock knows.
    const Folder other;
    const auto again = open(other);
    REQUIRE(again.ok());
    CHECK((*again)->incarnation() > before);
    CHECK(self.node != self.disk);
    const std::string text = to_text(self.node);
    CHECK(text.size() == 36);
    CHECK(text[14] == '4');
    CHECK(folder.read("identity").find(text) != std::string::npos);
}

TEST_CASE("local coordinator: a second process is refused and told who holds the directory") {
    const Folder folder;
    Holder holder(folder);
    REQUIRE(holder.epoch() == 1);
    const auto refused = open(folder);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::conflict);
    CHECK(refused.error().message ==
          folder.data() + ": this data directory is in use by process " + std::to_string(holder.pid()));
    holder.kill_now();
    const auto opened = open(folder);
    REQUIRE_MESSAGE(opened.ok(), opened.error().message);
    // The refused attempt raised nothing.
    CHECK((*opened)->epoch() == Epoch(2));
}

TEST_CASE("local coordinator: a process that is killed leaves no lock, and its epoch is never used again") {
    const Folder folder;
    uint64_t last = 0;
    for (int i = 0; i < 5; ++i) {
        Holder holder(folder);
        REQUIRE(holder.epoch() == last + 1);
        last = holder.epoch();
    }
}

TEST_CASE("local coordinator: of many that start at once exactly one wins") {
    const Folder folder;
    constexpr int contenders = 8;
    int results[2], gate[2];
    REQUIRE(pipe(results) == 0);
    REQUIRE(pipe(gate) == 0);
    pid_t children[contenders];
    for (auto& child : children) {
        child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            close(gate[1]);
            SecureRandom random;
            auto opened = LocalCoordinator::open(folder.data(), random);
            const char won = opened.ok() ? 'w' : 'l';
            (void)!::write(results[1], &won, 1);
            char byte;
            (void)!::read(gate[0], &byte, 1);  // keeps what it has until all have tried
            _exit(0);
        }
    }
    int winners = 0;
    for (int i = 0; i < contenders; ++i) {
        char result = 0;
        REQUIRE(::read(results[0], &result, 1) == 1);
        winners += result == 'w';
    }
    CHECK(winners == 1);
    close(gate[0]);
    close(gate[1]);
    for (const auto child : children) waitpid(child, nullptr, 0);
    close(results[0]);
    close(results[1]);
    CHECK((*open(folder))->epoch() == Epoch(2));
}

TEST_CASE("local coordinator: a child program does not inherit the lock") {
    const Folder folder;
    int hold[2];
    REQUIRE(pipe(hold) == 0);
    pid_t child = 0;
    {
        const auto opened = open(folder);
        REQUIRE(opened.ok());
        child = fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            dup2(hold[0], 0);
            close(hold[1]);
            execlp("cat", "cat", static_cast<char*>(nullptr));
            _exit(1);
        }
        close(hold[0]);
        // exec has happened when the program echoes; cat writes to our stdout, so look at what it became instead.
        std::string name;
        for (int tries = 0; tries < 1000 && name != "cat"; ++tries) {
            std::ifstream("/proc/" + std::to_string(child) + "/comm") >> name;
            usleep(1000);
        }
        REQUIRE(name == "cat");
    }
    const auto again = open(folder);
    CHECK_MESSAGE(again.ok(), (again.ok() ? "" : again.error().message));
    close(hold[1]);
    waitpid(child, nullptr, 0);
}

TEST_CASE("local coordinator: a torn write of the epoch costs nothing that was acknowledged") {
    // Every prefix of the write of epoch 4, laid over what epochs 1 to 3 left.
    const Folder folder;
    for (int i = 0; i < 3; ++i) REQUIRE(open(folder).ok());
    const std::string before = folder.read("epoch");
    REQUIRE(open(folder).ok());
    const std::string after = folder.read("epoch");
    REQUIRE(before.size() == after.size());
    size_t differing = 0;
    for (size_t at = 0; at < after.size(); ++at) {
        if (before[at] == after[at]) continue;
        ++differing;
        std::string torn = after.substr(0, at) + before.substr(at);
        folder.write("epoch", torn);
        {
            const auto opened = open(folder);
            REQUIRE_MESSAGE(opened.ok(), opened.error().message);
            CHECK((*opened)->epoch() == Epoch(4));
        }
        torn[at] = '\xff';  // and rubbish where the write stopped
        folder.write("epoch", torn);
        const auto opened = open(folder);
        REQUIRE_MESSAGE(opened.ok(), opened.error().message);
        CHECK((*opened)->epoch() == Epoch(4));
    }
    CHECK(differing > 4);  // most of a checksum at least: which bytes of it are equal is chance
}

TEST_CASE("local coordinator: a first start that was interrupted is begun again") {
    const Folder folder;
    REQUIRE(open(folder).ok());
    std::filesystem::remove(folder.data() + "/identity");
    folder.write("identity.new", "half");
    const auto opened = open(folder);
    REQUIRE_MESSAGE(opened.ok(), opened.error().message);
    CHECK((*opened)->epoch() == Epoch(2));  // never lower than what may have been used
}

TEST_CASE("local coordinator: damaged or newer files are refused and left as they are") {
    const Folder folder;
    REQUIRE(open(folder).ok());
    const std::string identity = folder.read("identity"), epoch = folder.read("epoch");
    const auto refused = [&](const std::string& name, const std::string& bytes) {
        folder.write(name, bytes);
        const auto opened = open(folder);
        REQUIRE_FALSE(opened.ok());
        CHECK(opened.error().code == ErrorCode::state_damaged);
        CHECK(folder.read(name) == bytes);
        folder.write("identity", identity);
        folder.write("epoch", epoch);
        return opened.error().message;
    };
    for (size_t at = 0; at < identity.size(); ++at) {
        std::string broken = identity;
        broken[at] = static_cast<char>(broken[at] ^ 1);
        refused("identity", broken);
    }
    CHECK(refused("identity", "mainstay-identity 2\nsomething else\n").find("newer release") != std::string::npos);
    refused("identity", "");
    refused("epoch", "");
    refused("epoch", std::string(epoch.size(), '\0'));
    refused("epoch", epoch.substr(0, 100));
    std::filesystem::remove(folder.data() + "/epoch");
    CHECK_FALSE(open(folder).ok());
}

TEST_CASE("local coordinator: where there can be no directory the error says so") {
    const Folder folder;
    CHECK(LocalCoordinator::open(folder.data() + "/a/b", kernel_random).error().code == ErrorCode::invalid_request);
    REQUIRE(open(folder).ok());
    CHECK(LocalCoordinator::open(folder.data() + "/identity", kernel_random).error().message.find("not a directory") !=
          std::string::npos);
    CHECK(LocalCoordinator::open(folder.data() + "//", kernel_random).ok());
}
