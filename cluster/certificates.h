#pragma once
// Who may speak in a cluster: a CA of its own, and one certificate a node that names the node and nothing else. Links
// believe these names (cluster/link.h), so whoever has ca.key can be any node: it belongs on no node but where
// certificates are made. EC P-256. No file is ever overwritten, and one that could not be finished is removed.
//
// Files and OpenSSL, no state, any thread. Errors: conflict, a file is there already; invalid_request, one cannot be
// read, or is not what it should be; internal, one cannot be written.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "cluster/coordinator.h"
#include "runtime/base/result.h"

namespace mainstay {

constexpr uint32_t ca_days = 3650;
constexpr uint32_t node_certificate_days = 730;

/// Makes `directory` if need be, and in it ca.pem, ca.key (mode 0600) and cluster.id (the uuid and a newline).
Result<ClusterUuid> make_cluster(const std::string& directory, uint32_t days = ca_days);

/// From make_cluster's `ca_directory`: node.pem (CN and DNS SAN are the uuid's text; for both ends of a connection),
/// node.key (0600), and copies of ca.pem and cluster.id into `directory`. Never lasts longer than its CA. Copies that
/// are there already must be the same.
Result<void> make_node_certificate(const std::string& ca_directory, const NodeUuid& node, const std::string& directory,
                                   uint32_t days = node_certificate_days);

struct CertificateFacts {
    std::optional<NodeUuid> node;  // of CN and SAN, where they agree; nothing in a CA
    bool ca = false;
    int64_t days_left = 0;  // whole days; negative: it is over
};
/// Of the first certificate of a PEM file.
Result<CertificateFacts> read_certificate(const std::string& file);

/// Whether key and certificate belong together and the certificate is of that CA and valid now. Then links will work.
Result<void> check_certificate(const std::string& ca_file, const std::string& certificate_file,
                               const std::string& key_file, const NodeUuid& node);

/// From cluster.id.
Result<ClusterUuid> read_cluster_uuid(const std::string& directory);

/// What to_text makes, and nothing else.
std::optional<NodeUuid> parse_uuid(std::string_view text);

}  // namespace mainstay
