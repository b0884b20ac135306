#include "runtime/inference/openai_device.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/inference/chat_reply.h"
#include "runtime/inference/chat_request.h"
#include "runtime/inference/model_error.h"
#include "runtime/inference/sse_parser.h"
#include "runtime/inference/upstream_choice.h"

namespace mainstay {

struct OpenAiDevice::Shared {
    explicit Shared(HttpClient& client) : http(client) {}

    // Borrowed: a step that owned the client could be the last to do so, on the client's own thread.
    HttpClient& http;
    const SystemClock clock;

    struct InFlight {
        uint64_t transfer;
        std::shared_ptr<Step> step;
    };
    std::mutex lock;
    std::unordered_map<uint64_t, InFlight> steps;  // by request id
    UpstreamChoice choice;

    // Held by the HTTP client's thread while a sink is called: the destructor waits here for the last call to end.
    std::mutex telling;
    bool closed = false;  // by the destructor, under `telling`

    uint64_t now_ms() const { return clock.monotonic_ns() / 1'000'000; }
};

namespace {

std::string endpoint(std::string base_url) {
    while (base_url.ends_with('/')) base_url.pop_back();
    return base_url + "/chat/completions";
}

std::string header_value(const std::vector<HttpHeader>& headers, std::string_view name) {
    for (const auto& header : headers)
        if (header.name == name) return header.value;
    return {};
}

/// What an upstream may know of a session: that two requests belong to the same one. The id itself opens the session to
/// whoever has a key, and its 128 random bits keep anyone from finding it by trying. Empty where there is no session.
std::string affinity_of(const ModelRequest& request) {
    if (request.session == SessionKey{}) return {};
    const auto& [tenant, session] = request.session;
    std::string key = request.model->name + '\0';  // a session that changes its model is another one there
    for (const uint64_t part : {uint64_t{tenant.value}, uint64_t{session.family.value}, session.high, session.low})
        key.append(reinterpret_cast<const char*>(&part), sizeof part);
    const KeyHash digest = key_hash("session for upstreams", key);
    return to_hex({reinterpret_cast<const char*>(digest.data()), digest.size()});
}

}  // namespace

/// One request and what became of it. Everything but `cancelled` belongs to the HTTP client's thread.
class OpenAiDevice::Step final : public HttpHandler {
  public:
    Step(std::shared_ptr<Shared> shared, const ModelRequest& request, std::shared_ptr<ModelSink> sink, std::string url,
         std::string secret)
        : shared_(std::move(shared)),
          sink_(std::move(sink)),
          request_id_(request.request_id),
          stream_(request.stream),
          url_(std::move(url)),
          secret_(std::move(secret)),
          reply_((request.idempotency_key.empty() ? request.request_id : xxh64(request.idempotency_key)) +
                 request.step) {}

    std::atomic<bool> cancelled{false};

    void on_head(int status, const std::vector<HttpHeader>& headers) override {
        status_ = status;
        {
            std::lock_guard lock(shared_->lock);
            shared_->choice.answered(url_);
        }
        if (status != 200) {
            headers_ = headers;
            return;
        }
        const std::string type = header_value(headers, "content-type");
        if (type.starts_with("application/json")) {
            shape_ = Shape::whole;
        } else if (type.starts_with("text/event-stream")) {
            shape_ = Shape::events;
        }
    }

    void on_body(std::string_view bytes) override {
        if (over_) return;
        if (status_ != 200) {
            body_.append(bytes.substr(0, limits::upstream_error_bytes_max - body_.size()));
            return;
        }
        if (shape_ == Shape::unknown) {
            const size_t first = bytes.find_first_not_of(" \t\r\n");
            if (first == std::string_view::npos) return;
            shape_ = bytes[first] == '{' ? Shape::whole : Shape::events;
        }
        if (shape_ == Shape::whole) {
            body_ += bytes;  // bounded by the client
            return;
        }
        const auto fed = events_.feed(bytes, [this](SseEvent&& event) { take_event(event.data); });
        if (!fed.ok() && !over_) fail(make_model_error(ErrorClass::protocol, "upstream: " + fed.error().message));
    }

    void on_done() override {
        if (over_) return;
        if (status_ != 200) {
            fail(classify_upstream_error(status_, headers_, body_, shared_->clock.now_ms(), secret_));
            return;
        }
        if (shape_ == Shape::whole) {
            std::string text;
            if (auto error = reply_.take_whole(body_, text)) {
                fail(std::move(*error));
                return;
            }
            tell(std::move(text));
        } else if (!event_seen_) {
            fail(make_model_error(ErrorClass::protocol, "upstream: the answer is neither an event stream nor JSON"));
            return;
        }
        finish();
    }

    void on_failed(HttpError error) override {
        if (over_) return;
        const bool refused = error.failure == HttpFailure::resolve || error.failure == HttpFailure::connect ||
                             error.failure == HttpFailure::connect_timeout || error.failure == HttpFailure::tls;
        if (refused) {
            std::lock_guard lock(shared_->lock);
            shared_->choice.refused(url_, shared_->now_ms());
        }
        if (status_ != 0 && status_ != 200) {  // the status says more than the loss of its text
            fail(classify_upstream_error(status_, headers_, body_, shared_->clock.now_ms(), secret_));
        } else if (error.failure == HttpFailure::lost && shape_ == Shape::events) {
            finish();
        } else {
            fail(classify_transport_error(error, status_ != 0));
        }
    }

  private:
    enum class Shape : uint8_t { unknown, events, whole };

    void take_event(std::string_view data) {
        if (over_) return;
        event_seen_ = true;
        std::string text;
        if (auto error = reply_.take_event(data, text)) {
            fail(std::move(*error));
            return;
        }
        tell(std::move(text));
        if (reply_.finished()) finish();
    }

    void tell(std::string text) {
        if (!stream_ || text.empty()) return;
        std::lock_guard telling(shared_->telling);
        if (!cancelled && !shared_->closed) sink_->delta(request_id_, std::move(text));
    }

    void finish() {
        auto outcome = reply_.finish();
        if (auto* error = std::get_if<ModelError>(&outcome)) {
            fail(std::move(*error));
            return;
        }
        end();
        std::lock_guard telling(shared_->telling);
        if (!cancelled && !shared_->closed) sink_->done(request_id_, std::get<ModelResult>(std::move(outcome)));
    }

    void fail(ModelError error) {
        const uint64_t transfer = end();
        shared_->http.cancel(transfer);  // after an error nothing that still comes is wanted
        cut_secret(error.message, secret_);
        std::lock_guard telling(shared_->telling);
        if (!cancelled && !shared_->closed) sink_->failed(request_id_, std::move(error));
    }

    /// Leaves the list of steps before the sink hears of the end, because it may submit the next attempt at once.
    uint64_t end() {
        over_ = true;
        std::lock_guard lock(shared_->lock);
        const auto found = shared_->steps.find(request_id_);
        if (found == shared_->steps.end() || found->second.step.get() != this) return 0;
        const uint64_t transfer = found->second.transfer;
        shared_->steps.erase(found);
        return transfer;
    }

    const std::shared_ptr<Shared> shared_;
    const std::shared_ptr<ModelSink> sink_;
    const uint64_t request_id_;
    const bool stream_;
    const std::string url_, secret_;
    ChatReply reply_;
    SseParser events_;
    Shape shape_ = Shape::unknown;
    int status_ = 0;
    std::vector<HttpHeader> headers_;  // of an error answer
    std::string body_;                 // of an error or whole answer
    bool event_seen_ = false, over_ = false;
};

OpenAiDevice::OpenAiDevice(std::shared_ptr<HttpClient> http, uint32_t stall_timeout_ms)
    : http_(std::move(http)), stall_timeout_ms_(stall_timeout_ms), shared_(std::make_shared<Shared>(*http_)) {}

OpenAiDevice::~OpenAiDevice() {
    std::unordered_map<uint64_t, Shared::InFlight> steps;
    {
        std::lock_guard lock(shared_->lock);
        steps.swap(shared_->steps);
    }
    for (auto& [id, in_flight] : steps) {
        in_flight.step->cancelled = true;
        shared_->http.cancel(in_flight.transfer);
    }
    std::lock_guard telling(shared_->telling);
    shared_->closed = true;
}

Result<void> OpenAiDevice::check(const ModelSpec& model) {
    if (model.base_url.empty())
        return {ErrorCode::unsupported_value, "model " + model.name + ": device openai needs base_url", "base_url"};
    for (const auto& url : model.base_url)
        if (auto checked = check_http_url(endpoint(url)); !checked)
            return {ErrorCode::unsupported_value, "model " + model.name + ": " + checked.error().message, "base_url"};
    return {};
}

void OpenAiDevice::submit(ModelRequest request, std::shared_ptr<ModelSink> sink) {
    const uint64_t request_id = request.request_id;
    const auto refuse = [&](ErrorClass error_class, std::string message) {
        sink->failed(request_id, make_model_error(error_class, std::move(message)));
    };
    const ModelSpec& model = *request.model;

    uint64_t total_ms = limits::upstream_total_timeout_ms;
    if (request.deadline != 0) {
        const TimeMs now = shared_->clock.now_ms();
        if (request.deadline <= now) return refuse(ErrorClass::timeout, "the deadline of the step has passed");
        total_ms = std::min(total_ms, request.deadline - now);
    }

    std::string secret;
    if (!model.api_key_env.empty()) {
        const char* value = std::getenv(model.api_key_env.c_str());
        if (!value || !*value)
            return refuse(ErrorClass::auth, "environment variable " + model.api_key_env + " holds no key");
        secret = value;
    }

    if (model.base_url.empty()) return refuse(ErrorClass::invalid, "the model has no base_url");
    const std::string affinity = affinity_of(request);
    std::string url;
    {
        std::lock_guard lock(shared_->lock);
        const uint64_t hash = affinity.empty() ? 0 : xxh64(affinity);
        url = model.base_url[shared_->choice.pick(model.base_url, hash, shared_->now_ms())];
    }
    auto body = render_chat_request(request, takes_prompt_cache_key(url) ? affinity : std::string());
    if (!body) return refuse(ErrorClass::invalid, body.error().message);

    HttpClientRequest http;
    http.method = "POST";
    http.body = std::move(*body);
    http.stall_timeout_ms = stall_timeout_ms_;
    http.total_timeout_ms = static_cast<uint32_t>(total_ms);
    http.headers = {{"Content-Type", "application/json"},
                    {"Accept", "text/event-stream, application/json"},
                    {"User-Agent", "mainstay"}};
    if (!request.idempotency_key.empty()) http.headers.push_back({"Idempotency-Key", request.idempotency_key});
    if (!affinity.empty()) http.headers.push_back({"X-Session-Id", affinity});
    if (!secret.empty()) http.headers.push_back({"Authorization", "Bearer " + secret});

    std::optional<Error> refused;
    {
        // Held over the submission, so that the step is in the list before its first callback looks for it there.
        std::lock_guard lock(shared_->lock);
        http.url = endpoint(url);
        const auto step = std::make_shared<Step>(shared_, request, sink, std::move(url), std::move(secret));
        const auto submitted = shared_->http.submit(std::move(http), step);
        if (submitted) {
            const bool fresh = shared_->steps.emplace(request_id, Shared::InFlight{*submitted, step}).second;
            INVARIANT(fresh, "request ids are unique in the process");
        } else {
            refused = submitted.error();
        }
    }
    if (!refused) return;
    refuse(refused->code == ErrorCode::too_many_connections ? ErrorClass::overloaded : ErrorClass::invalid,
           refused->message);
}

void OpenAiDevice::cancel(uint64_t request_id) {
    Shared::InFlight in_flight;
    {
        std::lock_guard lock(shared_->lock);
        const auto found = shared_->steps.find(request_id);
        if (found == shared_->steps.end()) return;
        in_flight = std::move(found->second);
        shared_->steps.erase(found);
    }
    in_flight.step->cancelled = true;
    shared_->http.cancel(in_flight.transfer);
}

}  // namespace mainstay
