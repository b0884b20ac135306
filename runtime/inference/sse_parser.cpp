#include "runtime/inference/sse_parser.h"

#include <charconv>

namespace mainstay {

bool SseParser::next_line(std::string_view& bytes) {
    if (std::exchange(line_was_partial_, false)) partial_.clear();
    if (after_cr_ && !bytes.empty()) {
        after_cr_ = false;
        if (bytes.front() == '\n') bytes.remove_prefix(1);
    }
    const size_t end = bytes.find_first_of("\r\n");
    const size_t piece = end == std::string_view::npos ? bytes.size() : end;
    if (partial_.size() + piece > bytes_max_) {
        failed_ = true;
        return false;
    }
    if (end == std::string_view::npos) {
        partial_ += bytes;
        bytes = {};
        return false;
    }
    if (partial_.empty()) {
        line_ = bytes.substr(0, end);
    } else {
        partial_ += bytes.substr(0, end);
        line_ = partial_;
        line_was_partial_ = true;
    }
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    return true;
}

bool SseParser::take_line() {
    constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
    if (std::exchange(first_line_, false) && line_.starts_with(byte_order_mark))
        line_.remove_prefix(byte_order_mark.size());
    if (line_.empty()) {
        const bool complete = std::exchange(has_data_, false);
        if (complete) {
            data_.pop_back();  // the LF after the last line
            event_ = {type_.empty() ? "message" : type_, std::exchange(data_, {}), last_id_};
        }
        type_.clear();
        return complete;
    }
    const size_t colon = line_.find(':');
    if (colon == 0) return false;  // a comment
    std::string_view value = colon == std::string_view::npos ? std::string_view() : line_.substr(colon + 1);
    if (value.starts_with(' ')) value.remove_prefix(1);
    take_field(line_.substr(0, colon), value);
    return false;
}

void SseParser::take_field(std::string_view name, std::string_view value) {
    if (name == "data") {
        if (data_.size() + value.size() > bytes_max_) {
            failed_ = true;
            return;
        }
        data_ += value;
        data_ += '\n';
        has_data_ = true;
    } else if (name == "event") {
        type_ = value;
    } else if (name == "id") {
        if (value.find('\0') == std::string_view::npos) last_id_ = value;
    } else if (name == "retry") {
        uint64_t milliseconds = 0;
        const char* end = value.data() + value.size();
        const auto [at, error] = std::from_chars(value.data(), end, milliseconds);
        if (error == std::errc{} && at == end) retry_ms_ = milliseconds;
    }
}

}  // namespace mainstay
