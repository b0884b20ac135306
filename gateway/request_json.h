#pragma once
// JSON in: strict parsing within limits, and reading fields with errors that name the field. Everything a client sends
// passes here, so no handler touches an unchecked value. Belongs to the call that made it; not thread-safe.

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/result.h"
#include "runtime/base/utf8.h"

namespace mainstay {

/// A client's own word, as an error may repeat it: at most 80 bytes, cut between characters.
std::string quoted_back(std::string_view text);

/// The parsed body of one request, in memory that goes away as a whole. Its first part lies on the caller's stack.
class JsonBody {
  public:
    JsonBody() : memory_(first_, sizeof first_) {}
    JsonBody(const JsonBody&) = delete;
    JsonBody& operator=(const JsonBody&) = delete;

    /// Errors: invalid_utf8, json_too_deep (limits::json_depth_max), malformed_json; invalid_request unless the top is
    /// an object.
    Result<void> parse(std::string_view body);
    const boost::json::object& object() const { return *object_; }

  private:
    alignas(std::max_align_t) unsigned char first_[16 * 1024];
    boost::json::monotonic_resource memory_;
    std::optional<boost::json::value> value_;
    const boost::json::object* object_ = nullptr;
};

/// Reads the fields of one object. The first wrong one is kept as the error and later reads give nothing, so a caller
/// reads all and asks once. JSON null counts as absent: OpenAI's clients send it for "not set".
class FieldReader {
  public:
    /// `path` names the object in errors: "" for the body, "input[2]" inside.
    FieldReader(const boost::json::object& object, std::string path) : object_(object), path_(std::move(path)) {}

    const boost::json::value* find(std::string_view key) const;
    std::optional<std::string_view> text(std::string_view key);
    std::optional<bool> boolean(std::string_view key);
    std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max);
    std::optional<double> number(std::string_view key, double min, double max);
    const boost::json::object* object(std::string_view key);
    const boost::json::array* array(std::string_view key);
    /// A text that must be there.
    std::string_view required_text(std::string_view key);

    /// Keeps the first error only. `key` empty: the object itself.
    void fail(ErrorCode code, std::string message, std::string_view key);
    void fail(Error error);
    std::string param(std::string_view key) const;
    bool failed() const { return error_.has_value(); }
    Error take_error() { return std::move(*error_); }

  private:
    const boost::json::object& object_;
    std::string path_;
    std::optional<Error> error_;
};

/// Appends `value` as JSON; `sorted`: keys in byte order, so that equal requests have equal text.
void append_json(std::string& out, const boost::json::value& value, bool sorted = false);
void append_json(std::string& out, const boost::json::object& object, bool sorted = false);

/// OpenAI's bounds on metadata: pairs of text, limits::metadata_*. Gives the JSON text ("{}" if absent).
std::string read_metadata(FieldReader& fields);

}  // namespace mainstay
