#include "tools/cli_output.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cstdio>
#include <ctime>

namespace mainstay {
namespace {

size_t columns_of(std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string printable(std::string_view text, bool lines) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<uint8_t>(text[i]);
        // C1 controls (U+0080 to U+009F) begin escape sequences on some terminals.
        if (byte == 0xc2 && i + 1 < text.size() && static_cast<uint8_t>(text[i + 1]) < 0xa0) {
            ++i;
            continue;
        }
        if (byte == '\n' || byte == '\t')
            out += lines ? text[i] : ' ';
        else if (byte >= 0x20 && byte != 0x7f)
            out += text[i];
    }
    return out;
}

std::string shortened_to(std::string_view text, size_t columns) {
    if (columns_of(text) <= columns) return std::string(text);
    size_t at = 0, seen = 0;
    while (at < text.size() && seen + 2 < columns) {
        ++at;
        while (at < text.size() && (text[at] & 0xc0) == 0x80) ++at;
        ++seen;
    }
    return std::string(text.substr(0, at)) + "..";
}

void print_table(std::ostream& out, const std::vector<std::string>& headings,
                 const std::vector<std::vector<std::string>>& rows) {
    std::vector<size_t> widths;
    for (const auto& heading : headings) widths.push_back(columns_of(heading));
    for (const auto& row : rows)
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns_of(row[i]));
    const auto print_row = [&](const std::vector<std::string>& row) {
        std::string line;
        for (size_t i = 0; i < row.size(); ++i) {
            line += row[i];
            if (i + 1 < row.size()) line.append(widths[i] - columns_of(row[i]) + 2, ' ');
        }
        out << line << "\n";
    };
    print_row(headings);
    for (const auto& row : rows) print_row(row);
}

void print_fields(std::ostream& out, const std::vector<std::pair<std::string, std::string>>& fields) {
    size_t width = 0;
    for (const auto& [name, value] : fields) width = std::max(width, name.size());
    for (const auto& [name, value] : fields)
        out << name << ":" << std::string(width - name.size() + 1, ' ') << value << "\n";
}

void print_json(std::ostream& out, const boost::json::value& value) { out << boost::json::serialize(value) << "\n"; }

std::string text_of(const boost::json::value& value) {
    if (value.is_null()) return {};
    if (value.is_string()) return std::string(value.as_string());
    return boost::json::serialize(value);
}

std::string text_at(const boost::json::value& object, std::string_view key) {
    if (!object.is_object()) return {};
    const auto* member = object.as_object().if_contains({key.data(), key.size()});
    return member ? text_of(*member) : std::string();
}

const boost::json::array* array_at(const boost::json::value& object, std::string_view key) {
    if (!object.is_object()) return nullptr;
    const auto* member = object.as_object().if_contains({key.data(), key.size()});
    return member ? member->if_array() : nullptr;
}

uint64_t number_at(const boost::json::value& object, std::string_view key) {
    if (!object.is_object()) return 0;
    const auto* member = object.as_object().if_contains({key.data(), key.size()});
    if (!member) return 0;
    if (member->is_uint64()) return member->as_uint64();
    return member->is_int64() && member->as_int64() > 0 ? static_cast<uint64_t>(member->as_int64()) : 0;
}

std::string time_text(uint64_t milliseconds, bool seconds) {
    if (milliseconds == 0) return {};
    const auto whole = static_cast<std::time_t>(milliseconds / 1000);
    std::tm parts{};
    if (!::gmtime_r(&whole, &parts)) return {};
    char text[64];
    const size_t used = std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
    std::string out(text, used);
    if (!seconds) {
        std::snprintf(text, sizeof text, ".%03u", static_cast<unsigned>(milliseconds % 1000));
        out += text;
    }
    return out + "Z";
}

}  // namespace mainstay
