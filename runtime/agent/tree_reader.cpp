#include "runtime/agent/tree_reader.h"

#include "runtime/agent/units.h"

namespace mainstay {
namespace {

bool has_control_characters(std::string_view text) {
    for (const char c : text)
        if ((static_cast<uint8_t>(c) < 0x20 && c != '\n' && c != '\t' && c != '\r') || c == 0x7f) return true;
    return false;
}

std::string between(uint64_t min, uint64_t max) {
    return "must be between " + std::to_string(min) + " and " + std::to_string(max);
}

}  // namespace

void Problem::report(ErrorCode code, const Node& at, std::string_view path, std::string_view what) {
    if (error_) return;
    std::string message = describe_place(source_, at, path);
    if (!path.empty()) message += ": ";
    error_ = Error{code, message + std::string(what), std::string(path)};
}

TableReader::TableReader(const Node& node, std::string path, Problem& problem)
    : node_(node), path_(std::move(path)), problem_(problem) {
    if (node.kind != Node::Kind::table)
        refuse(ErrorCode::invalid_request, {}, "must be a table, is " + std::string(kind_word(node.kind)));
}

std::string TableReader::path_of(std::string_view key) const {
    if (key.empty()) return path_;
    return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

void TableReader::refuse(ErrorCode code, std::string_view key, std::string_view what) {
    const Node* at = key.empty() ? nullptr : node_.find(key);
    problem_.report(code, at ? *at : node_, path_of(key), what);
}

bool TableReader::has(std::string_view key) {
    asked_.emplace(key);
    return node_.find(key) != nullptr;
}

const Node* TableReader::want(std::string_view key, Node::Kind kind) {
    asked_.emplace(key);
    const Node* value = node_.find(key);
    if (!value || problem_.any()) return nullptr;
    if (value->kind == kind) return value;
    if (kind == Node::Kind::real && value->kind == Node::Kind::integer) return value;
    refuse(ErrorCode::invalid_request, key,
           "must be " + std::string(kind_word(kind)) + ", is " + std::string(kind_word(value->kind)));
    return nullptr;
}

bool TableReader::check_text(const Node& value, std::string_view path, size_t min, size_t max) {
    const auto fail = [&](std::string_view what) {
        problem_.report(ErrorCode::invalid_request, value, path, what);
        return false;
    };
    if (value.kind != Node::Kind::text) return fail("must be text, is " + std::string(kind_word(value.kind)));
    if (value.text.size() < min) return fail("must not be empty");
    if (value.text.size() > max) return fail("is longer than " + std::to_string(max) + " bytes");
    if (has_control_characters(value.text)) return fail("contains control characters");
    return true;
}

std::string TableReader::text(std::string_view key, size_t bytes_max, size_t bytes_min) {
    const Node* value = want(key, Node::Kind::text);
    if (!value || !check_text(*value, path_of(key), bytes_min, bytes_max)) return {};
    return value->text;
}

uint64_t TableReader::number(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max) {
    const Node* value = want(key, Node::Kind::integer);
    if (!value) return otherwise;
    if (value->integer >= 0 && uint64_t(value->integer) >= min && uint64_t(value->integer) <= max)
        return uint64_t(value->integer);
    refuse(ErrorCode::invalid_request, key, between(min, max));
    return otherwise;
}

std::optional<double> TableReader::real(std::string_view key, double min, double max) {
    const Node* value = want(key, Node::Kind::real);
    if (!value) return std::nullopt;
    const double number = value->kind == Node::Kind::integer ? double(value->integer) : value->real;
    if (number >= min && number <= max) return number;  // NaN is refused too
    refuse(ErrorCode::invalid_request, key, "is out of range");
    return std::nullopt;
}

uint64_t TableReader::duration_ms(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max) {
    const Node* value = node_.find(key);
    if (value && value->kind == Node::Kind::integer) return number(key, otherwise, min, max);
    value = want(key, Node::Kind::text);
    if (!value) return otherwise;
    const auto parsed = parse_duration_ms(value->text);
    if (parsed && *parsed >= min && *parsed <= max) return *parsed;
    if (parsed)
        refuse(ErrorCode::invalid_request, key,
               "must be between " + format_duration_ms(min) + " and " + format_duration_ms(max));
    else
        refuse(ErrorCode::invalid_request, key, "must be a duration such as \"10s\" (units ms, s, m, h, d)");
    return otherwise;
}

uint64_t TableReader::size_bytes(std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max) {
    const Node* value = node_.find(key);
    if (value && value->kind == Node::Kind::integer) return number(key, otherwise, min, max);
    value = want(key, Node::Kind::text);
    if (!value) return otherwise;
    const auto parsed = parse_size_bytes(value->text);
    if (parsed && *parsed >= min && *parsed <= max) return *parsed;
    if (parsed)
        refuse(ErrorCode::invalid_request, key,
               "must be between " + format_size_bytes(min) + " and " + format_size_bytes(max));
    else
        refuse(ErrorCode::invalid_request, key, "must be a size such as \"64MB\" (units B, KB, MB, GB, TB)");
    return otherwise;
}

bool TableReader::flag(std::string_view key, bool otherwise) {
    const Node* value = want(key, Node::Kind::boolean);
    return value ? value->boolean : otherwise;
}

size_t TableReader::choice(std::string_view key, const std::vector<std::string_view>& words, size_t otherwise) {
    const Node* value = want(key, Node::Kind::text);
    if (!value) return otherwise;
    std::string list;
    for (size_t i = 0; i < words.size(); ++i) {
        if (words[i] == value->text) return i;
        list += (i == 0 ? "\"" : ", \"") + std::string(words[i]) + "\"";
    }
    refuse(ErrorCode::unsupported_value, key, "must be one of " + list);
    return otherwise;
}

std::vector<std::string> TableReader::texts(std::string_view key, size_t count_max, size_t bytes_max) {
    const Node* value = want(key, Node::Kind::list);
    if (!value) return {};
    if (value->list.size() > count_max) {
        refuse(ErrorCode::invalid_request, key, "has more than " + std::to_string(count_max) + " entries");
        return {};
    }
    std::vector<std::string> out;
    for (size_t i = 0; i < value->list.size(); ++i) {
        const std::string path = path_of(key) + "[" + std::to_string(i) + "]";
        if (!check_text(value->list[i], path, 0, bytes_max)) return {};
        out.push_back(value->list[i].text);
    }
    return out;
}

std::vector<std::string> TableReader::text_or_texts(std::string_view key, size_t count_max, size_t bytes_max) {
    const Node* value = node_.find(key);
    if (value && value->kind == Node::Kind::text) return {text(key, bytes_max, 1)};
    return texts(key, count_max, bytes_max);
}

std::map<std::string, std::string> TableReader::text_map(std::string_view key, size_t count_max, size_t bytes_max) {
    const Node* value = table(key);
    if (!value) return {};
    if (value->table.size() > count_max) {
        refuse(ErrorCode::invalid_request, key, "has more than " + std::to_string(count_max) + " entries");
        return {};
    }
    std::map<std::string, std::string> out;
    for (const auto& [name, entry] : value->table) {
        if (name.empty() || name.size() > bytes_max || has_control_characters(name)) {
            refuse(ErrorCode::invalid_request, key, "has an empty, overlong or unprintable key");
            return {};
        }
        if (!check_text(entry, path_of(key) + "." + name, 0, bytes_max)) return {};
        out.emplace(name, entry.text);
    }
    return out;
}

const Node* TableReader::table(std::string_view key) { return want(key, Node::Kind::table); }

const std::vector<Node>* TableReader::tables(std::string_view key, size_t count_max) {
    const Node* value = want(key, Node::Kind::list);
    if (!value) return nullptr;
    if (value->list.size() > count_max) {
        refuse(ErrorCode::invalid_request, key, "has more than " + std::to_string(count_max) + " entries");
        return nullptr;
    }
    return &value->list;
}

void TableReader::not_yet(std::string_view key, std::string_view instead) {
    if (!has(key)) return;
    std::string what = "\"" + std::string(key) + "\" is a reserved word that is not built yet";
    if (!instead.empty()) what += "; " + std::string(instead);
    refuse(ErrorCode::not_yet, key, what);
}

void TableReader::finish() {
    if (problem_.any()) return;
    // The first in the text, where lines are known: what a person meets first.
    const Member* first = nullptr;
    for (const auto& entry : node_.table)
        if (!asked_.contains(entry.key) && (!first || entry.value.line < first->value.line)) first = &entry;
    if (!first) return;
    std::string known;
    for (const auto& key : asked_) known += (known.empty() ? "" : ", ") + key;
    problem_.report(ErrorCode::unknown_field, first->value, path_of(first->key),
                    "unknown key (known here: " + known + ")");
}

}  // namespace mainstay
