#include "runtime/base/http_call.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>

#include "runtime/base/invariant.h"

namespace mainstay {
namespace {

using Instant = std::chrono::steady_clock::time_point;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

void start_curl_once() {
    static const bool started = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
    INVARIANT(started, "libcurl starts");
}

/// Scheme, host and port; a path or query is never shown.
std::string origin_of(const std::string& url) {
    const size_t scheme = url.find("://");
    if (scheme == std::string::npos) return "the server";
    return url.substr(0, url.find_first_of("/?#", scheme + 3));
}

}  // namespace

struct HttpCall::Handles {
    CURLM* multi = nullptr;
    CURL* easy = nullptr;

    Handles() {
        start_curl_once();
        multi = curl_multi_init();
        easy = curl_easy_init();
        INVARIANT(multi && easy, "libcurl has memory");
        curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 4L);
    }
    ~Handles() {
        curl_easy_cleanup(easy);
        curl_multi_cleanup(multi);
    }
    Handles(const Handles&) = delete;
    Handles& operator=(const Handles&) = delete;
};

/// What one call knows while it is under way.
struct HttpCall::Call {
    CURL* easy;
    const HttpCallRequest& request;
    const std::function<bool(std::string_view)>& on_body;
    HttpCallAnswer answer;
    curl_slist* header_list = nullptr;
    Instant last_byte = steady_clock::now();
    bool broken_off = false;
    uint32_t sends = 0;

    ~Call() { curl_slist_free_all(header_list); }

    /// Called when a connection is ready and before the request goes out on it.
    static int on_connected(void* user, char*, char*, int, int) {
        auto& call = *static_cast<Call*>(user);
        // libcurl repeats a request by itself when a kept-alive connection dies before the first byte of the answer;
        // whether the server acted on it is not known.
        if (call.sends > 0) {
            call.answer.problem = "the connection was lost before an answer came";
            return CURL_PREREQFUNC_ABORT;
        }
        ++call.sends;
        call.answer.sent = true;
        call.last_byte = steady_clock::now();
        return CURL_PREREQFUNC_OK;
    }
    static size_t on_bytes(char* data, size_t size, size_t count, void* user) {
        auto& call = *static_cast<Call*>(user);
        return call.take({data, size * count}) ? size * count : 0;
    }
    bool take(std::string_view bytes) {
        last_byte = steady_clock::now();
        long status = 0;
        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
        answer.status = static_cast<int>(status);
        if (status == 200 && on_body) {
            broken_off = !on_body(bytes);
            if (broken_off) answer.problem = "broken off";
            return !broken_off;
        }
        if (answer.body.size() + bytes.size() > request.body_bytes_max) {
            answer.problem = "the answer is larger than " + std::to_string(request.body_bytes_max) + " bytes";
            return false;
        }
        answer.body += bytes;
        return true;
    }
    void add_header(const std::string& line) {
        curl_slist* longer = curl_slist_append(header_list, line.c_str());
        INVARIANT(longer != nullptr, "libcurl has memory");
        header_list = longer;
    }
    /// How long to wait for the next byte, in milliseconds; 0 or less: too long already.
    int64_t patience(int64_t at_most) const {
        if (request.silence_timeout_ms == 0 || sends == 0) return at_most;
        const auto left = last_byte + milliseconds(request.silence_timeout_ms) - steady_clock::now();
        return std::min<int64_t>(at_most, std::chrono::ceil<milliseconds>(left).count());
    }
};

HttpCall::HttpCall(Options options) : options_(std::move(options)), handles_(std::make_unique<Handles>()) {}

HttpCall::~HttpCall() = default;

void HttpCall::stop() {
    stopped_.store(true, std::memory_order_release);
    curl_multi_wakeup(handles_->multi);
}

void HttpCall::configure(Call& call) const {
    CURL* easy = call.easy;
    const HttpCallRequest& request = call.request;
    curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));  // one call, one connection
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);  // a stream notices a machine that is gone
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, 5L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, 2L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
    if (!options_.ca_file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, options_.ca_file.c_str());
    if (!options_.certificate_file.empty()) {
        curl_easy_setopt(easy, CURLOPT_SSLCERT, options_.certificate_file.c_str());
        curl_easy_setopt(easy, CURLOPT_SSLKEY, options_.key_file.c_str());
    }
    const uint32_t connect_ms = request.connect_timeout_ms ? request.connect_timeout_ms : request.total_timeout_ms;
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(connect_ms));
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.total_timeout_ms));
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.data());  // not copied
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    call.add_header("Expect:");
    call.add_header("Content-Type: application/json");
    for (const auto& header : request.headers) call.add_header(header.name + ": " + header.value);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call.header_list);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Call::on_bytes);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &call);
    curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, &Call::on_connected);
    curl_easy_setopt(easy, CURLOPT_PREREQDATA, &call);
}

HttpCallAnswer HttpCall::post(const HttpCallRequest& request, const std::function<bool(std::string_view)>& on_body) {
    CURL* easy = handles_->easy;
    CURLM* multi = handles_->multi;
    Call call{easy, request, on_body, {}};
    HttpCallAnswer& answer = call.answer;
    curl_easy_reset(easy);  // keeps the connections
    configure(call);
    const CURLMcode added = curl_multi_add_handle(multi, easy);
    INVARIANT(added == CURLM_OK, "an idle handle can be added");
    for (bool done = false; !done;) {
        if (stopped()) {
            answer.problem = "stopped";
            break;
        }
        int running = 0, left = 0;
        curl_multi_perform(multi, &running);
        while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
            if (message->msg != CURLMSG_DONE) continue;
            done = true;
            answer.answered = message->data.result == CURLE_OK;
            if (!answer.answered && answer.problem.empty()) answer.problem = curl_easy_strerror(message->data.result);
        }
        if (done) break;
        const int64_t wait_ms = call.patience(60'000);
        if (wait_ms <= 0) {
            answer.problem = "no byte for " + std::to_string(request.silence_timeout_ms) + " ms";
            break;
        }
        curl_multi_poll(multi, nullptr, 0, static_cast<int>(wait_ms), nullptr);
    }
    long status = 0;
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    answer.status = static_cast<int>(status);
    curl_multi_remove_handle(multi, easy);  // closes a connection that is not at the end of its answer
    if (!answer.answered) answer.problem = origin_of(request.url) + ": " + answer.problem;
    return std::move(answer);
}

}  // namespace mainstay
