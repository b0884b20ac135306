// The event stream parser, fed the same bytes whole and in pieces: both must tell the same events, or both fail.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "runtime/inference/sse_parser.h"

namespace {

struct Outcome {
    std::vector<mainstay::SseEvent> events;
    bool failed = false;
};

Outcome parse(std::string_view bytes, size_t piece) {
    Outcome out;
    mainstay::SseParser parser(256);
    for (size_t at = 0; at < bytes.size() && !out.failed; at += piece) {
        const auto fed = parser.feed(bytes.substr(at, piece),
                                     [&](mainstay::SseEvent&& event) { out.events.push_back(std::move(event)); });
        out.failed = !fed.ok();
    }
    return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 1) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    const Outcome whole = parse(bytes, bytes.size() + 1), pieces = parse(bytes, data[0] % 16 + 1);
    if (whole.failed != pieces.failed || whole.events.size() != pieces.events.size()) std::abort();
    for (size_t i = 0; i < whole.events.size(); ++i) {
        if (whole.events[i].data != pieces.events[i].data || whole.events[i].type != pieces.events[i].type)
            std::abort();
        if (whole.events[i].id != pieces.events[i].id || whole.events[i].data.size() > 257) std::abort();
    }
    return 0;
}
