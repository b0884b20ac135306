#include "cluster/certificates.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "support/scratch_directory.h"

using namespace mainstay;

namespace {

constexpr NodeUuid one{0x0a, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
constexpr NodeUuid two{0x0b};

std::string text_of(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

mode_t mode_of(const std::string& file) {
    struct stat found {};
    return ::stat(file.c_str(), &found) == 0 ? found.st_mode & 0777 : 0;
}

bool there(const std::string& file) {
    struct stat found {};
    return ::stat(file.c_str(), &found) == 0;
}

ErrorCode checked(const std::string& ca, const std::string& node, const NodeUuid& uuid) {
    const auto result = check_certificate(ca + "/ca.pem", node + "/node.pem", node + "/node.key", uuid);
    return result ? ErrorCode::not_yet : result.error().code;  // not_yet stands for: good
}

/// Days begin to run when a certificate is made.
bool within_a_day(const CertificateFacts& facts, int64_t days) {
    return facts.days_left == days || facts.days_left == days - 1;
}

}  // namespace

TEST_CASE("certificates: a cluster and a node of it, read back") {
    const ScratchDirectory dir;
    const auto cluster = make_cluster(dir / "ca");
    REQUIRE(cluster);
    REQUIRE(make_node_certificate(dir / "ca", one, dir / "one"));
    CHECK(*read_cluster_uuid(dir / "ca") == *cluster);
    CHECK(*read_cluster_uuid(dir / "one") == *cluster);
    CHECK(mode_of(dir / "ca/ca.key") == 0600);
    CHECK(mode_of(dir / "one/node.key") == 0600);
    CHECK_FALSE(there(dir / "one/ca.key"));
    CHECK(text_of(dir / "ca/ca.pem") == text_of(dir / "one/ca.pem"));
    const auto ca = read_certificate(dir / "ca/ca.pem");
    REQUIRE(ca);
    CHECK(ca->ca);
    CHECK_FALSE(ca->node);
    CHECK(within_a_day(*ca, ca_days));
    const auto node = read_certificate(dir / "one/node.pem");
    REQUIRE(node);
    CHECK_FALSE(node->ca);
    CHECK(node->node == one);
    CHECK(within_a_day(*node, node_certificate_days));
    CHECK(checked(dir / "ca", dir / "one", one) == ErrorCode::not_yet);
}

TEST_CASE("certificates: nothing is overwritten, and what was begun is taken away") {
    const ScratchDirectory dir;
    REQUIRE(make_cluster(dir / "ca"));
    REQUIRE(make_node_certificate(dir / "ca", one, dir / "one"));
    const std::string key = text_of(dir / "ca/ca.key"), node_key = text_of(dir / "one/node.key");
    CHECK(make_cluster(dir / "ca").error().code == ErrorCode::conflict);
    CHECK(make_node_certificate(dir / "ca", one, dir / "one").error().code == ErrorCode::conflict);
    CHECK(make_node_certificate(dir / "ca", two, dir / "one").error().code == ErrorCode::conflict);
    CHECK(text_of(dir / "ca/ca.key") == key);
    CHECK(text_of(dir / "one/node.key") == node_key);
    // The last file of a folder is in the way: the first ones go again.
    REQUIRE(::mkdir((dir / "half").c_str(), 0700) == 0);
    std::ofstream(dir / "half/cluster.id") << "mine";
    CHECK(make_cluster(dir / "half").error().code == ErrorCode::conflict);
    CHECK_FALSE(there(dir / "half/ca.key"));
    CHECK_FALSE(there(dir / "half/ca.pem"));
    CHECK(text_of(dir / "half/cluster.id") == "mine");
    // A folder of another cluster.
    REQUIRE(make_cluster(dir / "ca2"));
    REQUIRE(::mkdir((dir / "two").c_str(), 0700) == 0);
    std::ofstream(dir / "two/ca.pem") << text_of(dir / "ca/ca.pem");
    CHECK(make_node_certificate(dir / "ca2", two, dir / "two").error().code == ErrorCode::conflict);
    CHECK_FALSE(there(dir / "two/node.key"));
}

TEST_CASE("certificates: what does not belong together is found before a link is opened") {
    const ScratchDirectory dir;
    REQUIRE(make_cluster(dir / "ca"));
    REQUIRE(make_cluster(dir / "other"));
    REQUIRE(make_node_certificate(dir / "ca", one, dir / "one"));
    REQUIRE(make_node_certificate(dir / "ca", two, dir / "two"));
    CHECK(checked(dir / "ca", dir / "two", one) == ErrorCode::invalid_request);     // another node's
    CHECK(checked(dir / "other", dir / "one", one) == ErrorCode::invalid_request);  // another CA's
    CHECK(checked(dir / "none", dir / "one", one) == ErrorCode::invalid_request);
    CHECK_FALSE(check_certificate(dir / "ca/ca.pem", dir / "one/node.pem", dir / "two/node.key", one));
    CHECK_FALSE(check_certificate(dir / "one/node.pem", dir / "one/node.pem", dir / "one/node.key", one));
    CHECK_FALSE(make_node_certificate(dir / "none", one, dir / "three"));
    CHECK_FALSE(read_certificate(dir / "one/node.key"));
    CHECK_FALSE(read_certificate(dir / "none.pem"));
    // A CA whose key is another's makes nothing.
    REQUIRE(::rename((dir / "other/ca.key").c_str(), (dir / "ca/ca.key").c_str()) == 0);
    CHECK(make_node_certificate(dir / "ca", one, dir / "three").error().code == ErrorCode::invalid_request);
}

TEST_CASE("certificates: one that is over is refused, and no node's lasts longer than its CA") {
    const ScratchDirectory dir;
    REQUIRE(make_cluster(dir / "ca", 10));
    REQUIRE(make_node_certificate(dir / "ca", one, dir / "one"));
    CHECK(within_a_day(*read_certificate(dir / "one/node.pem"), 10));
    REQUIRE(make_node_certificate(dir / "ca", two, dir / "two", 0));  // until now
    struct stat found {};
    REQUIRE(::stat((dir / "two/node.pem").c_str(), &found) == 0);
    while (read_certificate(dir / "two/node.pem")->days_left >= 0) continue;  // for a second at most
    CHECK(checked(dir / "ca", dir / "two", two) == ErrorCode::invalid_request);
}

TEST_CASE("certificates: a uuid's text is one text") {
    CHECK(parse_uuid(to_text(one)) == one);
    for (const char* bad : {"", "0a112233-4455-4677-8899-aabbccddeef", "0A112233-4455-4677-8899-aabbccddeeff",
                            "0a1122334455-4677-8899-aabbccddeeff", "0a112233-4455-4677-8899-aabbccddeeff0",
                            "0a112233-4455-4677-8899-aabbccddee-ff", "0a112233 4455-4677-8899-aabbccddeeff"})
        CHECK_FALSE(parse_uuid(bad));
}
