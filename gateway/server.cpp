#include "gateway/server.h"

#include <time.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/string.hpp>
#include <charconv>
#include <chrono>
#include <coroutine>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "gateway/api.h"
#include "gateway/auth.h"
#include "gateway/error_table.h"
#include "gateway/hop.h"
#include "gateway/hop_server.h"
#include "gateway/http_reader.h"
#include "gateway/metrics.h"
#include "gateway/routes.h"
#include "runtime/base/heap.h"
#include "runtime/base/random.h"

namespace mainstay {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;

constexpr uint64_t quiet_ms_before_rest = 5000;
constexpr size_t buffer_bytes_first = 4 * 1024;
constexpr size_t buffer_bytes_kept = 64 * 1024;       // a larger one is given back after its request
constexpr size_t linger_bytes_max = 4 * 1024 * 1024;  // read and dropped after a refusal, so that the answer arrives
constexpr uint32_t linger_ms = 2'000;
constexpr uint32_t timeout_grace_ms = 2'000;  // beyond X-Mainstay-Timeout-Ms, for the node's own answer
constexpr uint32_t hop_tick_ms = 5;           // while requests wait for an owner

/// Milliseconds; coarse (4 ms) is enough for deadlines and costs 5 ns.
uint64_t coarse_ms() {
    timespec at;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &at);
    return static_cast<uint64_t>(at.tv_sec) * 1000 + static_cast<uint64_t>(at.tv_nsec) / 1'000'000;
}

/// A coroutine that owns itself: starts at once, its frame goes away at the end.
struct Detached {
    struct promise_type {
        Detached get_return_object() { return {}; }
        std::suspend_never initial_suspend() noexcept { return {}; }
        std::suspend_never final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
    };
};

std::string_view reason_of(uint16_t status) {
    switch (status) {
        case 200: return "OK";
        case 201: return "Created";
        case 400: return "Bad Request";
        case 401: return "Unauthorized";
        case 403: return "Forbidden";
        case 404: return "Not Found";
        case 405: return "Method Not Allowed";
        case 408: return "Request Timeout";
        case 409: return "Conflict";
        case 413: return "Content Too Large";
        case 414: return "URI Too Long";
        case 415: return "Unsupported Media Type";
        case 422: return "Unprocessable Content";
        case 429: return "Too Many Requests";
        case 431: return "Request Header Fields Too Large";
        case 500: return "Internal Server Error";
        case 502: return "Bad Gateway";
        case 503: return "Service Unavailable";
        case 504: return "Gateway Timeout";
        case 507: return "Insufficient Storage";
        default: return "Answer";
    }
}

HttpMethod method_of(std::string_view method) {
    if (method == "POST") return HttpMethod::post;
    if (method == "GET" || method == "HEAD") return HttpMethod::get;
    if (method == "DELETE") return HttpMethod::del;
    return HttpMethod::other;
}

void append_number(std::string& out, size_t value, int base = 10) {
    char digits[24];
    out.append(digits, std::to_chars(digits, digits + sizeof digits, value, base).ptr);
}

}  // namespace

class Connection;

class Door::Core : public std::enable_shared_from_this<Door::Core> {
  public:
    Core(DoorConfig given, Bridge& bridge, prometheus::Registry& registry)
        : config(std::move(given)),
          api(bridge, config.cluster),
          authenticator(config.admin_key),
          metrics(registry, api.routes().labels()) {
        SecureRandom random;
        request_id_base_ = random.next();
    }

    /// Once, when there is a shared_ptr to it.
    void open_mailbox(Bridge& bridge, prometheus::Registry& registry);
    Result<void> start();
    void run();
    void stop();

    /// "req_" and 16 hex digits: unguessable enough to be searched for in a log, cheap enough for every answer.
    void append_request_id(std::string& out);
    bool host_allowed(std::string_view host) const;
    void closed(Connection* connection);

    const DoorConfig config;
    asio::io_context io{1};
    Api api;
    Authenticator authenticator;
    DoorMetrics metrics;
    std::shared_ptr<Mailbox> mailbox;
    std::unique_ptr<Hops> hops;  // null: the node is alone
    std::shared_ptr<HopServer> hop_server;
    bool loopback = true, draining = false;
    std::string date_line;
    std::atomic<uint16_t> port{0};

  private:
    void accept();
    void accepted(Tcp::socket socket);
    void tick();
    void tick_hops();
    void update_date();
    void rest(uint64_t now);
    void begin_drain();
    bool idle() const { return connections_.empty() && (!hop_server || hop_server->idle()); }
    void end_if_idle();

    std::optional<Tcp::acceptor> acceptor_;
    asio::steady_timer tick_timer_{io};
    asio::steady_timer accept_timer_{io};
    asio::steady_timer hop_timer_{io};
    bool hops_ticking_ = false;
    std::unordered_set<Connection*> connections_;
    uint64_t request_id_base_ = 0, requests_ = 0, drain_deadline_ = 0;
    uint64_t requests_seen_ = 0, quiet_since_ = 0;  // by the last tick; when the newest of them was seen
    bool rested_ = true;
    time_t date_at_ = 0;
};

class Connection final : public AnswerPort, public std::enable_shared_from_this<Connection> {
  public:
    using Core = Door::Core;
    Connection(std::shared_ptr<Core> core, Tcp::socket socket) : core_(std::move(core)), socket_(std::move(socket)) {}

    /// The whole life of a connection. `self` keeps it alive while the coroutine runs.
    static Detached serve(std::shared_ptr<Connection> self);

    void tick(uint64_t now);
    void drain();
    void abort();

    void answer(uint64_t serial, Answer given) override {
        if (serial != serial_ || answer_ || stream_) return;
        answer_ = std::move(given);
        wake();
    }
    void begin_stream(uint64_t serial, std::shared_ptr<StreamBody> body) override {
        if (serial != serial_ || answer_ || stream_) {
            body->closed();
            return;
        }
        stream_ = std::move(body);
        wake();
    }
    void stream_ready(uint64_t serial) override {
        if (serial == serial_) wake();
    }

  private:
    /// Suspends until something happened; callers loop on what they wait for.
    struct Wait {
        Connection& connection;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> handle) noexcept { connection.waiting_ = handle; }
        void await_resume() const noexcept {}
    };
    Wait wait() { return Wait{*this}; }
    void wake() {
        if (waiting_) std::exchange(waiting_, nullptr).resume();
    }
    void set_deadline(uint32_t in_ms) {
        timed_out_ = false;
        deadline_ = coarse_ms() + in_ms;
    }
    void clear_deadline() {
        timed_out_ = false;
        deadline_ = 0;
    }
    bool gone() const { return broken_ || timed_out_; }

    std::string_view input() const { return {buffer_.get() + begin_, end_ - begin_}; }
    void consume(size_t bytes);
    void reserve(size_t bytes);
    void start_read();
    void flush();

    bool admit(const RequestHead& header, Error& refusal);
    void fill(const RequestHead& header, std::string_view body, HttpRequest& request) const;
    void dispatch(const HttpRequest& request);
    void render(Answer& answer, bool head, bool keep_alive);
    void render_stream_header(bool keep_alive);
    void append_chunk(std::string_view text);

    std::shared_ptr<Core> core_;
    Tcp::socket socket_;
    std::unique_ptr<char[]> buffer_;
    size_t capacity_ = 0, begin_ = 0, end_ = 0;
    std::string out_;
    size_t out_sent_ = 0;
    std::coroutine_handle<> waiting_;
    uint64_t serial_ = 0, deadline_ = 0;
    std::optional<Answer> answer_;
    std::shared_ptr<StreamBody> stream_;
    std::shared_ptr<Hop> hop_;
    Principal principal_;
    size_t route_ = 0;
    bool read_pending_ = false, write_pending_ = false, end_of_input_ = false, broken_ = false, timed_out_ = false;
    bool idle_ = true;  // between requests, with nothing read
};

// --- buffers --------------------------------------------------------------------------------------------------------

void Connection::consume(size_t bytes) {
    begin_ += bytes;
    if (read_pending_) return;  // the kernel may write behind end_ at any time: nothing moves
    if (begin_ == end_) begin_ = end_ = 0;
    if (capacity_ > buffer_bytes_kept && end_ - begin_ < buffer_bytes_first) {
        auto smaller = std::make_unique<char[]>(buffer_bytes_first);
        std::memcpy(smaller.get(), buffer_.get() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
        buffer_ = std::move(smaller);
        capacity_ = buffer_bytes_first;
    }
}

/// Room for `bytes` from begin_ on. Precondition: no read is pending.
void Connection::reserve(size_t bytes) {
    if (capacity_ - begin_ >= bytes) return;
    const size_t held = end_ - begin_;
    if (capacity_ >= bytes) {
        std::memmove(buffer_.get(), buffer_.get() + begin_, held);
    } else {
        auto larger = std::make_unique<char[]>(bytes);
        if (held > 0) std::memcpy(larger.get(), buffer_.get() + begin_, held);
        buffer_ = std::move(larger);
        capacity_ = bytes;
    }
    begin_ = 0;
    end_ = held;
}

void Connection::start_read() {
    if (read_pending_ || end_of_input_ || broken_) return;
    if (end_ == capacity_) reserve(std::max(buffer_bytes_first, (end_ - begin_) * 2));
    read_pending_ = true;
    socket_.async_read_some(asio::buffer(buffer_.get() + end_, capacity_ - end_),
                            [self = shared_from_this()](const SystemError& ec, size_t bytes) {
                                self->read_pending_ = false;
                                self->end_ += bytes;
                                self->core_->metrics.received(bytes);
                                if (ec == asio::error::eof)
                                    self->end_of_input_ = true;
                                else if (ec)
                                    self->broken_ = true;
                                self->wake();
                            });
}

/// Sends what it can at once (the usual case: all of it, one call) and the rest as the socket takes it.
void Connection::flush() {
    while (!broken_ && out_sent_ < out_.size()) {
        SystemError ec;
        out_sent_ += socket_.write_some(asio::buffer(out_.data() + out_sent_, out_.size() - out_sent_), ec);
        if (ec == asio::error::would_block || ec == asio::error::try_again) {
            if (write_pending_) return;
            write_pending_ = true;
            socket_.async_wait(Tcp::socket::wait_write, [self = shared_from_this()](const SystemError& failed) {
                self->write_pending_ = false;
                if (failed) self->broken_ = true;
                self->flush();
                self->wake();
            });
            return;
        }
        if (ec) broken_ = true;
    }
    out_.clear();
    out_sent_ = 0;
}

// --- from header to handler -----------------------------------------------------------------------------------------

/// Before a byte of the body is read: the host, the key and the announced length.
bool Connection::admit(const RequestHead& header, Error& refusal) {
    if (!core_->host_allowed(header.host)) {
        refusal = {ErrorCode::forbidden, "This host name is not served here; see listen.allowed_hosts.", {}};
        return false;
    }
    const auto path = header.target.substr(0, header.target.find('?'));
    const bool open = core_->loopback && core_->config.public_health && Routes::is_health(path);
    principal_ = {};
    if (auto principal = core_->authenticator.authenticate(header.authorization)) {
        principal_ = std::move(*principal);
    } else if (!open) {
        refusal = {ErrorCode::unauthenticated, "A valid key is needed: Authorization: Bearer KEY.", {}};
        return false;
    }
    if (header.content_length > core_->config.body_bytes_max) {
        refusal = {ErrorCode::body_too_large,
                   "The body exceeds " + std::to_string(core_->config.body_bytes_max) + " bytes.",
                   {}};
        return false;
    }
    return true;
}

void Connection::fill(const RequestHead& header, std::string_view body, HttpRequest& request) const {
    request.method = method_of(header.method);
    request.head = header.method == "HEAD";
    const auto question = std::min(header.target.find('?'), header.target.size());
    request.path = header.target.substr(0, question);
    request.query = header.target.substr(std::min(question + 1, header.target.size()));
    request.authorization = header.authorization;
    request.content_type = header.content_type;
    request.idempotency_key = header.idempotency_key;
    request.timeout_ms = header.timeout_ms;
    request.body = body;
    request.loopback = core_->loopback;
    request.principal = principal_;
}

void Connection::dispatch(const HttpRequest& request) {
    if (!core_->hops) {
        route_ = core_->api.routes().answer(request, Reply(shared_from_this(), serial_, core_->mailbox));
        return;
    }
    try {
        hop_ = core_->hops->begin(request, shared_from_this(), serial_, route_);
    } catch (const std::exception&) {  // no memory for the request's copy
        answer(serial_, error_answer(ErrorCode::internal, "The request could not be handled."));
    }
}

// --- answers --------------------------------------------------------------------------------------------------------

void Connection::render(Answer& answer, bool head, bool keep_alive) {
    out_.reserve(out_.size() + 320 + answer.headers.size() + answer.body.size());
    out_ += "HTTP/1.1 ";
    append_number(out_, answer.status);
    out_ += ' ';
    out_ += reason_of(answer.status);
    out_ += "\r\nContent-Type: ";
    out_ += answer.content_type;
    out_ += "\r\nContent-Length: ";
    append_number(out_, answer.body.size());
    out_ += "\r\n";
    out_ += core_->date_line;
    out_ += answer.headers;
    core_->append_request_id(out_);
    out_ += keep_alive ? "\r\n" : "Connection: close\r\n\r\n";
    if (!head) out_ += answer.body;
}

void Connection::render_stream_header(bool keep_alive) {
    out_ +=
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
        "Transfer-Encoding: chunked\r\n";
    out_ += core_->date_line;
    core_->append_request_id(out_);
    out_ += keep_alive ? "\r\n" : "Connection: close\r\n\r\n";
}

void Connection::append_chunk(std::string_view text) {
    append_number(out_, text.size(), 16);
    out_.append("\r\n").append(text).append("\r\n");
}

// --- the life of a connection ---------------------------------------------------------------------------------------

Detached Connection::serve(std::shared_ptr<Connection> self) {
    Connection& c = *self;
    Core& core = *c.core_;
    bool linger = false;
    for (bool keep_alive = true; keep_alive && !c.broken_;) {
        // 1. The header. Idle until its first byte, then against the header deadline.
        RequestHead header;
        std::optional<Error> refusal;
        bool whole = false;
        c.idle_ = c.begin_ == c.end_;
        c.set_deadline(c.idle_ ? core.config.idle_timeout_ms : core.config.header_timeout_ms);
        while (!whole && !refusal) {
            // One empty line before a request is tolerated (RFC 9112, 2.2).
            if (c.idle_ && c.input().starts_with("\r\n")) c.consume(2);
            if (c.begin_ != c.end_ && c.idle_) {
                c.idle_ = false;
                c.set_deadline(core.config.header_timeout_ms);
            }
            auto parsed = parse_header(c.input(), header);
            if (!parsed) {
                refusal = parsed.error();
            } else if (*parsed) {
                whole = true;
            } else if (c.broken_ || c.end_of_input_ || (core.draining && c.idle_)) {
                break;
            } else if (c.timed_out_) {
                if (c.idle_) break;
                refusal = Error{ErrorCode::request_timeout, "The header did not arrive in time.", {}};
            } else {
                c.start_read();
                co_await c.wait();
            }
        }
        if (!whole && !refusal) break;
        const auto started = std::chrono::steady_clock::now();
        c.route_ = core.api.routes().other_label();
        ++c.serial_;
        c.answer_.reset();
        c.stream_.reset();
        const bool head = whole && header.method == "HEAD";
        core.metrics.in_flight(1);

        // 2. The body: in place behind the header, or decoded from chunks.
        size_t request_bytes = header.bytes;
        std::optional<ChunkedReader> chunks;
        if (!refusal) {
            Error why;
            if (!c.admit(header, why)) refusal = std::move(why);
        }
        if (!refusal && header.has_body()) {
            const size_t header_bytes = header.bytes;
            const auto complete = [&] {
                return chunks ? chunks->done() : c.end_ - c.begin_ >= header_bytes + header.content_length;
            };
            if (header.chunked) {
                chunks.emplace(c.input().substr(0, header_bytes), core.config.body_bytes_max);
            } else {
                request_bytes += header.content_length;
            }
            if (!complete()) c.set_deadline(core.config.body_timeout_ms);
            if (header.expects_continue && c.end_ - c.begin_ == header_bytes) {
                c.out_ += "HTTP/1.1 100 Continue\r\n\r\n";
                c.flush();
            }
            const bool grows = !chunks && !complete();
            if (grows && !c.read_pending_) c.reserve(request_bytes);
            while (true) {
                if (chunks) {
                    // What was decoded is dropped from the buffer, so a body in tiny chunks needs no room twice.
                    auto fed = chunks->feed(c.input().substr(header_bytes));
                    if (!fed) {
                        refusal = fed.error();
                        break;
                    }
                    const size_t rest = c.end_ - c.begin_ - header_bytes - *fed;
                    if (*fed > 0) {
                        char* body = c.buffer_.get() + c.begin_ + header_bytes;
                        std::memmove(body, body + *fed, rest);
                        c.end_ -= *fed;
                    }
                }
                if (complete() || c.broken_ || c.end_of_input_) break;
                if (c.timed_out_) {
                    refusal = Error{ErrorCode::request_timeout, "The body did not arrive in time.", {}};
                    break;
                }
                if (!chunks && !c.read_pending_) c.reserve(request_bytes);
                c.start_read();
                co_await c.wait();
            }
            if (!refusal && !complete()) {
                core.metrics.in_flight(-1);
                break;  // the client went away in the middle of its request
            }
            // The buffer may have moved under the views.
            if (!refusal && (grows || chunks)) (void)parse_header(c.input(), header);
        }

        // 3. The handler, and its answer.
        keep_alive = !refusal && header.keep_alive && !core.draining;
        c.clear_deadline();
        if (refusal) {
            c.answer_ = error_answer(*refusal);
            linger = true;
        } else {
            HttpRequest request;
            c.fill(header,
                   chunks ? std::string_view(chunks->body()) : c.input().substr(header.bytes, header.content_length),
                   request);
            uint64_t timeout_ms = 0;
            std::from_chars(header.timeout_ms.data(), header.timeout_ms.data() + header.timeout_ms.size(), timeout_ms);
            if (timeout_ms > 0 && timeout_ms < UINT32_MAX - timeout_grace_ms)
                c.set_deadline(static_cast<uint32_t>(timeout_ms) + timeout_grace_ms);
            c.dispatch(request);
            c.consume(request_bytes);
            while (!c.answer_ && !c.stream_ && !c.gone()) co_await c.wait();
            if (!c.answer_ && !c.stream_ && c.timed_out_)
                c.answer_ =
                    error_answer(ErrorCode::request_timeout, "The node did not answer in time; the turn may go on.");
        }
        if (core.draining) keep_alive = false;
        size_t bytes_out = 0;
        uint16_t status = 200;
        if (c.answer_ && !c.broken_) {
            status = c.answer_->status;
            c.render(*c.answer_, head, keep_alive);
            bytes_out = c.out_.size();
            c.answer_.reset();
            c.flush();
            if (!c.out_.empty()) c.set_deadline(core.config.write_timeout_ms);
            while (!c.out_.empty() && !c.gone()) co_await c.wait();
        } else if (c.stream_ && !c.broken_) {
            // A read stays open meanwhile: it is how the end of the client is noticed, and the next request is kept.
            c.render_stream_header(keep_alive);
            uint64_t comment_at = coarse_ms() + core.config.sse_comment_interval_ms;
            bool last = false;
            for (bool first = true; !c.broken_ && !c.stream_->overflowed();) {
                if (c.out_.empty() || first) {
                    first = false;
                    auto text = c.stream_->take();
                    if (!text.empty()) {
                        c.append_chunk(text);
                        comment_at = coarse_ms() + core.config.sse_comment_interval_ms;
                    } else if (c.stream_->finished() && !last) {
                        c.out_ += "0\r\n\r\n";
                        last = true;
                    } else if (coarse_ms() >= comment_at && c.out_.empty()) {
                        c.append_chunk(": still here\n\n");
                        comment_at = coarse_ms() + core.config.sse_comment_interval_ms;
                    }
                    bytes_out += c.out_.size();
                    if (!c.out_.empty()) c.set_deadline(core.config.write_timeout_ms);
                    c.flush();
                    if (c.out_.empty()) c.set_deadline(core.config.sse_comment_interval_ms);
                }
                if (last && c.out_.empty()) break;
                if (c.timed_out_) {
                    if (!c.out_.empty()) break;  // the reader takes nothing
                    c.timed_out_ = false;
                    continue;
                }
                if (c.end_of_input_) break;
                if (c.end_ - c.begin_ < buffer_bytes_kept) c.start_read();
                if (!c.stream_->finished() || !c.out_.empty()) co_await c.wait();
            }
            if (!last || !c.out_.empty()) c.broken_ = true;
        }
        if (c.stream_) {
            c.stream_->closed();
            c.stream_.reset();
        }
        if (const auto hop = std::exchange(c.hop_, nullptr)) hop->abandon();
        ++c.serial_;  // what still comes for this request comes too late
        core.metrics.in_flight(-1);
        const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
        core.metrics.answered(c.route_, status, seconds, bytes_out);
        if (!c.out_.empty()) c.broken_ = true;  // written too slowly
    }

    SystemError ignored;
    if (linger && !c.broken_) {
        // Closing with unread input would reset the connection and may destroy the answer on its way.
        c.socket_.shutdown(Tcp::socket::shutdown_send, ignored);
        c.set_deadline(linger_ms);
        for (size_t dropped = 0; !c.gone() && !c.end_of_input_ && dropped < linger_bytes_max;) {
            if (!c.read_pending_) {
                dropped += c.end_ - c.begin_;
                c.begin_ = c.end_ = 0;
                c.start_read();
            }
            co_await c.wait();
        }
    }
    c.broken_ = true;
    c.socket_.close(ignored);
    // A pending operation still holds this connection; its handler finds nobody waiting.
    core.closed(&c);
}

void Connection::tick(uint64_t now) {
    if (deadline_ == 0 || now < deadline_) return;
    deadline_ = 0;
    timed_out_ = true;
    wake();
}

void Connection::drain() {
    if (idle_) wake();
}

void Connection::abort() {
    broken_ = true;
    SystemError ignored;
    socket_.cancel(ignored);
    wake();
}

// --- the listener ---------------------------------------------------------------------------------------------------

Result<void> Door::Core::start() {
    SystemError ec;
    const auto address = asio::ip::make_address(config.host == "localhost" ? "127.0.0.1" : config.host, ec);
    if (ec) return {ErrorCode::invalid_request, "'" + config.host + "' is not an address to listen on.", "listen"};
    loopback = address.is_loopback();
    const Tcp::endpoint endpoint(address, config.port);
    acceptor_.emplace(io);
    acceptor_->open(endpoint.protocol(), ec);
    if (!ec) acceptor_->set_option(Tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor_->bind(endpoint, ec);
    if (!ec) acceptor_->listen(asio::socket_base::max_listen_connections, ec);
    if (ec) {
        acceptor_.reset();
        return {ErrorCode::invalid_request,
                "Cannot listen on " + config.host + ":" + std::to_string(config.port) + ": " + ec.message() + ".",
                "listen"};
    }
    port = acceptor_->local_endpoint(ec).port();
    return {};
}

void Door::Core::open_mailbox(Bridge& bridge, prometheus::Registry& registry) {
    // The io_context outlives every push: the mailbox's owner is this core, and each task holds a part of it.
    mailbox = std::make_shared<Mailbox>([weak = weak_from_this()] {
        if (auto core = weak.lock()) asio::post(core->io, [raw = core.get()] { raw->mailbox->drain(); });
    });
    if (config.shards == nullptr || config.hop_caller == nullptr) return;
    hops = std::make_unique<Hops>(HopTimes{config.hop_wait_ms, config.hop_back_off_ms}, *config.shards,
                                  *config.hop_caller, bridge, api.routes(), mailbox, registry);
    hops->on_waiting = [this] { tick_hops(); };
    hop_server = std::make_shared<HopServer>(api.routes(), mailbox, registry);
}

void Door::Core::run() {
    update_date();
    accept();
    tick();
    io.run();
    mailbox->close();
    if (hop_server) hop_server->abort();
}

void Door::Core::stop() {
    asio::post(io, [self = shared_from_this()] { self->begin_drain(); });
}

void Door::Core::accept() {
    if (!acceptor_) return;
    acceptor_->async_accept([this](const SystemError& ec, Tcp::socket socket) {
        if (draining) return;
        if (!ec) {
            accepted(std::move(socket));
            accept();
            return;
        }
        // Out of descriptors, or the client left in the queue: pause, so that the loop does not spin.
        accept_timer_.expires_after(std::chrono::milliseconds(50));
        accept_timer_.async_wait([this](const SystemError&) { accept(); });
    });
}

void Door::Core::accepted(Tcp::socket socket) {
    SystemError ignored;
    socket.set_option(Tcp::no_delay(true), ignored);
    socket.non_blocking(true, ignored);
    if (connections_.size() >= config.connections_max) {
        metrics.refused_connection();
        const auto answer =
            error_answer(ErrorCode::too_many_connections,
                         "The node holds " + std::to_string(config.connections_max) + " connections, its bound.");
        std::string out = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: ";
        append_number(out, answer.body.size());
        out.append("\r\n").append(answer.headers);
        append_request_id(out);
        out.append("Connection: close\r\n\r\n").append(answer.body);
        socket.write_some(asio::buffer(out), ignored);
        socket.shutdown(Tcp::socket::shutdown_send, ignored);
        return;
    }
    auto connection = std::make_shared<Connection>(shared_from_this(), std::move(socket));
    connections_.insert(connection.get());
    metrics.connections(connections_.size());
    Connection::serve(std::move(connection));
}

void Door::Core::closed(Connection* connection) {
    connections_.erase(connection);
    metrics.connections(connections_.size());
    end_if_idle();
}

void Door::Core::tick() {
    tick_timer_.expires_after(std::chrono::milliseconds(config.tick_ms));
    tick_timer_.async_wait([this](const SystemError& ec) {
        if (ec) return;
        update_date();
        const uint64_t now = coarse_ms();
        rest(now);
        const bool cut = draining && now >= drain_deadline_;
        // A copy of the addresses: a connection that ends takes itself out of the set. Only its own tick ends it.
        const std::vector<Connection*> all(connections_.begin(), connections_.end());
        for (auto* connection : all) {
            if (!connections_.contains(connection)) continue;
            cut ? connection->abort() : connection->tick(now);
        }
        if (hops) {
            hops->tick();
            cut ? hop_server->abort() : hop_server->tick();
        }
        if (!(draining && idle())) tick();
    });
}

/// Who waits for an owner is looked after more often than deadlines are: its pause is what a client sees of a move.
void Door::Core::tick_hops() {
    if (std::exchange(hops_ticking_, true)) return;
    hop_timer_.expires_after(std::chrono::milliseconds(std::min(hop_tick_ms, config.tick_ms)));
    hop_timer_.async_wait([this](const SystemError& ec) {
        hops_ticking_ = false;
        if (ec) return;
        hops->tick();
        if (hops->waiting()) tick_hops();
    });
}

/// After some seconds without a request the thread gives back what its busiest moment took.
void Door::Core::rest(uint64_t now) {
    if (requests_ != requests_seen_) {
        requests_seen_ = requests_;
        quiet_since_ = now;
        rested_ = false;
    } else if (!rested_ && now >= quiet_since_ + quiet_ms_before_rest) {
        give_back_memory();
        rested_ = true;
    }
}

void Door::Core::update_date() {
    const time_t now = time(nullptr);
    if (now == date_at_) return;
    date_at_ = now;
    tm parts{};
    gmtime_r(&now, &parts);
    char text[64];
    const size_t size = strftime(text, sizeof text, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
    date_line.assign(text, size);
}

void Door::Core::begin_drain() {
    if (draining) {
        drain_deadline_ = 0;
        return;
    }
    draining = true;
    drain_deadline_ = coarse_ms() + config.drain_ms;
    SystemError ignored;
    if (acceptor_) acceptor_->close(ignored);
    accept_timer_.cancel();
    const std::vector<Connection*> all(connections_.begin(), connections_.end());
    for (auto* connection : all)
        if (connections_.contains(connection)) connection->drain();
    end_if_idle();
}

void Door::Core::end_if_idle() {
    // Without connections, listener and timer nothing is left to do, and run() returns.
    if (!draining || !idle()) return;
    tick_timer_.cancel();
    hop_timer_.cancel();
}

void Door::Core::append_request_id(std::string& out) {
    char digits[16];
    // A bijection of the counter (splitmix64's finish), so ids do not repeat and do not count requests for a reader.
    uint64_t x = request_id_base_ + ++requests_ * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    for (char& digit : digits) {
        digit = "0123456789abcdef"[x & 15];
        x >>= 4;
    }
    out.append("x-request-id: req_").append(digits, sizeof digits).append("\r\n");
}

/// On a loopback listener a web page in the user's browser could reach the door under a name of its own (DNS
/// rebinding): only names that mean this machine are served. Elsewhere names are checked once the operator lists them.
bool Door::Core::host_allowed(std::string_view host) const {
    const auto name = host_without_port(host);
    const auto listed = [&](const std::string& allowed) { return boost::beast::iequals(allowed, name); };
    if (std::ranges::any_of(config.allowed_hosts, listed)) return true;
    if (loopback) return boost::beast::iequals(name, "localhost") || name == "127.0.0.1" || name == "[::1]";
    return config.allowed_hosts.empty();
}

Door::Door(DoorConfig config, Bridge& bridge, prometheus::Registry& registry)
    : core_(std::make_shared<Core>(std::move(config), bridge, registry)) {
    core_->open_mailbox(bridge, registry);
}
Door::~Door() = default;
Result<void> Door::start() { return core_->start(); }
void Door::run() { core_->run(); }
void Door::stop() { core_->stop(); }
uint16_t Door::port() const { return core_->port; }
const std::shared_ptr<HopServer>& Door::hop_server() const { return core_->hop_server; }

}  // namespace mainstay
