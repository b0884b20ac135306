#pragma once
// How the command line reaches a daemon: one request at a time, waited for, over the same HTTP client that the daemon
// uses outward. Turns what can go wrong into an exit status that scripts can rely on (docs/CLI.md): 0 ok, 1 failed,
// 2 usage, 3 not found, 4 denied, 5 unavailable or out of time.
//
// One thread, the program's.

#include <boost/json/value.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/http_client.h"

namespace mainstay {

enum class ExitStatus : int { ok = 0, failed = 1, usage = 2, not_found = 3, denied = 4, unavailable = 5 };

/// Ends a command: what is told on stderr, and the exit status. Thrown, unlike anywhere else in this house: a command
/// has nothing to do after its first failure, and run_cli is the one place that catches it.
struct CliFailure {
    ExitStatus status = ExitStatus::failed;
    std::string message;
};

/// Where the daemon is and what opens it. From flags, else MAINSTAY_URL and MAINSTAY_ADMIN_KEY, else the files that a
/// daemon writes into its data directory.
struct CliAddress {
    std::string url;  // without a slash at the end
    std::string key;  // may be empty: the daemon then answers 401
};
struct CliAddressOptions {
    std::string url, key, data = "data";
    std::string environment_url, environment_key;
};
/// The key of a data directory is only handed to a daemon on this machine. Throws CliFailure.
CliAddress find_address(const CliAddressOptions& options);

struct CliAnswer {
    int status = 0;
    std::string body;
};

class CliClient {
  public:
    CliClient(CliAddress address, uint32_t timeout_ms);

    /// The parsed body of a 2xx answer. Throws CliFailure for anything else.
    boost::json::value call(std::string method, const std::string& target, std::string body = {},
                            std::string content_type = "application/json");
    /// As it comes, whatever the status; throws CliFailure (unavailable) where nothing came.
    CliAnswer fetch(std::string method, const std::string& target, std::string body = {},
                    std::string content_type = "application/json");
    /// Pieces of a 2xx answer as they arrive, without a time limit for the whole. Throws like call().
    void stream(const std::string& target, std::string body, const std::function<void(std::string_view)>& on_bytes);

    const std::string& url() const { return address_.url; }

  private:
    CliAnswer perform(HttpClientRequest request, const std::function<void(std::string_view)>& on_bytes);

    const CliAddress address_;
    const uint32_t timeout_ms_;
    HttpClient http_;
};

/// What an answer that is not 2xx means for the user.
CliFailure failure_of(const CliAnswer& answer);
/// Escapes what may not stand in a path segment.
std::string path_segment(std::string_view text);

}  // namespace mainstay
