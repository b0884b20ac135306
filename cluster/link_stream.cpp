#include "cluster/link_stream.h"

#include "runtime/base/limits.h"

namespace mainstay {

GatheringStream::GatheringStream(kj::Own<kj::AsyncIoStream> inner) : inner_(kj::mv(inner)), flusher_(kj::READY_NOW) {}

kj::Promise<size_t> GatheringStream::tryRead(void* buffer, size_t min_bytes, size_t max_bytes) {
    return inner_->tryRead(buffer, min_bytes, max_bytes);
}

void GatheringStream::add(const void* buffer, size_t size) {
    const auto* bytes = static_cast<const kj::byte*>(buffer);
    filling_.insert(filling_.end(), bytes, bytes + size);
}

kj::Promise<void> GatheringStream::write(const void* buffer, size_t size) {
    add(buffer, size);
    return taken();
}

kj::Promise<void> GatheringStream::write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>> pieces) {
    for (const auto& piece : pieces) add(piece.begin(), piece.size());
    return taken();
}

kj::Promise<void> GatheringStream::taken() {
    KJ_IF_MAYBE (failure, failed_) return kj::cp(*failure);
    if (!flushing_) {
        flushing_ = true;
        flusher_ = kj::evalLast([this] { return flush(); }).eagerlyEvaluate([this](kj::Exception&& failure) {
            failed_ = kj::cp(failure);
            for (auto& waiting : waiting_) waiting->reject(kj::cp(failure));
            waiting_.clear();
        });
    }
    if (filling_.size() <= limits::link_chunk_bytes_max) return kj::READY_NOW;
    auto promise = kj::newPromiseAndFulfiller<void>();
    waiting_.push_back(kj::mv(promise.fulfiller));
    return kj::mv(promise.promise);
}

kj::Promise<void> GatheringStream::flush() {
    if (filling_.empty()) {
        flushing_ = false;
        if (closing_) inner_->shutdownWrite();
        return kj::READY_NOW;
    }
    writing_.clear();
    writing_.swap(filling_);
    return inner_->write(writing_.data(), writing_.size()).then([this] {
        // Whoever waits wrote what is out now, or waits again with his next write.
        for (auto& waiting : waiting_) waiting->fulfill();
        waiting_.clear();
        // One large message must not keep its room for the life of the connection.
        if (writing_.capacity() > limits::link_chunk_bytes_max) writing_ = {};
        return flush();
    });
}

kj::Promise<void> GatheringStream::whenWriteDisconnected() { return inner_->whenWriteDisconnected(); }

void GatheringStream::shutdownWrite() {
    closing_ = true;
    if (!flushing_) inner_->shutdownWrite();
}

void GatheringStream::abortRead() { inner_->abortRead(); }

kj::Maybe<int> GatheringStream::getFd() const { return inner_->getFd(); }

}  // namespace mainstay
