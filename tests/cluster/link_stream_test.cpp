// What is written together goes out together, whole and in order; what fails is told.

#include "cluster/link_stream.h"

#include <doctest/doctest.h>
#include <kj/debug.h>

#include <string>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

/// Counts what comes, and can be made to fail or to wait.
class Recorder final : public kj::AsyncIoStream {
  public:
    struct Seen {
        std::string bytes;
        size_t writes = 0;
        bool fails = false, shut = false;
        kj::Maybe<kj::Own<kj::PromiseFulfiller<void>>> held;
        bool holds = false;
    };
    explicit Recorder(Seen& seen) : seen_(seen) {}
    kj::Promise<size_t> tryRead(void*, size_t, size_t) override { return size_t(0); }
    kj::Promise<void> write(const void* buffer, size_t size) override {
        if (seen_.fails) return KJ_EXCEPTION(DISCONNECTED, "gone");
        ++seen_.writes;
        seen_.bytes.append(static_cast<const char*>(buffer), size);
        if (!seen_.holds) return kj::READY_NOW;
        auto promise = kj::newPromiseAndFulfiller<void>();
        seen_.held = kj::mv(promise.fulfiller);
        return kj::mv(promise.promise);
    }
    kj::Promise<void> write(kj::ArrayPtr<const kj::ArrayPtr<const kj::byte>>) override { KJ_UNIMPLEMENTED("pieces"); }
    kj::Promise<void> whenWriteDisconnected() override { return kj::NEVER_DONE; }
    void shutdownWrite() override { seen_.shut = true; }

  private:
    Seen& seen_;
};

struct Gathering {
    kj::EventLoop loop;
    kj::WaitScope scope{loop};
    Recorder::Seen seen;
    GatheringStream stream{kj::heap<Recorder>(seen)};

    kj::Promise<void> write(const std::string& text) { return stream.write(text.data(), text.size()); }
    void go_on() {
        KJ_IF_MAYBE (held, seen.held) (*held)->fulfill();
    }
};

}  // namespace

TEST_CASE("link stream: what is written in one turn of the loop is one write, and done at once") {
    Gathering at;
    for (const char* text : {"a", "bc", "", "d"}) CHECK(at.write(text).poll(at.scope));
    const kj::ArrayPtr<const kj::byte> pieces[] = {kj::StringPtr("e").asBytes(), kj::StringPtr("fg").asBytes()};
    CHECK(at.stream.write(pieces).poll(at.scope));
    CHECK(at.seen.bytes.empty());  // the loop has had other things to do
    at.scope.poll();
    CHECK(at.seen.bytes == "abcdefg");
    CHECK(at.seen.writes == 1);
    CHECK(at.write("h").poll(at.scope));
    at.scope.poll();
    CHECK(at.seen.bytes == "abcdefgh");
    CHECK(at.seen.writes == 2);
}

TEST_CASE(
    "link stream: what comes while a write is under way is the next one, and beyond a chunk whoever writes waits") {
    Gathering at;
    at.seen.holds = true;
    at.write("first").wait(at.scope);
    at.scope.poll();
    REQUIRE(at.seen.bytes == "first");
    CHECK(at.write("second").poll(at.scope));
    auto large = at.write(std::string(limits::link_chunk_bytes_max, 'x'));
    CHECK_FALSE(large.poll(at.scope));
    CHECK(at.seen.writes == 1);
    at.go_on();
    large.wait(at.scope);
    at.scope.poll();
    CHECK(at.seen.writes == 2);
    CHECK(at.seen.bytes == "firstsecond" + std::string(limits::link_chunk_bytes_max, 'x'));
}

TEST_CASE("link stream: a failed write is told to whoever waits and by every later write") {
    Gathering at;
    at.seen.fails = true;
    auto waiting = at.write(std::string(limits::link_chunk_bytes_max + 1, 'x'));
    CHECK_THROWS_AS(waiting.wait(at.scope), const kj::Exception&);
    CHECK_THROWS_AS(at.write("more").wait(at.scope), const kj::Exception&);
}

TEST_CASE("link stream: the end comes after what was written before it") {
    Gathering at;
    at.seen.holds = true;
    at.write("last words").wait(at.scope);
    at.stream.shutdownWrite();
    CHECK_FALSE(at.seen.shut);
    at.scope.poll();
    CHECK_FALSE(at.seen.shut);
    at.go_on();
    at.scope.poll();
    CHECK(at.seen.shut);
    CHECK(at.seen.bytes == "last words");
}

}  // namespace mainstay
