#pragma once
// Who a link must not believe: raw sockets, and an RPC client that says whatever a case wants it to say, with any
// certificate or none. Each has its own KJ loop on the test's thread.

#include <arpa/inet.h>
#include <capnp/rpc-twoparty.h>
#include <kj/async-io.h>
#include <kj/compat/tls.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>

#include "cluster/link.capnp.h"
#include "cluster/link_frame.h"

// RPC servers are destroyed through what owns them.
#pragma GCC diagnostic ignored "-Wnon-virtual-dtor"

namespace mainstay {

/// A plain TCP connection to a port of this machine.
class RawSocket {
  public:
    explicit RawSocket(uint16_t port) : descriptor_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(port);
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connected_ = ::connect(descriptor_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
    }
    ~RawSocket() { ::close(descriptor_); }
    RawSocket(const RawSocket&) = delete;
    RawSocket& operator=(const RawSocket&) = delete;
    bool connected() const { return connected_; }
    void say(const std::string& bytes) {
        size_t done = 0;
        while (done < bytes.size()) {
            const ssize_t n = ::send(descriptor_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
            if (n <= 0) return;
            done += size_t(n);
        }
    }
    /// Whether the other end closes within the time.
    bool closed(int timeout_ms) {
        char bytes[4096];
        for (;;) {
            pollfd one{descriptor_, POLLIN, 0};
            if (::poll(&one, 1, timeout_ms) != 1) return false;
            if (::recv(descriptor_, bytes, sizeof bytes, 0) <= 0) return true;
        }
    }

  private:
    const int descriptor_;
    bool connected_ = false;
};

class Stranger {
    template <class T>
    auto bounded(T promise) {
        return io_.provider->getTimer().timeoutAfter(20 * kj::SECONDS, kj::mv(promise)).wait(io_.waitScope);
    }

  public:
    /// `folder`: node.pem and node.key that it shows; none: no certificate. `ca`: whom it believes. `name`: whom it
    /// dials.
    Stranger(uint16_t port, const std::optional<std::string>& folder, const std::string& ca, const NodeUuid& name) {
        const std::string authority = text_of(ca), dialled = to_text(name);
        kj::TlsContext::Options options;
        options.useSystemTrustStore = false;
        const kj::TlsCertificate trusted[] = {kj::TlsCertificate(kj::StringPtr(authority.c_str(), authority.size()))};
        options.trustedCertificates = trusted;
        kj::Maybe<kj::TlsKeypair> keypair;
        if (folder) {
            const std::string key = text_of(*folder + "/node.key"), certificate = text_of(*folder + "/node.pem");
            keypair = kj::TlsKeypair{kj::TlsPrivateKey(kj::StringPtr(key.c_str(), key.size())),
                                     kj::TlsCertificate(kj::StringPtr(certificate.c_str(), certificate.size()))};
        }
        KJ_IF_MAYBE (shown, keypair) options.defaultKeypair = *shown;
        tls_ = kj::heap<kj::TlsContext>(options);
        attempt([&] {
            auto address = io_.provider->getNetwork().parseAddress("127.0.0.1", port).wait(io_.waitScope);
            auto plain = address->connect().wait(io_.waitScope);
            stream_ =
                tls_->wrapClient(kj::mv(plain), kj::StringPtr(dialled.c_str(), dialled.size())).wait(io_.waitScope);
            client_ = kj::heap<capnp::TwoPartyClient>(*stream_);
        });
    }

    /// Empty: it was let in.
    std::string hello(const LinkHello& hello) {
        hello_ = hello;
        if (client_.get() == nullptr) return why_;
        return attempt([&] {
            auto request = client_->bootstrap().castAs<wire::Gate>().helloRequest();
            encode_hello(request.initHello(), hello);
            request.setAnswers(kj::heap<Answers>(*this));
            lane_ = bounded(request.send()).getLane();
        });
    }

    using Fill = std::function<void(wire::Frame::Builder)>;
    /// With the header of its hello, then whatever `fill` makes of it. Empty: it was taken.
    std::string frame(const Fill& fill) {
        return attempt([&] {
            auto request = KJ_REQUIRE_NONNULL(lane_, "not let in").takeRequest();
            LinkFrame header;
            header.cluster = hello_.cluster;
            header.incarnation = hello_.incarnation;
            encode_frame(request.initFrame(), header, 0);
            fill(request.getFrame());
            bounded(request.send());
        });
    }
    /// Waits until so many calls have ended.
    bool ends(size_t count) {
        for (int i = 0; i < 1000 && ends_ < count; ++i)
            io_.provider->getTimer().afterDelay(5 * kj::MILLISECONDS).wait(io_.waitScope);
        return ends_ >= count;
    }
    Error last_failure;

  private:
    class Answers final : public wire::Lane::Server {
      public:
        explicit Answers(Stranger& stranger) : stranger_(stranger) {}
        kj::Promise<void> take(TakeContext context) override {
            const auto frame = decode_frame(context.getParams().getFrame(), LinkEnd::dialled);
            if (frame && frame->type == FrameType::end) {
                ++stranger_.ends_;
                stranger_.last_failure = frame->failure;
            }
            return kj::READY_NOW;
        }

      private:
        Stranger& stranger_;
    };

    static std::string text_of(const std::string& file) {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }
    template <class F>
    std::string attempt(F act) {
        try {
            act();
            return "";
        } catch (const kj::Exception& why) {
            return why_ = why.getDescription().cStr();
        }
    }

    kj::AsyncIoContext io_ = kj::setupAsyncIo();
    kj::Own<kj::TlsContext> tls_;
    std::string why_;
    LinkHello hello_;
    size_t ends_ = 0;
    kj::Own<kj::AsyncIoStream> stream_;
    kj::Own<capnp::TwoPartyClient> client_;
    kj::Maybe<wire::Lane::Client> lane_;
};

}  // namespace mainstay
