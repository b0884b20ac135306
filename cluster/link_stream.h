#pragma once
// A connection that sends together what is written together. RPC writes each message by itself and each of its pieces
// as a TLS record and a system call of its own; one small frame, with the answer and the farewell that belong to it,
// was six of each. Here a write is taken at once, and everything that was written by the time the loop has nothing else
// to do goes out as one record. The link's thread.

#include <kj/async-io.h>

#include <vector>

namespace mainstay {

/// What was taken and not sent is lost with the stream, as what a socket had taken would be. A failed write is told by
/// every later one.
class GatheringStream final : public kj::AsyncIoStream {
  public:
    explicit GatheringStream(kj::Own<kj::AsyncIoStream> inner);
    KJ_DISALLOW_COPY(GatheringStream);

    kj::Promise<size_t> tryRead(void* buffer, size_t min_bytes, size_t max_bytes) override;
    /// Done at once; beyond link_chunk_bytes_max of what was not sent, when that is.
    kj::Promise<void> write(const void* buffer, size_t size) override;
    kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) override;
    kj::Promise<void> whenWriteDisconnected() override;
    /// After what was written before.
    void shutdownWrite() override;
    void abortRead() override;
    kj::Maybe<int> getFd() const override;

  private:
    void add(const void* buffer, size_t size);
    kj::Promise<void> taken();
    kj::Promise<void> flush();

    kj::Own<kj::AsyncIoStream> inner_;
    std::vector<kj::byte> filling_, writing_;
    std::vector<kj::Own<kj::PromiseFulfiller<void>>> waiting_;  // for room
    kj::Maybe<kj::Exception> failed_;
    bool flushing_ = false, closing_ = false;
    kj::Promise<void> flusher_;  // last: what it runs uses all of the above
};

}  // namespace mainstay
