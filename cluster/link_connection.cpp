#include "cluster/link_connection.h"

#include <spdlog/spdlog.h>

#include <fstream>
#include <iterator>

#include "cluster/link_stream.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

/// What a frame costs beside its payload: RPC's own bytes at both ends. Bounds the number of small frames.
constexpr size_t frame_overhead_bytes = 512;
/// So much of the window may be calls: replication that comes now waits for no more than that to get through.
constexpr size_t call_window_bytes = limits::link_window_bytes / 8;
static_assert(call_window_bytes >= limits::link_chunk_bytes_max + frame_overhead_bytes);
/// How long, and for how much of its window, a sender may wait to hear that its frames were taken. Nothing of his waits
/// for that before his window is full, and each answer by itself would wake his thread and, by its farewell, this one.
constexpr uint32_t receipt_ms = 20;
constexpr size_t receipt_bytes = 64 * 1024;
static_assert(receipt_bytes <= call_window_bytes / 8 && receipt_ms * 20 <= limits::link_silence_ms);

std::string text_of(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

kj::StringPtr text(const std::string& from) { return {from.c_str(), from.size()}; }

kj::Own<kj::TlsContext> make_tls(const LinkConfig& config) {
    const std::string ca = text_of(config.ca_file), certificate = text_of(config.certificate_file),
                      key = text_of(config.key_file);
    // Options refer to these; the context is done with them when it is made.
    const kj::TlsKeypair keypair{kj::TlsPrivateKey(text(key)), kj::TlsCertificate(text(certificate))};
    const kj::TlsCertificate trusted[] = {kj::TlsCertificate(text(ca))};
    kj::TlsContext::Options options;
    options.useSystemTrustStore = false;
    options.verifyClients = true;
    options.trustedCertificates = trusted;
    options.minVersion = kj::TlsVersion::TLS_1_2;
    options.defaultKeypair = keypair;
    return kj::heap<kj::TlsContext>(options);
}

capnp::ReaderOptions reader_options() {
    capnp::ReaderOptions options;
    options.traversalLimitInWords = 8 * limits::link_chunk_bytes_max / sizeof(capnp::word);
    options.nestingLimit = 64;
    return options;
}

using Rpc = capnp::RpcSystem<capnp::rpc::twoparty::VatId>;

Rpc make_rpc(capnp::TwoPartyVatNetwork& network, kj::Maybe<wire::Gate::Client>& gate) {
    KJ_IF_MAYBE (found, gate) return capnp::makeRpcServer(network, kj::mv(*found));
    return capnp::makeRpcClient(network);
}

}  // namespace

LinkContext::LinkContext(LinkShared& all, kj::AsyncIoContext& loop)
    : shared(all),
      counters(*all.counters),
      io(loop),
      timer(loop.provider->getTimer()),
      tls_(make_tls(all.config)),
      tasks_(*this) {}

void LinkContext::taskFailed(kj::Exception&& exception) { spdlog::warn("link: {}", exception.getDescription().cStr()); }

LinkHello LinkContext::hello() const {
    return {shared.config.cluster, shared.config.self, shared.config.incarnation, link_format, shared.config.version};
}

uint64_t LinkContext::seen(const NodeUuid& node) const {
    const auto found = seen_.find(node);
    return found == seen_.end() ? 0 : found->second;
}

bool LinkContext::admit(const NodeUuid& node, uint64_t incarnation) {
    if (incarnation < seen(node)) return false;
    seen_[node] = incarnation;
    return true;
}

/// RPC may hold it longer than there is a connection.
class LinkConnection::Inward final : public wire::Lane::Server {
  public:
    explicit Inward(std::shared_ptr<LinkConnection*> connection) : connection_(std::move(connection)) {}
    kj::Promise<void> take(TakeContext context) override {
        kj::Promise<void> receipt = kj::READY_NOW;
        if (*connection_) receipt = (*connection_)->take(context.getParams().getFrame());
        context.releaseParams();
        return receipt;
    }

  private:
    const std::shared_ptr<LinkConnection*> connection_;
};

LinkConnection::LinkConnection(LinkContext& context, LinkEnd end, kj::Own<kj::AsyncIoStream> stream,
                               kj::Maybe<wire::Gate::Client> gate, User& user)
    : context_(context),
      end_(end),
      user_(user),
      self_(std::make_shared<LinkConnection*>(this)),
      stream_(kj::heap<GatheringStream>(kj::mv(stream))),
      network_(*stream_,
               end == LinkEnd::accepted ? capnp::rpc::twoparty::Side::SERVER : capnp::rpc::twoparty::Side::CLIENT,
               reader_options()),
      rpc_(make_rpc(network_, gate)),
      heard_(context.timer.now()),
      spoke_(heard_),
      tasks_(*this) {
    rpc_.setFlowLimit(2 * limits::link_window_bytes / sizeof(capnp::word));
    tasks_.add(network_.onDisconnect().then([this] { fail(); }));
}

LinkConnection::~LinkConnection() noexcept(false) {
    *self_ = nullptr;
    context_.counters.window_bytes -= window();
    context_.counters.assembly_bytes -= held_;
}

wire::Gate::Client LinkConnection::gate() {
    capnp::MallocMessageBuilder message(8);
    auto vat = message.initRoot<capnp::rpc::twoparty::VatId>();
    vat.setSide(capnp::rpc::twoparty::Side::SERVER);
    return rpc_.bootstrap(vat).castAs<wire::Gate>();
}

wire::Lane::Client LinkConnection::inward() { return kj::heap<Inward>(self_); }

void LinkConnection::start(const NodeUuid& peer, uint64_t incarnation, wire::Lane::Client outward,
                           std::shared_ptr<Channel> channel) {
    peer_ = peer;
    incarnation_ = incarnation;
    outward_ = kj::mv(outward);
    channel_ = std::move(channel);
    heard_ = spoke_ = context_.timer.now();
}

void LinkConnection::pump() {
    if (over_ || outward_ == nullptr) return;
    while (window() < limits::link_window_bytes) {
        auto next = queue_.next(call_window_ < call_window_bytes);
        if (!next) return;
        channel_->release(next->released);
        context_.counters.messages_sent += next->messages;
        const FrameType type = next->frame.type;
        const uint64_t call = next->frame.call;
        send(std::move(next->frame), next->bytes, true);
        if (call != 0) user_.sent(type, call);
    }
}

void LinkConnection::send(LinkFrame frame, size_t bytes, bool counted) {
    KJ_IF_MAYBE (lane, outward_) {
        frame.cluster = context_.shared.config.cluster;
        frame.incarnation = context_.shared.config.incarnation;
        const FrameType type = frame.type;
        auto request = lane->takeRequest(capnp::MessageSize{bytes / sizeof(capnp::word) + 64, 0});
        char* room = encode_frame(request.initFrame(), frame, bytes);
        if (counted) queue_.fill(room);
        const size_t cost = counted ? bytes + frame_overhead_bytes : 0;
        window_of(type) += cost;
        context_.counters.window_bytes += cost;
        ++context_.counters.frames_sent;
        context_.counters.bytes_sent += bytes;
        spoke_ = context_.timer.now();
        tasks_.add(request.send().then([this, type, cost](auto&&) {
            window_of(type) -= cost;
            context_.counters.window_bytes -= cost;
            heard_ = context_.timer.now();
            if (type == FrameType::ping) pinging_ = false;
            pump();
        }));
    }
}

kj::Promise<void> LinkConnection::take(wire::Frame::Reader from) {
    KJ_REQUIRE(!over_ && channel_, "the connection is over");
    heard_ = context_.timer.now();
    auto frame = decode_frame(from, end_);
    Result<void> done;
    if (!frame)
        done = frame.error();
    else if (frame->cluster != context_.shared.config.cluster || frame->incarnation != incarnation_)
        done = Error{ErrorCode::peer_refused, "a frame of another cluster or incarnation", {}};
    else
        done = user_.frame(*frame);
    ++context_.counters.frames_received;
    if (done) {
        context_.counters.bytes_received += frame->bytes.size();
        return receipt(frame->bytes.size());
    }
    ++context_.counters.refused_frame;
    spdlog::warn("link: node {}: {}", to_text(peer_), done.error().message);
    fail();
    KJ_FAIL_REQUIRE("peer_refused", done.error().message.c_str());
}

kj::Promise<void> LinkConnection::receipt(size_t bytes) {
    owed_bytes_ += bytes + frame_overhead_bytes;
    if (owed_bytes_ > receipt_bytes) {
        give_receipts();
        return kj::READY_NOW;
    }
    auto owed = kj::newPromiseAndFulfiller<void>();
    owed_.push_back(kj::mv(owed.fulfiller));
    if (!std::exchange(receipts_due_, true))
        tasks_.add(context_.timer.afterDelay(receipt_ms * kj::MILLISECONDS).then([this] {
            receipts_due_ = false;
            give_receipts();
        }));
    return kj::mv(owed.promise);
}

void LinkConnection::give_receipts() {
    for (auto& fulfiller : owed_) fulfiller->fulfill();
    owed_.clear();
    owed_bytes_ = 0;
}

void LinkConnection::tick(kj::TimePoint now) {
    if (over_ || outward_ == nullptr) return;
    const auto silence = limits::link_silence_ms * kj::MILLISECONDS;
    if (now - heard_ > silence) {
        ++context_.counters.silences;
        spdlog::warn("link: node {} is silent", to_text(peer_));
        return fail();
    }
    if (end_ != LinkEnd::dialled || pinging_ || now - spoke_ < silence / 3) return;
    pinging_ = true;
    send(LinkFrame{}, 0, false);
}

void LinkConnection::holds(size_t bytes) {
    context_.counters.assembly_bytes += bytes - held_;
    held_ = bytes;
}

void LinkConnection::fail() {
    if (std::exchange(over_, true)) return;
    context_.later(kj::evalLater([self = self_] {
        if (*self) (*self)->user_.over();
    }));
}

void LinkConnection::taskFailed(kj::Exception&&) { fail(); }

}  // namespace mainstay
