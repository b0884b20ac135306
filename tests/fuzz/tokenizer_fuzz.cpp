// A tokenizer.json, and a text for it after the first NUL byte: whatever the file, it is refused with words or what it
// makes of the text decodes within its bounds; streamed text is UTF-8 and what decoding at once gives.
#include <cstdint>
#include <string_view>

#include "runtime/base/utf8.h"
#include "runtime/inference/tokenizer.h"
#include "tests/fuzz/require.h"

namespace {

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const auto step = mainstay::utf8_next(text);
        if (!step.valid) return false;
        text.remove_prefix(step.bytes);
    }
    return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view all(reinterpret_cast<const char*>(data), size);
    const size_t end = std::min(all.find('\0'), size);
    const std::string_view text = end < size ? all.substr(end + 1) : std::string_view("a b <0x41> it's 123\n\n  x");
    const auto read = mainstay::Tokenizer::parse(all.substr(0, end));
    if (!read) {
        require(read.error().code == mainstay::ErrorCode::model_not_loadable && !read.error().message.empty());
        return 0;
    }
    const auto& tokenizer = *read;
    const auto tokens = tokenizer->encode(text);
    mainstay::TextStream stream(tokenizer);
    std::string streamed;
    for (const auto token : tokens) {
        require(token < tokenizer->size());  // an unknown token may be a special one
        const std::string part = stream.push(token);
        require(is_utf8(part));
        streamed += part;
    }
    streamed += stream.finish();
    const std::string whole = tokenizer->decode(tokens);
    if (is_utf8(whole)) require(streamed == whole);
    return 0;
}
