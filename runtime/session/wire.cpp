#include "runtime/session/wire.h"

#include <capnp/serialize-packed.h>
#include <kj/exception.h>
#include <kj/io.h>

#include <array>

namespace mainstay::wire {
namespace {

// One zeroed segment per thread: a message that fits costs no allocation, and the builder zeroes what it used.
constexpr size_t scratch_words = 4096;
thread_local capnp::word scratch_build[scratch_words];
thread_local capnp::word scratch_read[scratch_words];

class StringOutput final : public kj::BufferedOutputStream {
  public:
    explicit StringOutput(size_t size_max) { text_.resize(size_max); }
    kj::ArrayPtr<kj::byte> getWriteBuffer() override {
        // The packer asks for more once this is full; a message that does not shrink grows by a ninth at most.
        if (used_ == text_.size()) text_.resize(text_.size() + text_.size() / 4 + 64);
        return {reinterpret_cast<kj::byte*>(text_.data()) + used_, text_.size() - used_};
    }
    void write(const void* buffer, size_t size) override {
        const auto* from = static_cast<const char*>(buffer);
        if (from == text_.data() + used_) {
            used_ += size;  // written in place
            return;
        }
        if (used_ + size > text_.size()) text_.resize(used_ + size + 64);
        std::copy(from, from + size, text_.data() + used_);
        used_ += size;
    }
    std::string take() {
        // Exactly as long as needed: batches are held in queues.
        return std::string(text_.data(), used_);
    }

  private:
    std::string text_;
    size_t used_ = 0;
};

uint64_t big_endian(const uint8_t* bytes) {
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = (value << 8) | bytes[i];
    return value;
}

}  // namespace

std::string session_bytes(const SessionId& id) {
    std::string out;
    out.reserve(16);
    for (uint64_t half : {id.high, id.low})
        for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<char>(half >> shift));
    return out;
}

SessionId session_of(uint64_t family, capnp::Data::Reader bytes) {
    if (family == 0) return SessionId{};
    if (bytes.size() != 16) throw Malformed{"a session has 16 bytes"};
    return SessionId{FamilyId{family}, big_endian(bytes.begin()), big_endian(bytes.begin() + 8)};
}

void write(Usage::Builder out, const mainstay::Usage& usage) {
    out.setInputTokens(usage.input_tokens);
    out.setCachedTokens(usage.cached_tokens);
    out.setOutputTokens(usage.output_tokens);
    out.setReasoningTokens(usage.reasoning_tokens);
    out.setDeviceMicros(usage.device_micros);
    out.setMicroJoules(usage.micro_joules);
    out.setSimulated(usage.simulated);
}

mainstay::Usage read(Usage::Reader in) {
    return {in.getInputTokens(),  in.getCachedTokens(), in.getOutputTokens(), in.getReasoningTokens(),
            in.getDeviceMicros(), in.getMicroJoules(),  in.getSimulated()};
}

std::string pack_message(const std::function<void(capnp::MessageBuilder&)>& build) {
    capnp::MallocMessageBuilder message(kj::arrayPtr(scratch_build, scratch_words));
    build(message);
    size_t words = 1;
    for (auto segment : message.getSegmentsForOutput()) words += segment.size() + 1;
    StringOutput out(words * sizeof(capnp::word));
    capnp::writePackedMessage(out, message);
    return out.take();
}

std::optional<std::string> unpack_message(std::string_view bytes,
                                          const std::function<void(capnp::MessageReader&)>& read) {
    try {
        kj::ArrayInputStream in(kj::arrayPtr(reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size()));
        capnp::ReaderOptions options;
        options.traversalLimitInWords = bytes.size() + 8192;  // a word is eight bytes
        options.nestingLimit = 64;
        capnp::PackedMessageReader message(in, options, kj::arrayPtr(scratch_read, scratch_words));
        read(message);
        return std::nullopt;
    } catch (const Malformed& malformed) {
        return malformed.what;
    } catch (const kj::Exception& e) {
        return std::string(e.getDescription().cStr());
    } catch (const std::exception& e) {
        return std::string(e.what());
    }
}

}  // namespace mainstay::wire
