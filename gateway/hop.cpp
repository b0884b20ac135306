#include "gateway/hop.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>

#include "gateway/error_table.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

constexpr uint32_t back_off_max = 40;                 // times the first
constexpr uint32_t unreachable_back_off_max = 10;     // a look costs nothing, and a link comes up any moment
constexpr size_t stream_bytes_max = 4 * 1024 * 1024;  // rendered and not yet taken by the connection
constexpr std::string_view replayed_line = "Idempotency-Replayed: true\r\n";

uint64_t now_us() {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count());
}

/// What handlers answer with; a view of a peer's text would not live long enough.
std::string_view static_content_type(std::string_view given) {
    constexpr std::string_view known[] = {"application/json", "text/plain; charset=utf-8",
                                          "text/plain; version=0.0.4; charset=utf-8", "text/event-stream"};
    const auto* found = std::ranges::find(known, given);
    return found != std::end(known) ? *found : "application/octet-stream";
}

/// Makes a turn or a conversation, and does so once under one key.
bool creates(const HttpRequest& request) {
    return request.method == HttpMethod::post &&
           (request.path == "/v1/responses" || request.path == "/v1/conversations");
}

/// Whom a request for a turn names; what is no such request is refused later, by who reads it whole.
std::string agent_named_in(const HttpRequest& request) {
    if (request.path != "/v1/responses") return {};
    boost::json::error_code ec;
    const auto value = boost::json::parse({request.body.data(), request.body.size()}, ec);
    const auto* object = ec ? nullptr : value.if_object();
    const auto* model = object != nullptr ? object->if_contains("model") : nullptr;
    return model != nullptr && model->is_string() ? std::string(model->get_string()) : std::string();
}

/// The error that an answer tells, for a client whose stream has begun.
Error error_of(const Answer& answer) {
    Error out{answer.error.value_or(ErrorCode::internal), "The request was refused.", {}};
    boost::json::error_code ec;
    const auto value = boost::json::parse(answer.body, ec);
    const auto* object = ec ? nullptr : value.if_object();
    const auto* error = object != nullptr ? object->if_contains("error") : nullptr;
    const auto* fields = error != nullptr ? error->if_object() : nullptr;
    if (fields == nullptr) return out;
    if (const auto* message = fields->if_contains("message"); message != nullptr && message->is_string())
        out.message.assign(message->get_string().data(), message->get_string().size());
    if (const auto* param = fields->if_contains("param"); param != nullptr && param->is_string())
        out.param.assign(param->get_string().data(), param->get_string().size());
    return out;
}

bool same_owner(const ShardPlace& a, const ShardPlace& b) {
    return a.where == b.where && (a.where == ShardPlace::Where::here || a.node == b.node);
}

}  // namespace

// --- metrics --------------------------------------------------------------------------------------------------------

HopMetrics::HopMetrics(prometheus::Registry& registry)
    : seconds_(prometheus::BuildHistogram()
                   .Name("mainstay_http_hop_duration_seconds")
                   .Help("Time from sending a request to another node to the end of its answer.")
                   .Register(registry)
                   .Add({}, prometheus::Histogram::BucketBoundaries{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                                    0.1, 0.25, 0.5, 1, 2.5, 10, 60})),
      waiting_(prometheus::BuildGauge()
                   .Name("mainstay_http_hop_waiting_requests")
                   .Help("Requests that wait for a node to lead their shard.")
                   .Register(registry)
                   .Add({})) {
    auto& hops = prometheus::BuildCounter()
                     .Name("mainstay_http_hops_total")
                     .Help("Requests sent to another node, by what became of them there.")
                     .Register(registry);
    for (size_t i = 0; i < hop_outcome_words.size(); ++i)
        outcomes_[i] = &hops.Add({{"outcome", std::string(hop_outcome_words[i])}});
}

void HopMetrics::ended(HopOutcome outcome, double seconds) {
    outcomes_[static_cast<size_t>(outcome)]->Increment();
    seconds_.Observe(seconds);
}

// --- one request ----------------------------------------------------------------------------------------------------

Hop::Hop(Hops& hops, const HttpRequest& request, std::shared_ptr<AnswerPort> client, uint64_t serial)
    : hops_(hops),
      request_(std::make_shared<HopRequest>(HopRequest::of(request))),
      client_(std::move(client)),
      serial_(serial) {
    if (!creates(request) || !request.idempotency_key.empty()) return;
    request_->idempotency_key =
        hops_.bridge_.make_request_key(request.principal, [&request] { return agent_named_in(request); });
    own_key_ = true;
}

size_t Hop::start() { return run_here(); }

bool Hop::may_be_repeated() const {
    if (request_->method == HttpMethod::get || request_->method == HttpMethod::del) return true;
    return creates(request_->view());  // which has a key
}

size_t Hop::run_here() {
    ++attempt_;
    ++attempts_;
    tried_.where = ShardPlace::Where::here;
    const auto request = request_;  // a handler may answer before it has read all of it
    return hops_.routes_.answer(request->view(), Reply(shared_from_this(), attempt_, hops_.mailbox_));
}

void Hop::run_there(const NodeUuid& node) {
    const uint64_t attempt = ++attempt_;
    ++attempts_;
    tried_.where = ShardPlace::Where::there;
    tried_.node = node;
    calling_ = true;
    called_at_us_ = now_us();
    head_.reset();
    body_.clear();
    const auto come_in = [weak = weak_from_this(), mailbox = hops_.mailbox_](auto act) {
        mailbox->post([weak, act = std::move(act)] {
            if (const auto self = weak.lock()) act(*self);
        });
    };
    call_ = hops_.caller_.call(
        node, encode_hop_request(*request_),
        [come_in, attempt](std::string part) {
            come_in([attempt, part = std::move(part)](Hop& self) { self.part_came(attempt, part); });
        },
        [come_in, attempt](std::optional<Error> failure) {
            come_in([attempt, failure = std::move(failure)](Hop& self) { self.call_ended(attempt, failure); });
        });
}

// --- from this node's handlers

void Hop::answer(uint64_t serial, Answer answer) {
    if (serial != attempt_ || done_ || waiting_ || calling_ || local_) return;
    judge(std::move(answer), false);
}

void Hop::begin_stream(uint64_t serial, std::shared_ptr<StreamBody> body) {
    if (serial != attempt_ || done_ || waiting_ || calling_ || local_) {
        body->closed();
        return;
    }
    local_ = std::move(body);
    pump();
}

void Hop::stream_ready(uint64_t serial) {
    if (serial == attempt_ && local_) pump();
}

void Hop::pump() {
    const auto local = local_;  // what is fed may end it
    splice_.feed(local->take());
    if (local->overflowed()) overflowed_ = true;
    if (local->finished()) splice_.source_ended();
    fed();
}

// --- from another node

void Hop::part_came(uint64_t attempt, const std::string& bytes) {
    if (attempt != attempt_ || !calling_ || done_) return;
    const auto self = shared_from_this();
    auto part = decode_hop_part(bytes);
    auto* head = part ? std::get_if<HopHead>(&*part) : nullptr;
    if (!part || (head != nullptr) == head_.has_value()) {
        leave_source();
        end_call(HopOutcome::refused);
        return judge(error_answer(ErrorCode::internal, "Another node's answer could not be read."), true);
    }
    if (head != nullptr) {
        head_ = std::move(*head);
        return;
    }
    auto& body = std::get<HopBody>(*part).bytes;
    if (head_->stream) {
        splice_.feed(body);
        return fed();
    }
    // A node never makes answers so large; one that does is not believed.
    if (body_.size() + body.size() > limits::link_queue_bytes_max) {
        leave_source();
        end_call(HopOutcome::refused);
        return judge(error_answer(ErrorCode::internal, "Another node's answer is too large."), true);
    }
    body_ += body;
}

void Hop::call_ended(uint64_t attempt, const std::optional<Error>& failure) {
    if (attempt != attempt_ || !calling_ || done_) return;
    const auto self = shared_from_this();
    call_.reset();
    if (!failure && head_ && head_->stream) {
        end_call(HopOutcome::answered);
        splice_.source_ended();
        return fed();
    }
    if (!failure && head_) {
        Answer answer;
        answer.status = head_->status;
        answer.content_type = static_content_type(head_->content_type);
        answer.headers = std::move(head_->headers);
        answer.body = std::move(body_);
        answer.error = head_->error;
        answer.shard = head_->shard;
        const bool sent_back = answer.error == ErrorCode::misdirected || answer.error == ErrorCode::shard_unavailable;
        end_call(sent_back ? HopOutcome::misdirected : HopOutcome::answered);
        return judge(std::move(answer), true);
    }
    const auto code = failure ? failure->code : ErrorCode::internal;
    if (code == ErrorCode::misdirected) {
        --attempts_;  // it came to nobody
        end_call(HopOutcome::unreachable);
        return look(
            error_answer(ErrorCode::shard_unavailable, "The node that leads the session's shard is not reached.",
                         shard_ ? std::to_string(shard_->value) : std::string()),
            shard_);
    }
    if (code == ErrorCode::peer_refused) {
        end_call(HopOutcome::refused);
        return look(error_answer(*failure), shard_);
    }
    if (code == ErrorCode::body_too_large) {
        end_call(HopOutcome::refused);
        return deliver(error_answer(*failure));
    }
    end_call(HopOutcome::lost);
    judge(error_answer(ErrorCode::shard_unavailable, "The node that ran the request was lost."), true);
}

void Hop::end_call(HopOutcome outcome) {
    if (!std::exchange(calling_, false)) return;
    hops_.metrics_.ended(outcome, static_cast<double>(now_us() - called_at_us_) / 1e6);
}

// --- what becomes of it

/// The splice has new bytes, or its source has ended or is lost.
void Hop::fed() {
    const auto self = shared_from_this();
    if (splice_.events() > events_seen_) {  // progress: whatever fails next is another failure
        events_seen_ = splice_.events();
        attempts_ = 0;
        looks_ = 0;
        waited_ms_ = 0;
        forgave_internal_.reset();
    }
    if (splice_.out().size() > stream_bytes_max) overflowed_ = true;
    const auto lost = splice_.lost();
    if (!begun_ && (!lost || splice_.events() > 0)) {
        begun_ = true;
        client_->begin_stream(serial_, self);
        if (done_) return;
    }
    if (lost) {
        leave_source();
        end_call(HopOutcome::lost);
        judge(error_answer(*lost), true);
    } else if (splice_.finished()) {
        end_call(HopOutcome::answered);
        call_.reset();  // its end is on the way
        leave_source();
        done_ = true;
        request_.reset();
    }
    if (begun_) client_->stream_ready(serial_);
}

/// Whether an answer is the client's, or its request is to run again.
void Hop::judge(Answer answer, bool from_peer) {
    const auto code = answer.error;
    if (code == ErrorCode::misdirected || code == ErrorCode::shard_unavailable) {
        // With its shard it was refused before it began, or by a turn that is recorded under its key.
        uncertain_ = uncertain_ || !answer.shard;
        if (answer.shard || may_be_repeated()) return look(std::move(answer), answer.shard);
        return deliver(dropped_answer());
    }
    // An actor that was dropped, by a step-down that this door has not heard of yet or by a crash: once by the same
    // owner. A request that waits for long, say for a person, is dropped by one after the other as nodes are restarted.
    const bool again = forgave_internal_ && same_owner(*forgave_internal_, tried_);
    if (code == ErrorCode::internal && may_be_repeated() && !again) {
        forgave_internal_ = tried_;
        uncertain_ = true;
        return look(std::move(answer), std::nullopt);
    }
    if ((code == ErrorCode::draining || code == ErrorCode::starting) && from_peer)
        return look(std::move(answer), shard_);
    deliver(std::move(answer));
}

/// Runs it where it belongs, as soon as that is known.
void Hop::look(Answer failed, std::optional<ShardId> shard) {
    if (attempts_ >= limits::hop_attempts_max) return deliver(std::move(failed));
    const bool unreachable = failed.error == ErrorCode::shard_unavailable;
    if (shard) shard_ = shard;
    failed_ = std::move(failed);
    const uint64_t now = now_us() / 1000;
    // The first look is at once: a request that came to the wrong node is the usual case. Later ones give the views of
    // both nodes time to become one.
    const uint32_t factor =
        looks_ == 0 ? 0
                    : std::min(1u << std::min(looks_ - 1, 8u), unreachable ? unreachable_back_off_max : back_off_max);
    ++looks_;
    waiting_ = true;
    waiting_since_ms_ = now;
    not_before_ms_ = now + uint64_t{factor} * hops_.times_.back_off_ms;
    hops_.waiting_.insert(this);
    hops_.metrics_.waiting(hops_.waiting_.size());
    if (hops_.on_waiting) hops_.on_waiting();
    hops_.watch();  // before it looks: no change falls between the two
    look_again(now);
}

void Hop::look_again(uint64_t now_ms) {
    const auto self = shared_from_this();
    if (waited_ms_ + (now_ms - waiting_since_ms_) >= hops_.times_.wait_ms) {
        stop_waiting();
        return deliver(std::move(failed_));
    }
    ShardPlace place;
    place.where = ShardPlace::Where::here;
    if (shard_) place = hops_.shards_.find(*shard_);
    if (place.where == ShardPlace::Where::nowhere) return;
    const bool tried = same_owner(place, tried_);
    if (tried && now_ms < not_before_ms_) return;
    if (!tried) looks_ = 1;  // what came before says nothing about another owner, who may be ready any moment
    stop_waiting();
    splice_.next_source();
    if (place.where == ShardPlace::Where::here)
        run_here();
    else
        run_there(place.node);
}

void Hop::stop_waiting() {
    if (!std::exchange(waiting_, false)) return;
    waited_ms_ += now_us() / 1000 - waiting_since_ms_;
    hops_.waiting_.erase(this);
    hops_.metrics_.waiting(hops_.waiting_.size());
}

void Hop::deliver(Answer answer) {
    if (done_) return;
    done_ = true;
    // Who has no key of its own must not be told to send it again: an earlier attempt may stand.
    const bool given_up = answer.error == ErrorCode::misdirected || answer.error == ErrorCode::shard_unavailable;
    if (given_up && uncertain_ && own_key_) answer = dropped_answer();
    request_.reset();
    if (begun_) {
        splice_.fail(error_of(answer));
        client_->stream_ready(serial_);
        return;
    }
    if (own_key_)
        if (const auto at = answer.headers.find(replayed_line); at != std::string::npos)
            answer.headers.erase(at, replayed_line.size());
    client_->answer(serial_, std::move(answer));
}

void Hop::leave_source() {
    if (const auto local = std::exchange(local_, nullptr)) local->closed();
    if (const auto call = std::exchange(call_, nullptr)) call->cancel();
}

void Hop::abandon() {
    const auto self = shared_from_this();
    done_ = true;
    stop_waiting();
    leave_source();
    end_call(HopOutcome::cancelled);
    request_.reset();
}

// --- all of them ----------------------------------------------------------------------------------------------------

Hops::Hops(HopTimes times, ShardDirectory& shards, HopCaller& caller, Bridge& bridge, const Routes& routes,
           std::shared_ptr<Mailbox> mailbox, prometheus::Registry& registry)
    : times_(times),
      shards_(shards),
      caller_(caller),
      bridge_(bridge),
      routes_(routes),
      mailbox_(std::move(mailbox)),
      metrics_(registry) {}

std::shared_ptr<Hop> Hops::begin(const HttpRequest& request, std::shared_ptr<AnswerPort> client, uint64_t serial,
                                 size_t& route) {
    if (Routes::is_health(request.path)) {
        route = routes_.answer(request, Reply(std::move(client), serial, mailbox_));
        return nullptr;
    }
    // A key of this form says which session it makes: only a door may say that.
    if (creates(request) && request.idempotency_key.starts_with(request_key_prefix)) {
        client->answer(serial, error_answer(ErrorCode::invalid_request,
                                            "Idempotency-Key must not begin with '" + std::string(request_key_prefix) +
                                                "': such keys are the cluster's own.",
                                            "Idempotency-Key"));
        return nullptr;
    }
    auto hop = std::make_shared<Hop>(*this, request, std::move(client), serial);
    route = hop->start();
    return hop;
}

void Hops::tick() {
    if (!waiting_.empty()) look_again();
}

/// One callback for all that wait; asked for anew as long as anybody does.
void Hops::watch() {
    if (std::exchange(watching_, true)) return;
    shards_.when_changed(shards_.version(), [this, mailbox = mailbox_, alive = std::weak_ptr<bool>(alive_)] {
        mailbox->post([this, alive] {
            if (alive.expired()) return;
            watching_ = false;
            if (waiting_.empty()) return;
            watch();
            look_again();
        });
    });
}

void Hops::look_again() {
    const uint64_t now = now_us() / 1000;
    // A copy: one that goes on takes itself out, and may come back in.
    const std::vector<Hop*> all(waiting_.begin(), waiting_.end());
    for (Hop* hop : all)
        if (waiting_.contains(hop)) hop->look_again(now);
}

}  // namespace mainstay
