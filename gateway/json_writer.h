#pragma once
// JSON out, by appending to one string: the answers of the door have fixed shapes, so a tree of values would only be
// built to be walked once. Strings must be valid UTF-8 (everything that comes in through boost::json is). A caller
// writes punctuation itself with raw(); the tests parse every shape back.

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/base/id.h"

namespace mainstay {

/// Appends `text` escaped as RFC 8259 wants it, without the quotes.
void append_json_escaped(std::string& out, std::string_view text);

class JsonWriter {
  public:
    explicit JsonWriter(std::string& out) : out_(out) {}

    JsonWriter& raw(std::string_view json) {
        out_.append(json);
        return *this;
    }
    JsonWriter& string(std::string_view text) {
        out_.push_back('"');
        append_json_escaped(out_, text);
        out_.push_back('"');
        return *this;
    }
    /// null for an empty text.
    JsonWriter& string_or_null(std::string_view text) { return text.empty() ? raw("null") : string(text); }
    JsonWriter& number(uint64_t value) {
        char digits[20];
        const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
        out_.append(digits, end);
        return *this;
    }
    /// Shortest form that reads back as the same double. Precondition: finite.
    JsonWriter& number(double value) {
        char digits[32];
        const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
        out_.append(digits, end);
        return *this;
    }
    JsonWriter& boolean(bool value) { return raw(value ? "true" : "false"); }
    template <class Id, class... Prefix>
    JsonWriter& id(const Id& id, Prefix... prefix) {
        out_.push_back('"');
        append_text(out_, id, prefix...);
        out_.push_back('"');
        return *this;
    }
    std::string& out() { return out_; }

  private:
    std::string& out_;
};

}  // namespace mainstay
