#pragma once
// Requests to etcd's HTTP/JSON gateway (v3), and how far they came. One logical etcd behind several addresses: the next
// is asked when one does not answer, but a request that must not be repeated never goes to a second one once the first
// may have it. User and password become a token, which is renewed when etcd no longer takes it.
//
// Calls may come from any thread and do not wait for each other: each takes a connection that nobody uses, or a new
// one.

#include <boost/json/object.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/http_call.h"
#include "runtime/base/result.h"

namespace mainstay {

/// A call's time is up then, over all addresses and pages.
using EtcdDeadline = std::chrono::steady_clock::time_point;

struct EtcdAnswer {
    enum class Kind : uint8_t {
        done,        // etcd did it; body
        refused,     // etcd said no; problem
        unanswered,  // nobody knows; problem
    };
    Kind kind = Kind::unanswered;
    boost::json::object body;
    std::string problem;  // for people; holds no secret
    int code = 0;         // gRPC status of a refusal: 5 is "not found"
    bool done() const { return kind == Kind::done; }
};

class EtcdClient {
  public:
    struct Options {
        std::vector<std::string> urls;  // http or https; at least one
        std::string user, password;     // empty user: no authentication
        HttpCall::Options tls;
    };
    /// May the same request be sent again where its first outcome is not known?
    enum class Repeat : uint8_t { never, allowed };

    explicit EtcdClient(Options options);
    EtcdClient(const EtcdClient&) = delete;
    EtcdClient& operator=(const EtcdClient&) = delete;

    /// `path` as in "/v3/kv/range".
    EtcdAnswer post(const char* path, const boost::json::object& body, Repeat repeat, EtcdDeadline deadline);

    /// Opens a stream at the address that answered last and hands on each message's "result" until `on_result` says
    /// false, the stream fails, stays silent for so long, or connection.stop() is called. Returns why it ended.
    std::string stream(HttpCall& connection, const char* path, const boost::json::object& body,
                       uint32_t silence_timeout_ms, uint32_t connect_timeout_ms,
                       const std::function<bool(const boost::json::object&)>& on_result);

    const HttpCall::Options& tls() const { return options_.tls; }

  private:
    struct Attempt;

    std::unique_ptr<HttpCall> borrow();
    void give_back(std::unique_ptr<HttpCall> connection);
    /// One request to one address, with a token where there is a user. A token that etcd does not take is renewed once:
    /// such a refusal comes before anything is done.
    EtcdAnswer ask(HttpCall& connection, Attempt attempt, bool& sent);
    EtcdAnswer send(HttpCall& connection, const Attempt& attempt, const std::string& token, bool& sent);
    Result<std::string> token(HttpCall& connection, const Attempt& attempt, const std::string& refused);
    std::string url(size_t address, std::string_view path) const;

    const Options options_;
    std::atomic<size_t> preferred_{0};  // the address to ask first
    std::mutex lock_;
    std::vector<std::unique_ptr<HttpCall>> idle_;
    std::string token_;
};

}  // namespace mainstay
