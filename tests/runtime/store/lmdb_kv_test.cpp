#include "runtime/store/lmdb_kv.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>

#include "runtime/base/random.h"

using namespace mainstay;

namespace {

struct Folder {
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "mainstay_kv_XXXXXX").string();
        REQUIRE(mkdtemp(name.data()));
        path = name;
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::filesystem::path path;
};

SessionKey session_of(uint64_t n, uint32_t tenant = 1) {
    return {TenantId{tenant}, SessionId{FamilyId{n + 1}, n, n * 3}};
}

KvBlock block_of(uint64_t n, size_t bytes = 10'000, SessionKey owner = session_of(1)) {
    SeededRandom random(n);
    KvBlock block{key_hash("test", std::to_string(n)), owner, uint32_t(n % 16 + 1), std::string(bytes, '\0')};
    for (char& c : block.bytes) c = char(random.next());
    return block;
}

std::unique_ptr<LmdbKv> open(const Folder& folder, uint64_t bytes_max = 1 << 20, std::string boot = "boot",
                             std::string identity = "model f32") {
    auto kv = LmdbKv::open({folder.path, bytes_max, std::move(boot), std::move(identity)});
    REQUIRE(kv.ok());
    return std::move(*kv);
}

std::vector<KeyHash> put(LmdbKv& kv, const KvBlock& block) {
    auto evicted = kv.put(std::span(&block, 1));
    REQUIRE(evicted.ok());
    return *evicted;
}

}  // namespace

TEST_CASE("kv tier: blocks come back whole, after the process too") {
    Folder folder;
    auto kv = open(folder);
    const KvBlock one = block_of(1), two = block_of(2, 0, session_of(2));
    CHECK(put(*kv, one).empty());
    CHECK(put(*kv, two).empty());
    for (int again = 0; again < 2; ++again) {
        const auto got = kv->get(one.hash);
        REQUIRE(got);
        CHECK(got->bytes == one.bytes);
        CHECK(got->tokens == one.tokens);
        CHECK(got->owner == one.owner);
        CHECK(kv->get(two.hash)->bytes.empty());
        CHECK_FALSE(kv->get(block_of(3).hash));
        kv.reset();
        kv = open(folder);
        CHECK_FALSE(kv->stats().emptied);
    }
    std::vector<KeyHash> seen;
    kv->visit([&](const KvBlock& block) { seen.push_back(block.hash); });
    CHECK(seen == std::vector{one.hash, two.hash});
}

TEST_CASE("kv tier: another boot of the machine empties it, another model's blocks are misses and deleted") {
    Folder folder;
    auto kv = open(folder);
    put(*kv, block_of(1));
    put(*kv, block_of(2));
    kv.reset();
    kv = open(folder, 1 << 20, "boot", "model bf16");
    size_t seen = 0;
    kv->visit([&](const KvBlock&) { ++seen; });
    CHECK(seen == 0);
    CHECK_FALSE(kv->get(block_of(1).hash));
    CHECK(kv->stats().foreign == 1);
    CHECK(kv->stats().blocks == 1);
    kv.reset();
    kv = open(folder, 1 << 20, "another boot");
    CHECK(kv->stats().emptied);
    CHECK(kv->stats().blocks == 0);
    kv.reset();
    kv = open(folder, 1 << 20, "");
    put(*kv, block_of(5));
    kv.reset();
    CHECK(open(folder, 1 << 20, "")->stats().emptied);  // a kernel that does not tell
}

TEST_CASE("kv tier: it stays within its bytes, and the least recently used blocks go first") {
    Folder folder;
    auto kv = open(folder, 64 * 1024);  // five blocks of three pages
    for (uint64_t n = 1; n <= 5; ++n) CHECK(put(*kv, block_of(n)).empty());
    CHECK(kv->get(block_of(1).hash));
    const auto gone = put(*kv, block_of(6));
    CHECK(gone == std::vector{block_of(2).hash});
    CHECK(kv->get(block_of(1).hash));
    CHECK_FALSE(kv->get(block_of(2).hash));
    CHECK(put(*kv, block_of(6)).empty());  // known: takes its own place
    CHECK(kv->stats().bytes <= 64 * 1024);
    for (uint64_t n = 10; n < 400; ++n) {
        put(*kv, block_of(n, 500 + n * 37 % 20'000));
        REQUIRE(kv->stats().bytes <= 64 * 1024);
    }
    // Pages are reused: the file does not grow with what went through it.
    CHECK(std::filesystem::file_size(folder.path / "data.mdb") < 1024 * 1024);
    const KvBlock huge = block_of(999, 100 * 1024);
    CHECK(kv->put(std::span(&huge, 1)).error().code == ErrorCode::storage_full);
}

TEST_CASE("kv tier: a damaged block is a miss, deleted, and counted") {
    Folder folder;
    auto kv = open(folder);
    const KvBlock one = block_of(1), two = block_of(2);
    put(*kv, one);
    put(*kv, two);
    kv.reset();
    // A bit of the first one's bytes, found by what they are.
    const auto file = folder.path / "data.mdb";
    std::string data;
    {
        std::ifstream in(file, std::ios::binary);
        data.assign(std::istreambuf_iterator<char>(in), {});
    }
    const size_t at = data.find(one.bytes.substr(0, 64));
    REQUIRE(at != std::string::npos);
    data[at + 5000] = char(data[at + 5000] ^ 4);
    std::ofstream(file, std::ios::binary) << data;
    kv = open(folder);
    CHECK_FALSE(kv->get(one.hash));
    CHECK(kv->stats().damaged == 1);
    CHECK(kv->stats().blocks == 1);
    CHECK(kv->get(two.hash)->bytes == two.bytes);
    kv.reset();
    kv = open(folder);
    CHECK(kv->stats().blocks == 1);
}

TEST_CASE("kv tier: a file that is no environment is replaced") {
    Folder folder;
    {
        auto kv = open(folder);
        put(*kv, block_of(1));
    }
    std::ofstream(folder.path / "data.mdb", std::ios::binary | std::ios::trunc) << std::string(50'000, 'x');
    auto kv = open(folder);
    CHECK(kv->stats().emptied);
    CHECK(put(*kv, block_of(1)).empty());
    CHECK(kv->get(block_of(1).hash));
}

TEST_CASE("kv tier: a session's blocks go with it, and a tenant's with the tenant") {
    Folder folder;
    auto kv = open(folder);
    for (uint64_t n = 0; n < 12; ++n)
        put(*kv, block_of(n, 100, n < 3 ? session_of(1) : n < 6 ? session_of(2) : session_of(n, 2)));
    put(*kv, block_of(20, 100, {TenantId{2}, SessionId{}}));  // of a definition
    CHECK(kv->drop_session(session_of(1)).size() == 3);
    CHECK_FALSE(kv->get(block_of(0).hash));
    CHECK(kv->get(block_of(3).hash));
    CHECK(kv->drop_session(session_of(77)).empty());
    CHECK(kv->drop_tenant(TenantId{2}).size() == 7);
    CHECK(kv->stats().blocks == 3);
    kv.reset();
    kv = open(folder);
    CHECK(kv->stats().blocks == 3);
}
