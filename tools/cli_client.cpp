#include "tools/cli_client.h"

#include <boost/json/parse.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "runtime/agent/settings.h"
#include "tools/cli_output.h"

namespace mainstay {
namespace {

/// Hands what the client's thread is told over to the thread that waits.
class Arrival final : public HttpHandler {
  public:
    struct Piece {
        std::optional<int> status;
        std::string bytes;
        bool done = false;
        std::optional<HttpError> failed;
    };
    void on_head(int status, const std::vector<HttpHeader>&) override { push({status, {}, false, {}}); }
    void on_body(std::string_view bytes) override { push({{}, std::string(bytes), false, {}}); }
    void on_done() override { push({{}, {}, true, {}}); }
    void on_failed(HttpError error) override { push({{}, {}, true, std::move(error)}); }

    Piece wait() {
        std::unique_lock lock(mutex_);
        arrived_.wait(lock, [this] { return !pieces_.empty(); });
        Piece piece = std::move(pieces_.front());
        pieces_.pop_front();
        return piece;
    }

  private:
    void push(Piece piece) {
        {
            std::lock_guard lock(mutex_);
            pieces_.push_back(std::move(piece));
        }
        arrived_.notify_one();
    }
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<Piece> pieces_;
};

std::string first_line(const std::string& path) {
    auto text = read_text_file(path, 4096);
    if (!text) return {};
    return text->substr(0, text->find_first_of("\r\n"));
}

bool is_loopback(std::string_view url) {
    for (const std::string_view host : {"http://127.", "https://127.", "http://[::1]", "https://[::1]"})
        if (url.starts_with(host)) return true;
    for (const std::string_view host : {"http://localhost", "https://localhost"})
        if (url.starts_with(host) && (url.size() == host.size() || url[host.size()] == ':' || url[host.size()] == '/'))
            return true;
    return false;
}

/// "0.0.0.0:8080" is where a daemon listens, not where it is reached.
std::string url_of_listen(std::string listen) {
    if (listen.starts_with("0.0.0.0:")) listen.replace(0, 7, "127.0.0.1");
    if (listen.starts_with("[::]:")) listen.replace(0, 4, "[::1]");
    return "http://" + listen;
}

}  // namespace

CliAddress find_address(const CliAddressOptions& options) {
    CliAddress out;
    const std::string listen = options.data + "/listen";
    out.url = !options.url.empty() ? options.url : options.environment_url;
    const bool from_data = out.url.empty();
    if (from_data) {
        const std::string address = first_line(listen);
        if (address.empty())
            throw CliFailure{ExitStatus::unavailable, "no daemon found: " + listen +
                                                          " is not there. Is mainstayd running? Else give --data, "
                                                          "--url or MAINSTAY_URL"};
        out.url = url_of_listen(address);
    }
    while (out.url.ends_with('/')) out.url.pop_back();
    if (auto checked = check_http_url(out.url + "/"); !checked)
        throw CliFailure{ExitStatus::usage, checked.error().message};
    out.key = !options.key.empty() ? options.key : options.environment_key;
    if (out.key.empty() && (from_data || is_loopback(out.url))) out.key = first_line(options.data + "/admin.key");
    if (out.key.find_first_of("\r\n") != std::string::npos)
        throw CliFailure{ExitStatus::usage, "the key contains a line break"};
    return out;
}

std::string path_segment(std::string_view text) {
    constexpr char hex[] = "0123456789ABCDEF";
    std::string out;
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                           c == '_' || c == '.' || c == '~';
        if (plain) {
            out += c;
            continue;
        }
        out += '%';
        out += hex[static_cast<uint8_t>(c) >> 4];
        out += hex[static_cast<uint8_t>(c) & 15];
    }
    return out;
}

CliFailure failure_of(const CliAnswer& answer) {
    CliFailure out;
    switch (answer.status) {
        case 401:
        case 403: out.status = ExitStatus::denied; break;
        case 404: out.status = ExitStatus::not_found; break;
        case 408:
        case 429:
        case 502:
        case 503:
        case 504:
        case 507: out.status = ExitStatus::unavailable; break;
        default: out.status = ExitStatus::failed;
    }
    out.message = "the daemon answered " + std::to_string(answer.status);
    boost::json::error_code code;
    const auto body = boost::json::parse(answer.body, code);
    if (code || !body.is_object()) return out;
    const auto* error = body.as_object().if_contains("error");
    if (!error || !error->is_object()) return out;
    const std::string message = text_at(*error, "message"), name = text_at(*error, "code");
    if (!message.empty()) out.message = message + (name.empty() ? "" : " (" + name + ")");
    if (answer.status == 401) out.message += "; give --key or MAINSTAY_ADMIN_KEY";
    return out;
}

CliClient::CliClient(CliAddress address, uint32_t timeout_ms) : address_(std::move(address)), timeout_ms_(timeout_ms) {}

CliAnswer CliClient::perform(HttpClientRequest request, const std::function<void(std::string_view)>& on_bytes) {
    if (!address_.key.empty()) request.headers.push_back({"Authorization", "Bearer " + address_.key});
    const auto arrival = std::make_shared<Arrival>();
    if (auto submitted = http_.submit(std::move(request), arrival); !submitted)
        throw CliFailure{ExitStatus::usage, submitted.error().message};
    CliAnswer answer;
    for (;;) {
        auto piece = arrival->wait();
        if (piece.failed)
            throw CliFailure{ExitStatus::unavailable, "cannot reach " + address_.url + ": " + piece.failed->message};
        if (piece.done) return answer;
        if (piece.status) answer.status = *piece.status;
        if (on_bytes && answer.status / 100 == 2)
            on_bytes(piece.bytes);
        else
            answer.body += piece.bytes;
    }
}

CliAnswer CliClient::fetch(std::string method, const std::string& target, std::string body, std::string content_type) {
    HttpClientRequest request;
    request.method = std::move(method);
    request.url = address_.url + target;
    if (request.method != "GET" && request.method != "DELETE")
        request.headers.push_back({"Content-Type", std::move(content_type)});
    request.body = std::move(body);
    request.total_timeout_ms = timeout_ms_;
    request.stall_timeout_ms = timeout_ms_;
    return perform(std::move(request), nullptr);
}

boost::json::value CliClient::call(std::string method, const std::string& target, std::string body,
                                   std::string content_type) {
    const CliAnswer answer = fetch(std::move(method), target, std::move(body), std::move(content_type));
    if (answer.status / 100 != 2) throw failure_of(answer);
    boost::json::error_code code;
    auto parsed = boost::json::parse(answer.body, code);
    if (code) throw CliFailure{ExitStatus::failed, "the answer is not JSON: is this Mainstay? (" + address_.url + ")"};
    return parsed;
}

void CliClient::stream(const std::string& target, std::string body,
                       const std::function<void(std::string_view)>& on_bytes) {
    HttpClientRequest request;
    request.method = "POST";
    request.url = address_.url + target;
    request.headers = {{"Content-Type", "application/json"}, {"Accept", "text/event-stream"}};
    request.body = std::move(body);
    request.total_timeout_ms = 0;  // a turn may take long; the door sends a comment every few seconds
    request.stall_timeout_ms = std::max(timeout_ms_, limits::sse_comment_interval_ms * 3);
    const CliAnswer answer = perform(std::move(request), on_bytes);
    if (answer.status / 100 != 2) throw failure_of(answer);
}

}  // namespace mainstay
