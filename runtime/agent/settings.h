#pragma once
// What an operator decides: config/mainstay.toml, then MAINSTAY_SECTION__KEY from the environment, then flags; each
// overrides the one before. One table of rows is the reader of all three, the printer of --check-config and the list
// that a test holds config/mainstay.toml against, so a setting cannot exist in one place only.
//
// Plain values, loaded once by tools/mainstayd before any thread starts, immutable afterwards.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/id.h"
#include "runtime/base/limits.h"
#include "runtime/base/result.h"

namespace mainstay {

enum class CommitMode : uint8_t { pipelined, strict };
enum class LogFormat : uint8_t { text, json };
enum class CoordinatorKind : uint8_t { local, etcd };

struct Settings {
    // [listen]
    std::string listen_address = "127.0.0.1:8080";  // port 0: any; the real one is written to DIR/listen
    std::vector<std::string> allowed_hosts;         // names in Host beside those of this machine
    // [session]
    CommitMode commit = CommitMode::pipelined;
    uint64_t window_bytes = limits::history_window_bytes;
    uint64_t passivate_after_ms = limits::passivate_after_ms;
    uint64_t turn_duration_ms = limits::turn_duration_ms_default;
    uint64_t steps_per_turn = limits::steps_per_turn_default;
    uint64_t active_max = limits::sessions_active_max;
    // [store]
    std::string directory = "data";
    uint64_t segment_bytes = limits::segment_bytes;
    uint64_t disk_reserve_bytes = limits::disk_reserve_bytes;
    uint64_t deleted_text_lifetime_ms = limits::deleted_text_lifetime_ms;
    // [limits]
    uint64_t body_bytes = limits::http_body_bytes_max;
    uint64_t connections = limits::http_connections_max;
    uint64_t upstream_stall_ms = limits::upstream_stall_timeout_ms;
    uint64_t tool_call_timeout_ms = limits::tool_call_timeout_ms_default;
    // [log]
    std::string log_level = "info";  // trace debug info warn error off
    LogFormat log_format = LogFormat::text;
    // [agents], [models]
    std::string agents_directory = "agents";  // relative to the settings file
    std::string default_agent = "assistant";
    std::string models_directory = "models";
    // [inference]
    std::vector<std::string> computed_models = {"*"};  // on devices of our own, by this node; "*": all
    // [metrics]
    bool metrics_without_key = true;  // /metrics, /healthz and /readyz, on a loopback listener only
    // [cluster]
    CoordinatorKind coordinator = CoordinatorKind::local;
    std::string cluster_directory = "cluster";  // what `mainstay cluster init` made: cluster id, CA, this node's keys
    std::vector<std::string> coordinator_urls = {"http://127.0.0.1:2379"};
    std::string coordinator_user;  // empty: none; the password is in MAINSTAY_CLUSTER_PASSWORD only
    std::string coordinator_ca, coordinator_certificate, coordinator_key;  // PEM files; empty: no TLS, or no mutual TLS
    std::string link_address = "127.0.0.1:0";                              // where other nodes connect; port 0: any
    std::string link_advertise;                                            // what they are told; empty: link_address
    std::string zone;                                                      // copies of a shard are spread over zones
    uint64_t replicas = 3, min_in_sync = 2;  // of each shard; decided by the first node, as is shards
    uint64_t shards = shard_count_default;   // of a new cluster
    uint64_t node_lease_ms = limits::node_lease_ms;
    uint64_t hand_over_wait_ms = 2'000;  // for tool calls of a shard that moves

    std::string coordinator_password;
    std::string admin_key;  // from MAINSTAY_ADMIN_KEY only; empty: the file DIR/admin.key
};

/// One override: {"listen.address", "127.0.0.1:0"}.
using SettingOverride = std::pair<std::string, std::string>;

/// `file` empty: defaults. `environment` as in environ ("NAME=value"); only MAINSTAY_* is looked at. Paths in the file
/// are made relative to the file's folder. Errors: not_found (no such file), unknown_field, invalid_request,
/// unsupported_value, not_yet; messages name file and line, variable or flag.
Result<Settings> load_settings(const std::string& file, const std::vector<std::string>& environment,
                               const std::vector<SettingOverride>& flags);
/// The same from text that is already there (tests, fuzzing). `folder` is what relative paths are put behind.
Result<Settings> parse_settings(std::string_view text, const std::string& source, const std::string& folder,
                                const std::vector<std::string>& environment, const std::vector<SettingOverride>& flags);

/// The effective settings as a TOML file; the admin key is masked.
std::string print_effective(const Settings& settings);

/// "section.key" of every setting, in the order of the file.
std::vector<std::string> setting_names();
/// This process's environment, in the form that load_settings takes.
std::vector<std::string> read_environment();

/// A whole file, at most `bytes_max`. Errors: not_found, body_too_large, invalid_request (not a readable file).
Result<std::string> read_text_file(const std::string& path, size_t bytes_max);

}  // namespace mainstay
