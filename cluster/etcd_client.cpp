#include "cluster/etcd_client.h"

#include <boost/json.hpp>

#include <algorithm>
#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t idle_connections_max = 16;

// gRPC status codes (google.rpc.Code), which the gateway puts into "code".
constexpr int code_deadline_exceeded = 4, code_unavailable = 14, code_unauthenticated = 16;

int64_t left_ms(EtcdDeadline deadline) {
    return std::chrono::ceil<milliseconds>(deadline - steady_clock::now()).count();
}

EtcdAnswer unanswered(std::string problem) {
    EtcdAnswer out;
    out.problem = std::move(problem);
    return out;
}

/// An answer whose status is not 200. A member that has no leader, or gave up, does not speak for etcd.
EtcdAnswer refusal(const std::string& origin, int status, const std::string& text) {
    EtcdAnswer out;
    out.problem = origin + ": HTTP " + std::to_string(status);
    json::error_code error;
    const json::value value = json::parse(text, error);
    if (error || !value.is_object()) return out;
    const json::object& body = value.get_object();
    if (const auto* message = body.if_contains("message"); message && message->is_string())
        out.problem = origin + ": " + std::string(message->get_string());
    const auto* code = body.if_contains("code");
    if (!code || !code->is_int64()) return out;
    out.code = static_cast<int>(code->get_int64());
    if (out.code != code_unavailable && out.code != code_deadline_exceeded) out.kind = EtcdAnswer::Kind::refused;
    return out;
}

/// Refused for its token alone, and before anything was done: it expired or was taken back, or (with tokens of the kind
/// jwt, where etcd 3.4 has two texts for it) rights have changed since.
bool wants_new_token(const EtcdAnswer& answer) {
    if (answer.kind != EtcdAnswer::Kind::refused) return false;
    const auto says = [&answer](const char* text) { return answer.problem.find(text) != std::string::npos; };
    return answer.code == code_unauthenticated || says("revision in header is old") ||
           says("revision of auth store is old");
}

}  // namespace

struct EtcdClient::Attempt {
    size_t address;
    std::string_view path;
    std::string_view body;
    EtcdDeadline deadline;
    uint32_t connect_timeout_ms;
};

EtcdClient::EtcdClient(Options options) : options_(std::move(options)) {
    INVARIANT(!options_.urls.empty(), "etcd has an address");
}

std::string EtcdClient::url(size_t address, std::string_view path) const {
    std::string out = options_.urls[address];
    while (!out.empty() && out.back() == '/') out.pop_back();
    return out.append(path);
}

std::unique_ptr<HttpCall> EtcdClient::borrow() {
    {
        const std::lock_guard lock(lock_);
        if (!idle_.empty()) {
            auto out = std::move(idle_.back());
            idle_.pop_back();
            return out;
        }
    }
    return std::make_unique<HttpCall>(options_.tls);
}

void EtcdClient::give_back(std::unique_ptr<HttpCall> connection) {
    const std::lock_guard lock(lock_);
    if (idle_.size() < idle_connections_max) idle_.push_back(std::move(connection));
}

EtcdAnswer EtcdClient::send(HttpCall& connection, const Attempt& attempt, const std::string& token, bool& sent) {
    const int64_t left = left_ms(attempt.deadline);
    if (left <= 0) return unanswered("no time is left");
    HttpCallRequest request;
    request.url = url(attempt.address, attempt.path);
    request.body = attempt.body;
    request.total_timeout_ms = static_cast<uint32_t>(left);
    request.connect_timeout_ms = std::min(request.total_timeout_ms, attempt.connect_timeout_ms);
    if (!token.empty()) request.headers.push_back({"Authorization", token});
    const HttpCallAnswer answer = connection.post(request);
    sent = sent || answer.sent;
    if (!answer.answered) return unanswered(answer.problem);
    const std::string& origin = options_.urls[attempt.address];
    if (answer.status != 200) return refusal(origin, answer.status, answer.body);
    json::error_code error;
    json::value value = json::parse(answer.body, error);
    if (error || !value.is_object()) return unanswered(origin + ": the answer is not etcd's");
    EtcdAnswer out;
    out.kind = EtcdAnswer::Kind::done;
    out.body = std::move(value.get_object());
    return out;
}

Result<std::string> EtcdClient::token(HttpCall& connection, const Attempt& attempt, const std::string& refused) {
    if (options_.user.empty()) return std::string();
    {
        const std::lock_guard lock(lock_);
        if (token_ != refused) return token_;  // another thread renewed it
    }
    const std::string body = json::serialize(json::object{{"name", options_.user}, {"password", options_.password}});
    Attempt login = attempt;
    login.path = "/v3/auth/authenticate";
    login.body = body;
    bool ignored = false;
    const EtcdAnswer answer = send(connection, login, {}, ignored);
    const json::value* given = answer.done() ? answer.body.if_contains("token") : nullptr;
    if (!given || !given->is_string())
        return {ErrorCode::coordinator_unavailable,
                "etcd gives no token to user " + options_.user + ": " + (answer.done() ? "none" : answer.problem)};
    const std::lock_guard lock(lock_);
    token_ = std::string(given->get_string());
    return token_;
}

EtcdAnswer EtcdClient::ask(HttpCall& connection, Attempt attempt, bool& sent) {
    auto with = token(connection, attempt, {});
    if (!with) return unanswered(with.error().message);
    EtcdAnswer answer = send(connection, attempt, *with, sent);
    if (options_.user.empty() || !wants_new_token(answer)) return answer;
    with = token(connection, attempt, *with);
    if (!with) return unanswered(with.error().message);
    return send(connection, attempt, *with, sent);
}

EtcdAnswer EtcdClient::post(const char* path, const json::object& body, Repeat repeat, EtcdDeadline deadline) {
    const std::string text = json::serialize(body);
    auto connection = borrow();
    const size_t addresses = options_.urls.size();
    const size_t first = preferred_.load(std::memory_order_relaxed);
    // A kept-alive connection may die under a request, so what may be repeated is asked twice even of one address.
    const size_t attempts = repeat == Repeat::allowed ? std::max<size_t>(addresses, 2) : addresses;
    EtcdAnswer answer;
    for (size_t n = 0; n < attempts; ++n) {
        const int64_t left = left_ms(deadline);
        if (left <= 0) break;
        // Who does not answer leaves half of the time to the others; a change has all of it once it may be out.
        const bool others = addresses > 1 && n + 1 < attempts;
        const int64_t share = others ? std::max<int64_t>(left / 2, 1) : left;
        Attempt attempt{(first + n) % addresses, path, text, deadline, static_cast<uint32_t>(share)};
        if (repeat == Repeat::allowed) attempt.deadline = steady_clock::now() + milliseconds(share);
        bool sent = false;
        answer = ask(*connection, attempt, sent);
        if (answer.kind != EtcdAnswer::Kind::unanswered) {
            preferred_.store(attempt.address, std::memory_order_relaxed);
            break;
        }
        preferred_.store((attempt.address + 1) % addresses, std::memory_order_relaxed);
        if (sent && repeat == Repeat::never) break;
    }
    if (answer.kind == EtcdAnswer::Kind::unanswered && answer.problem.empty()) answer.problem = "no time is left";
    give_back(std::move(connection));
    return answer;
}

std::string EtcdClient::stream(HttpCall& connection, const char* path, const json::object& body,
                               uint32_t silence_timeout_ms, uint32_t connect_timeout_ms,
                               const std::function<bool(const json::object&)>& on_result) {
    const std::string text = json::serialize(body);
    const size_t address = preferred_.load(std::memory_order_relaxed);
    HttpCallRequest request;
    request.url = url(address, path);
    request.body = text;
    request.connect_timeout_ms = connect_timeout_ms;
    request.silence_timeout_ms = silence_timeout_ms;
    const Attempt attempt{address, path, text, steady_clock::now() + milliseconds(connect_timeout_ms),
                          connect_timeout_ms};
    const auto with = token(connection, attempt, {});
    if (!with) return with.error().message;
    if (!with->empty()) request.headers.push_back({"Authorization", *with});

    // One message a line.
    std::string line, problem;
    const auto take_line = [&] {
        json::error_code error;
        const json::value value = json::parse(line, error);
        line.clear();
        const json::value* result = error || !value.is_object() ? nullptr : value.get_object().if_contains("result");
        if (result && result->is_object()) return on_result(result->get_object());
        problem = "the stream ended with an error";
        return false;
    };
    const HttpCallAnswer answer = connection.post(request, [&](std::string_view bytes) {
        for (size_t end = bytes.find('\n'); end != std::string_view::npos; end = bytes.find('\n')) {
            line += bytes.substr(0, end);
            bytes.remove_prefix(end + 1);
            if (!line.empty() && !take_line()) return false;
        }
        line += bytes;
        return line.size() <= request.body_bytes_max;
    });
    if (answer.answered && answer.status != 200) {
        // A token that is no longer taken is renewed by the next call that asks for something.
        return refusal(options_.urls[address], answer.status, answer.body).problem;
    }
    if (!problem.empty()) return problem;
    return answer.answered ? "the stream ended" : answer.problem;
}

}  // namespace mainstay
