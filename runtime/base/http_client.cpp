#include "runtime/base/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <limits>

namespace mainstay {

namespace {

using Instant = std::chrono::steady_clock::time_point;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t idle_handles_max = 64;
constexpr Instant never = Instant::max();

void start_curl_once() {
    static const bool started = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    INVARIANT(started, "libcurl starts");
}

struct FreeUrl {
    void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using Url = std::unique_ptr<CURLU, FreeUrl>;

std::optional<std::string> url_part(CURLU* url, CURLUPart part) {
    char* text = nullptr;
    if (curl_url_get(url, part, &text, 0) != CURLUE_OK) return std::nullopt;
    std::string out = text;
    curl_free(text);
    return out;
}

/// What an error may name of a URL that has been checked.
std::string origin_of(const std::string& text) {
    Url url(curl_url());
    if (!url || curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) return "the server";
    std::string out =
        url_part(url.get(), CURLUPART_SCHEME).value_or("") + "://" + url_part(url.get(), CURLUPART_HOST).value_or("");
    if (const auto port = url_part(url.get(), CURLUPART_PORT)) out += ":" + *port;
    return out;
}

bool is_token_char(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
}

Result<void> check_header(const HttpHeader& header) {
    if (header.name.empty() || !std::all_of(header.name.begin(), header.name.end(), is_token_char))
        return {ErrorCode::unsupported_value, "a header name has characters that HTTP refuses", "headers"};
    for (const unsigned char c : header.value)
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return {ErrorCode::unsupported_value, "header " + header.name + " has a control character in its value",
                    "headers"};
    return {};
}

Result<void> check_request(const HttpClientRequest& request) {
    if (request.method != "GET" && request.method != "POST" && request.method != "PUT" && request.method != "DELETE")
        return {ErrorCode::unsupported_value, "unknown HTTP method", "method"};
    for (const auto& header : request.headers)
        if (auto checked = check_header(header); !checked) return checked;
    return check_http_url(request.url);
}

void lower(std::string& text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && (text.back() == '\r' || text.back() == '\n' || text.back() == ' ' || text.back() == '\t'))
        text.remove_suffix(1);
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    return text;
}

}  // namespace

std::string_view to_word(HttpFailure failure) {
    switch (failure) {
        case HttpFailure::resolve: return "resolve";
        case HttpFailure::connect: return "connect";
        case HttpFailure::connect_timeout: return "connect_timeout";
        case HttpFailure::tls: return "tls";
        case HttpFailure::lost: return "lost";
        case HttpFailure::stall: return "stall";
        case HttpFailure::total_timeout: return "total_timeout";
        case HttpFailure::too_large: return "too_large";
        case HttpFailure::protocol: return "protocol";
    }
    INVARIANT(false, "every failure has a word");
}

Result<void> check_http_url(const std::string& text) {
    const auto refuse = [](std::string why) { return Error{ErrorCode::unsupported_value, std::move(why), "url"}; };
    if (text.size() > limits::upstream_url_bytes_max) return refuse("the URL is longer than upstream_url_bytes_max");
    for (const unsigned char c : text)
        if (c <= 0x20 || c == 0x7f) return refuse("the URL has a space or control character");
    start_curl_once();
    Url url(curl_url());
    if (!url || curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK)
        return refuse("the URL cannot be read");
    const auto scheme = url_part(url.get(), CURLUPART_SCHEME);
    if (scheme != "http" && scheme != "https") return refuse("the URL must begin with http:// or https://");
    if (url_part(url.get(), CURLUPART_USER) || url_part(url.get(), CURLUPART_PASSWORD))
        return refuse("the URL must not hold a user or password: they belong in a header");
    return {};
}

std::optional<TimeMs> parse_http_date(const std::string& text) {
    const time_t at = curl_getdate(text.c_str(), nullptr);
    if (at < 0) return std::nullopt;
    return static_cast<TimeMs>(at) * 1000;
}

struct HttpClient::Transfer {
    uint64_t id = 0;
    HttpClient* client = nullptr;
    HttpClientRequest request;
    std::shared_ptr<HttpHandler> handler;
    std::atomic<bool> cancelled{false};

    // The rest belongs to the client's thread.
    CURL* easy = nullptr;
    curl_slist* header_list = nullptr;
    bool connected = false;
    uint32_t sends = 0;
    bool head_told = false;
    std::vector<HttpHeader> headers;
    size_t header_bytes = 0, body_bytes = 0;
    curl_off_t uploaded = 0;
    Instant last_activity;
    std::optional<HttpError> own_failure;  // why we broke it off

    ~Transfer() { curl_slist_free_all(header_list); }

    void fail(HttpFailure failure, std::string message) {
        if (!own_failure) own_failure = HttpError{failure, std::move(message)};
    }
    Instant stall_at() const {
        if (!connected || request.stall_timeout_ms == 0) return never;
        return last_activity + milliseconds(request.stall_timeout_ms);
    }
};

/// What libcurl owns, on the client's thread.
struct HttpClient::Loop {
    HttpClient& client;
    CURLM* multi = nullptr;
    std::unordered_map<CURL*, std::shared_ptr<Transfer>> active;
    std::vector<CURL*> idle;
    Instant next_stall_check = never;

    explicit Loop(HttpClient& owner) : client(owner) {
        start_curl_once();
        multi = curl_multi_init();
        INVARIANT(multi != nullptr, "libcurl has memory");
        curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);
        curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, static_cast<long>(client.options_.idle_connections_max));
    }
    ~Loop() {
        while (!active.empty()) release(active.begin()->second);
        for (CURL* easy : idle) curl_easy_cleanup(easy);
        curl_multi_cleanup(multi);
    }
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;

    static size_t on_header(char* data, size_t size, size_t count, void* user) {
        auto& transfer = *static_cast<Transfer*>(user);
        return transfer.client->loop_->take_header(transfer, {data, size * count}) ? size * count : 0;
    }
    static size_t on_body(char* data, size_t size, size_t count, void* user) {
        auto& transfer = *static_cast<Transfer*>(user);
        return transfer.client->loop_->take_body(transfer, {data, size * count}) ? size * count : 0;
    }
    static int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t uploaded) {
        auto& transfer = *static_cast<Transfer*>(user);
        if (uploaded != transfer.uploaded) {
            transfer.uploaded = uploaded;
            transfer.last_activity = steady_clock::now();
        }
        return 0;
    }
    /// Called when a connection is ready and before the request goes out on it.
    static int on_connected(void* user, char*, char*, int, int) {
        auto& transfer = *static_cast<Transfer*>(user);
        long redirects = 0;
        curl_easy_getinfo(transfer.easy, CURLINFO_REDIRECT_COUNT, &redirects);
        if (transfer.sends > static_cast<uint32_t>(redirects)) {
            // libcurl repeats a request by itself when a kept-alive connection dies before the first byte of the
            // answer; whether the server acted on it is not known.
            transfer.fail(HttpFailure::lost, "the connection was lost before an answer came");
            return CURL_PREREQFUNC_ABORT;
        }
        ++transfer.sends;
        transfer.client->requests_sent_.fetch_add(1, std::memory_order_relaxed);
        transfer.connected = true;
        transfer.last_activity = steady_clock::now();
        transfer.client->loop_->expect_stall(transfer.stall_at());
        return CURL_PREREQFUNC_OK;
    }

    void expect_stall(Instant at) { next_stall_check = std::min(next_stall_check, at); }

    bool take_header(Transfer& transfer, std::string_view line) {
        transfer.last_activity = steady_clock::now();
        if (transfer.cancelled) return false;
        transfer.header_bytes += line.size();
        if (transfer.header_bytes > limits::upstream_header_bytes_max) {
            transfer.fail(HttpFailure::too_large, "the answer's header is larger than upstream_header_bytes_max");
            return false;
        }
        if (line.starts_with("HTTP/")) transfer.headers.clear();  // 1xx, redirect, or the final answer
        const auto text = trimmed(line);
        if (text.empty()) return end_of_head(transfer);
        const size_t colon = text.find(':');
        if (colon == std::string_view::npos || transfer.head_told) return true;  // status line; trailer
        HttpHeader header{std::string(text.substr(0, colon)), std::string(trimmed(text.substr(colon + 1)))};
        lower(header.name);
        transfer.headers.push_back(std::move(header));
        return true;
    }

    bool end_of_head(Transfer& transfer) {
        long status = 0;
        curl_easy_getinfo(transfer.easy, CURLINFO_RESPONSE_CODE, &status);
        const bool redirect = status >= 300 && status < 400 && transfer.request.redirects_max > 0 &&
                              std::any_of(transfer.headers.begin(), transfer.headers.end(),
                                          [](const HttpHeader& header) { return header.name == "location"; });
        if (status < 200 || redirect || transfer.head_told) return true;
        transfer.head_told = true;
        transfer.handler->on_head(static_cast<int>(status), transfer.headers);
        return true;
    }

    bool take_body(Transfer& transfer, std::string_view bytes) {
        transfer.last_activity = steady_clock::now();
        if (transfer.cancelled) return false;
        if (!transfer.head_told) return true;  // body of a redirect that is followed
        transfer.body_bytes += bytes.size();
        if (transfer.body_bytes > transfer.request.body_bytes_max) {
            transfer.fail(HttpFailure::too_large,
                          "the answer is larger than " + std::to_string(transfer.request.body_bytes_max) + " bytes");
            return false;
        }
        transfer.handler->on_body(bytes);
        return true;
    }

    void start(const std::shared_ptr<Transfer>& transfer) {
        CURL* easy = nullptr;
        if (idle.empty()) {
            easy = curl_easy_init();
        } else {
            easy = idle.back();
            idle.pop_back();
        }
        INVARIANT(easy != nullptr, "libcurl has memory");
        transfer->easy = easy;
        configure(*transfer);
        active.emplace(easy, transfer);
        const CURLMcode added = curl_multi_add_handle(multi, easy);
        INVARIANT(added == CURLM_OK, "a fresh handle can be added");
    }

    void configure(Transfer& transfer) {
        CURL* easy = transfer.easy;
        const HttpClientRequest& request = transfer.request;
        curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
        curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
        curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
        curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_2TLS));
        curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
        curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);    // a cancelled name lookup must not hold up the thread
        curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, 30L);  // servers close idle connections sooner than libcurl's 118 s
        if (!client.options_.environment_proxies) curl_easy_setopt(easy, CURLOPT_PROXY, "");
        curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
        curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
        if (!client.options_.ca_file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, client.options_.ca_file.c_str());
        curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, request.redirects_max > 0 ? 1L : 0L);
        curl_easy_setopt(easy, CURLOPT_MAXREDIRS, static_cast<long>(request.redirects_max));
        curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(request.connect_timeout_ms));
        curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.total_timeout_ms));

        if (request.method == "POST" || request.method == "PUT") {
            curl_easy_setopt(easy, CURLOPT_POST, 1L);
            curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.data());  // not copied: the transfer owns it
            curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
        }
        if (request.method == "PUT" || request.method == "DELETE")
            curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request.method.c_str());
        const auto add_header = [&](const std::string& line) {
            curl_slist* longer = curl_slist_append(transfer.header_list, line.c_str());
            INVARIANT(longer != nullptr, "libcurl has memory");
            transfer.header_list = longer;
        };
        add_header("Expect:");  // no round trip of "100-continue" before a large prompt
        for (const auto& header : request.headers)
            add_header(header.value.empty() ? header.name + ";" : header.name + ": " + header.value);
        curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer.header_list);

        curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &Loop::on_header);
        curl_easy_setopt(easy, CURLOPT_HEADERDATA, &transfer);
        curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Loop::on_body);
        curl_easy_setopt(easy, CURLOPT_WRITEDATA, &transfer);
        curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, &Loop::on_connected);
        curl_easy_setopt(easy, CURLOPT_PREREQDATA, &transfer);
        curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, &Loop::on_progress);
        curl_easy_setopt(easy, CURLOPT_XFERINFODATA, &transfer);
    }

    /// Takes the transfer off the wire; its handler hears nothing more.
    void release(const std::shared_ptr<Transfer>& held) {
        const std::shared_ptr<Transfer> transfer = held;  // `held` may live in the map that is changed here
        CURL* easy = transfer->easy;
        if (!easy) return;
        curl_multi_remove_handle(multi, easy);
        active.erase(easy);
        transfer->easy = nullptr;
        if (idle.size() < idle_handles_max) {
            curl_easy_reset(easy);
            idle.push_back(easy);
        } else {
            curl_easy_cleanup(easy);
        }
    }

    void end(const std::shared_ptr<Transfer>& transfer, CURLcode code) {
        std::optional<HttpError> error = transfer->own_failure;
        if (!error && code != CURLE_OK) error = error_of(*transfer, code);
        release(transfer);
        client.forget(transfer->id);
        if (transfer->cancelled) return;
        if (error) {
            error->message = origin_of(transfer->request.url) + ": " + error->message;
            transfer->handler->on_failed(std::move(*error));
        } else {
            transfer->handler->on_done();
        }
    }

    static HttpError error_of(const Transfer& transfer, CURLcode code) {
        const auto because = [code](HttpFailure failure) { return HttpError{failure, curl_easy_strerror(code)}; };
        switch (code) {
            case CURLE_COULDNT_RESOLVE_HOST:
            case CURLE_COULDNT_RESOLVE_PROXY: return because(HttpFailure::resolve);
            case CURLE_COULDNT_CONNECT: return because(HttpFailure::connect);
            case CURLE_OPERATION_TIMEDOUT:
                if (!transfer.connected && transfer.sends == 0)
                    return {HttpFailure::connect_timeout, "no connection within the time allowed"};
                return {HttpFailure::total_timeout, "no complete answer within the time allowed"};
            case CURLE_SSL_CONNECT_ERROR:
            case CURLE_PEER_FAILED_VERIFICATION:
            case CURLE_SSL_CERTPROBLEM:
            case CURLE_SSL_CIPHER:
            case CURLE_SSL_CACERT_BADFILE:
            case CURLE_SSL_ISSUER_ERROR:
            case CURLE_SSL_INVALIDCERTSTATUS: return because(HttpFailure::tls);
            case CURLE_UNSUPPORTED_PROTOCOL:
            case CURLE_URL_MALFORMAT:
            case CURLE_WEIRD_SERVER_REPLY:
            case CURLE_BAD_CONTENT_ENCODING:
            case CURLE_TOO_MANY_REDIRECTS: return because(HttpFailure::protocol);
            default: break;
        }
        return because(HttpFailure::lost);
    }

    void check_stalls(Instant now) {
        if (now < next_stall_check) return;
        next_stall_check = never;
        std::vector<std::shared_ptr<Transfer>> stalled;
        for (const auto& [easy, transfer] : active) {
            const Instant at = transfer->stall_at();
            if (at <= now) {
                stalled.push_back(transfer);
            } else {
                expect_stall(at);
            }
        }
        for (const auto& transfer : stalled) {
            transfer->fail(HttpFailure::stall,
                           "no byte for " + std::to_string(transfer->request.stall_timeout_ms) + " ms");
            end(transfer, CURLE_OK);
        }
    }

    void collect() {
        int left = 0;
        while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
            if (message->msg != CURLMSG_DONE) continue;
            const CURLcode code = message->data.result;
            const auto found = active.find(message->easy_handle);
            INVARIANT(found != active.end(), "a finished handle is active");
            const auto transfer = found->second;
            end(transfer, code);
        }
    }
};

HttpClient::HttpClient(Options options) : options_(std::move(options)), loop_(std::make_unique<Loop>(*this)) {
    thread_ = std::thread([this] { run(); });
}

HttpClient::~HttpClient() {
    {
        std::lock_guard lock(lock_);
        stopping_ = true;
        for (auto& [id, transfer] : transfers_) transfer->cancelled = true;
    }
    curl_multi_wakeup(loop_->multi);
    thread_.join();
}

Result<uint64_t> HttpClient::submit(HttpClientRequest request, std::shared_ptr<HttpHandler> handler) {
    if (auto checked = check_request(request); !checked) return checked.error();
    auto transfer = std::make_shared<Transfer>();
    transfer->client = this;
    transfer->request = std::move(request);
    transfer->handler = std::move(handler);
    uint64_t id = 0;
    {
        std::lock_guard lock(lock_);
        if (transfers_.size() >= limits::upstream_transfers_max)
            return Error{ErrorCode::too_many_connections, "upstream_transfers_max requests are in flight", {}};
        id = transfer->id = next_id_++;
        transfers_.emplace(id, transfer);
        queue_.push_back(std::move(transfer));
    }
    curl_multi_wakeup(loop_->multi);
    return id;
}

void HttpClient::cancel(uint64_t id) {
    {
        std::lock_guard lock(lock_);
        const auto found = transfers_.find(id);
        if (found == transfers_.end()) return;
        found->second->cancelled = true;
        cancelled_.push_back(found->second);
        transfers_.erase(found);
    }
    curl_multi_wakeup(loop_->multi);
}

void HttpClient::forget(uint64_t id) {
    std::lock_guard lock(lock_);
    transfers_.erase(id);
}

void HttpClient::run() {
    std::vector<std::shared_ptr<Transfer>> starting, ending;
    for (;;) {
        {
            std::lock_guard lock(lock_);
            if (stopping_) return;
            starting.swap(queue_);
            ending.swap(cancelled_);
        }
        for (const auto& transfer : starting)
            if (!transfer->cancelled) loop_->start(transfer);
        for (const auto& transfer : ending) loop_->release(transfer);
        starting.clear();
        ending.clear();

        int running = 0;
        curl_multi_perform(loop_->multi, &running);
        loop_->collect();
        const Instant now = steady_clock::now();
        loop_->check_stalls(now);

        int64_t wait_ms = 60'000;
        if (loop_->next_stall_check != never) {
            const auto left = std::chrono::ceil<milliseconds>(loop_->next_stall_check - now).count();
            wait_ms = std::clamp<int64_t>(left, 0, wait_ms);
        }
        curl_multi_poll(loop_->multi, nullptr, 0, static_cast<int>(wait_ms), nullptr);
    }
}

}  // namespace mainstay
