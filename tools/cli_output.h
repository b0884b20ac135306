#pragma once
// What the command line prints: tables for people, JSON for scripts. Data goes to stdout, messages to stderr. Text that
// came from a model, a tool or another user never reaches the terminal with control characters in it.
//
// Pure but for the streams that are passed in.

#include <boost/json/value.hpp>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace mainstay {

/// Without control characters: newlines and tabs stay where `lines`, the rest becomes a space or vanishes.
std::string printable(std::string_view text, bool lines);
/// At most `columns` code points, with ".." at the end where something was cut.
std::string shortened_to(std::string_view text, size_t columns);

/// Columns as wide as their widest cell, two spaces between, upper-case headings. `rows` may be empty.
void print_table(std::ostream& out, const std::vector<std::string>& headings,
                 const std::vector<std::vector<std::string>>& rows);
/// "name: value" lines, aligned.
void print_fields(std::ostream& out, const std::vector<std::pair<std::string, std::string>>& fields);
void print_json(std::ostream& out, const boost::json::value& value);

/// A member as text: strings as they are, other scalars as JSON, "" where there is none or it is null.
std::string text_at(const boost::json::value& object, std::string_view key);
/// A scalar as text, anything else as JSON.
std::string text_of(const boost::json::value& value);
/// Null if there is no such member or it is no array.
const boost::json::array* array_at(const boost::json::value& object, std::string_view key);
uint64_t number_at(const boost::json::value& object, std::string_view key);

/// "2026-01-31 12:00:00.123Z"; without the fraction where `seconds`. Empty for 0.
std::string time_text(uint64_t milliseconds, bool seconds = false);

}  // namespace mainstay
