#include "runtime/agent/settings.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <variant>

#include "runtime/agent/canonical.h"
#include "runtime/agent/tree_reader.h"
#include "runtime/agent/units.h"

namespace mainstay {
namespace {

struct Text {
    std::string Settings::*field;
    bool path = false;
    bool may_be_empty = false;
};
struct Number {
    uint64_t Settings::*field;
    uint64_t min, max;
    enum class Unit : uint8_t { plain, bytes, milliseconds } unit = Unit::plain;
};
struct Flag {
    bool Settings::*field;
};
struct Texts {
    std::vector<std::string> Settings::*field;
    size_t count_max;
};
struct Choice {
    std::vector<std::string_view> words;
    size_t (*get)(const Settings&);
    void (*set)(Settings&, size_t);
};
struct Row {
    std::string_view section, key;
    std::variant<Text, Texts, Number, Flag, Choice> what;
    std::string name() const { return std::string(section) + "." + std::string(key); }
};

constexpr auto bytes = Number::Unit::bytes;
constexpr auto milliseconds = Number::Unit::milliseconds;
constexpr uint64_t hour_ms = 3600'000, day_ms = 24 * hour_ms;

const std::vector<std::string_view> log_levels = {"trace", "debug", "info", "warn", "error", "off"};

size_t level_index(const Settings& s) {
    return static_cast<size_t>(std::find(log_levels.begin(), log_levels.end(), s.log_level) - log_levels.begin());
}

// The ranges keep every value within what the formats and the static_asserts of limits.h allow.
const std::vector<Row>& rows() {
    static const std::vector<Row> all = {
        {"listen", "address", Text{&Settings::listen_address}},
        {"listen", "allowed_hosts", Texts{&Settings::allowed_hosts, limits::allowed_hosts_max}},
        {"session", "commit",
         Choice{{"pipelined", "strict"},
                [](const Settings& s) { return size_t(s.commit); },
                [](Settings& s, size_t at) { s.commit = CommitMode(at); }}},
        {"session", "window_bytes", Number{&Settings::window_bytes, 4096, 64ull << 20, bytes}},
        {"session", "passivate_after", Number{&Settings::passivate_after_ms, 10, day_ms, milliseconds}},
        {"session", "turn_duration", Number{&Settings::turn_duration_ms, 100, 30 * day_ms, milliseconds}},
        {"session", "steps_per_turn", Number{&Settings::steps_per_turn, 1, limits::steps_per_turn_max}},
        {"session", "active_max", Number{&Settings::active_max, 1, 10'000'000}},
        {"store", "directory", Text{&Settings::directory}},
        {"store", "segment_bytes",
         Number{&Settings::segment_bytes, 4 * limits::record_bytes_max + 4096,
                limits::apply_backlog_bytes_max / 2 - 4096, bytes}},
        {"store", "disk_reserve", Number{&Settings::disk_reserve_bytes, 1ull << 20, 1ull << 40, bytes}},
        {"store", "deleted_text_lifetime", Number{&Settings::deleted_text_lifetime_ms, 1000, day_ms, milliseconds}},
        {"limits", "body_bytes",
         Number{&Settings::body_bytes, limits::input_bytes_max + 1, limits::record_bytes_max / 2, bytes}},
        {"limits", "connections", Number{&Settings::connections, 1, 1'000'000}},
        {"limits", "upstream_stall", Number{&Settings::upstream_stall_ms, 100, day_ms, milliseconds}},
        {"limits", "tool_call_timeout",
         Number{&Settings::tool_call_timeout_ms, 1, limits::tool_call_timeout_ms_max, milliseconds}},
        {"log", "level", Choice{log_levels, level_index, [](Settings& s, size_t at) { s.log_level = log_levels[at]; }}},
        {"log", "format",
         Choice{{"text", "json"},
                [](const Settings& s) { return size_t(s.log_format); },
                [](Settings& s, size_t at) { s.log_format = LogFormat(at); }}},
        {"agents", "directory", Text{&Settings::agents_directory, true}},
        {"agents", "default_agent", Text{&Settings::default_agent}},
        {"models", "directory", Text{&Settings::models_directory, true}},
        {"inference", "models", Texts{&Settings::computed_models, limits::node_models_max}},
        {"metrics", "without_key", Flag{&Settings::metrics_without_key}},
        {"cluster", "coordinator",
         Choice{{"local", "etcd"},
                [](const Settings& s) { return size_t(s.coordinator); },
                [](Settings& s, size_t at) { s.coordinator = CoordinatorKind(at); }}},
        {"cluster", "directory", Text{&Settings::cluster_directory, true}},
        {"cluster", "endpoints", Texts{&Settings::coordinator_urls, limits::coordinator_urls_max}},
        {"cluster", "user", Text{&Settings::coordinator_user, false, true}},
        {"cluster", "ca", Text{&Settings::coordinator_ca, true, true}},
        {"cluster", "certificate", Text{&Settings::coordinator_certificate, true, true}},
        {"cluster", "key", Text{&Settings::coordinator_key, true, true}},
        {"cluster", "listen", Text{&Settings::link_address}},
        {"cluster", "advertise", Text{&Settings::link_advertise, false, true}},
        {"cluster", "zone", Text{&Settings::zone, false, true}},
        {"cluster", "replicas", Number{&Settings::replicas, 1, limits::replicas_max}},
        {"cluster", "min_in_sync", Number{&Settings::min_in_sync, 1, limits::replicas_max}},
        {"cluster", "shards", Number{&Settings::shards, 1, limits::cluster_shards_max}},
        {"cluster", "lease", Number{&Settings::node_lease_ms, 2000, 60'000, milliseconds}},
        {"cluster", "hand_over_wait", Number{&Settings::hand_over_wait_ms, 0, 600'000, milliseconds}},
    };
    return all;
}

std::string under(const std::string& folder, const std::string& path) {
    if (path.empty() || path.front() == '/' || folder.empty()) return path;
    return (std::filesystem::path(folder) / path).lexically_normal().string();
}

/// Sizes may be written "64MB" or as a whole number of bytes.
uint64_t read_size(TableReader& reader, std::string_view key, uint64_t otherwise, uint64_t min, uint64_t max) {
    const Node* value = reader.node().find(key);
    if (value && value->kind == Node::Kind::integer) return reader.number(key, otherwise, min, max);
    const std::string text = reader.text(key, 64);
    if (!value || text.empty()) return otherwise;
    const auto size = parse_size_bytes(text);
    if (size && *size >= min && *size <= max) return *size;
    reader.refuse(ErrorCode::invalid_request, key,
                  size ? "must be between " + format_size_bytes(min) + " and " + format_size_bytes(max)
                       : "must be a size such as \"64MB\" (units B, KB, MB, GB, TB; powers of 1024)");
    return otherwise;
}

void read_number(TableReader& reader, const Row& row, const Number& number, Settings& out) {
    uint64_t& field = out.*number.field;
    switch (number.unit) {
        case Number::Unit::plain: field = reader.number(row.key, field, number.min, number.max); break;
        case Number::Unit::bytes: field = read_size(reader, row.key, field, number.min, number.max); break;
        case Number::Unit::milliseconds: field = reader.duration_ms(row.key, field, number.min, number.max); break;
    }
}

void read_flag(TableReader& reader, const Row& row, const Flag& flag, Settings& out) {
    const Node* value = reader.node().find(row.key);
    if (!reader.has(row.key)) return;
    if (value->kind == Node::Kind::boolean)
        out.*flag.field = value->boolean;
    else
        reader.refuse(ErrorCode::invalid_request, row.key, "must be true or false");
}

void read_row(TableReader& reader, const Row& row, const std::string& folder, Settings& out) {
    if (const auto* text = std::get_if<Text>(&row.what)) {
        if (!reader.has(row.key)) return;
        std::string value = reader.text(row.key, limits::agent_text_bytes_max, text->may_be_empty ? 0 : 1);
        out.*text->field = text->path ? under(folder, value) : value;
    } else if (const auto* texts = std::get_if<Texts>(&row.what)) {
        if (reader.has(row.key))
            out.*texts->field = reader.text_or_texts(row.key, texts->count_max, limits::host_name_bytes_max);
    } else if (const auto* number = std::get_if<Number>(&row.what)) {
        read_number(reader, row, *number, out);
    } else if (const auto* flag = std::get_if<Flag>(&row.what)) {
        read_flag(reader, row, *flag, out);
    } else if (const auto* choice = std::get_if<Choice>(&row.what)) {
        choice->set(out, reader.choice(row.key, choice->words, choice->get(out)));
    }
}

/// All rows of a document; sections that do not exist are refused.
void read_sections(const Node& tree, const std::string& folder, Problem& problem, Settings& out) {
    TableReader root(tree, {}, problem);
    std::map<std::string_view, std::vector<const Row*>> sections;
    for (const auto& row : rows()) sections[row.section].push_back(&row);
    for (const auto& [name, members] : sections) {
        const Node* node = root.table(name);
        if (!node) continue;
        TableReader section(*node, std::string(name), problem);
        for (const Row* row : members) read_row(section, *row, folder, out);
        if (name == "listen") section.not_yet("tls", "put a proxy that speaks TLS in front");
        section.finish();
    }
    root.finish();
}

/// "a,b": a list where there is no TOML to write one in. Blanks around the names do not count.
Node comma_separated(std::string_view value) {
    Node list;
    list.kind = Node::Kind::list;
    while (!value.empty()) {
        const size_t comma = std::min(value.find(','), value.size());
        std::string_view one = value.substr(0, comma);
        value.remove_prefix(std::min(comma + 1, value.size()));
        while (!one.empty() && one.front() == ' ') one.remove_prefix(1);
        while (!one.empty() && one.back() == ' ') one.remove_suffix(1);
        Node text;
        text.kind = Node::Kind::text;
        text.text = one;
        list.list.push_back(std::move(text));
    }
    return list;
}

/// One value from outside the file: as text first, else as what TOML makes of it ("true", "8").
Result<void> override_row(const std::string& name, const std::string& value, const std::string& source,
                          Settings& settings) {
    const auto row =
        std::find_if(rows().begin(), rows().end(), [&](const Row& candidate) { return candidate.name() == name; });
    if (row == rows().end()) return {ErrorCode::unknown_field, source + ": there is no setting " + name, name};
    Node leaf;
    leaf.kind = Node::Kind::text;
    leaf.text = value;
    const bool digits =
        !value.empty() && value.size() < 18 && value.find_first_not_of("0123456789") == std::string::npos;
    if (std::holds_alternative<Number>(row->what) && digits) {
        leaf.kind = Node::Kind::integer;
        leaf.integer = std::stoll(value);
    }
    if (std::holds_alternative<Flag>(row->what) && (value == "true" || value == "false")) {
        leaf.kind = Node::Kind::boolean;
        leaf.boolean = value == "true";
    }
    if (std::holds_alternative<Texts>(row->what)) leaf = comma_separated(value);
    Node section;
    section.kind = Node::Kind::table;
    section.table.push_back({std::string(row->key), std::move(leaf)});
    Problem problem(source);
    TableReader reader(section, std::string(row->section), problem);
    read_row(reader, *row, {}, settings);
    if (problem.any()) return problem.error();
    return {};
}

/// MAINSTAY_SESSION__COMMIT -> session.commit; empty if the variable is no override.
std::string setting_of_variable(std::string_view variable) {
    constexpr std::string_view prefix = "MAINSTAY_";
    if (!variable.starts_with(prefix)) return {};
    std::string name(variable.substr(prefix.size()));
    const size_t gap = name.find("__");
    if (gap == std::string::npos) return {};
    name.replace(gap, 2, ".");
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    return name;
}

Result<void> apply_environment(const std::vector<std::string>& environment, Settings& settings) {
    for (const auto& entry : environment) {
        const size_t equals = entry.find('=');
        if (equals == std::string::npos) continue;
        const std::string variable = entry.substr(0, equals), value = entry.substr(equals + 1);
        if (variable == "MAINSTAY_ADMIN_KEY") settings.admin_key = value;
        if (variable == "MAINSTAY_CLUSTER_PASSWORD") settings.coordinator_password = value;
        const std::string name = setting_of_variable(variable);
        if (name.empty()) continue;
        if (auto applied = override_row(name, value, variable, settings); !applied) return applied;
    }
    return {};
}

/// "host:port" or "[v6]:port"; names are resolved by the door.
bool is_address(const std::string& address) {
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) return false;
    const std::string port = address.substr(colon + 1);
    if (port.size() > 5 || port.find_first_not_of("0123456789") != std::string::npos) return false;
    return std::stoul(port) <= 65535 && address.find_first_of(" \t\n/") == std::string::npos;
}

/// As a Host field says it: a name or an address, without port; IPv6 in brackets.
bool is_host_name(const std::string& host) {
    const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
    const std::string_view name = bracketed ? std::string_view(host).substr(1, host.size() - 2) : host;
    return !name.empty() && name.find_first_of(bracketed ? " \t/[]@" : " \t/[]@:") == std::string_view::npos;
}

std::string printed(const Settings& settings, const Row& row) {
    if (const auto* texts = std::get_if<Texts>(&row.what)) {
        std::string out;
        for (const auto& text : settings.*texts->field) out += (out.empty() ? "" : ", ") + quote_json(text);
        return "[" + out + "]";
    }
    if (const auto* text = std::get_if<Text>(&row.what)) return quote_json(settings.*text->field);
    if (const auto* flag = std::get_if<Flag>(&row.what)) return settings.*flag->field ? "true" : "false";
    if (const auto* choice = std::get_if<Choice>(&row.what)) return quote_json(choice->words[choice->get(settings)]);
    const auto& number = std::get<Number>(row.what);
    const uint64_t value = settings.*number.field;
    if (number.unit == bytes) return quote_json(format_size_bytes(value));
    if (number.unit == milliseconds) return quote_json(format_duration_ms(value));
    return std::to_string(value);
}

}  // namespace

Result<std::string> read_text_file(const std::string& path, size_t bytes_max) {
    std::error_code failure;
    if (!std::filesystem::exists(path, failure)) return {ErrorCode::not_found, path + ": there is no such file"};
    if (!std::filesystem::is_regular_file(path, failure))
        return {ErrorCode::invalid_request, path + ": is not a regular file"};
    std::ifstream in(path, std::ios::binary);
    if (!in) return {ErrorCode::invalid_request, path + ": cannot be read"};
    std::string text(bytes_max + 1, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(in.gcount()));
    if (in.bad()) return {ErrorCode::invalid_request, path + ": cannot be read"};
    if (text.size() > bytes_max)
        return {ErrorCode::body_too_large, path + ": is larger than " + std::to_string(bytes_max) + " bytes"};
    return text;
}

Result<Settings> parse_settings(std::string_view text, const std::string& source, const std::string& folder,
                                const std::vector<std::string>& environment,
                                const std::vector<SettingOverride>& flags) {
    Settings settings;
    settings.agents_directory = under(folder, settings.agents_directory);
    settings.models_directory = under(folder, settings.models_directory);
    settings.cluster_directory = under(folder, settings.cluster_directory);
    const auto tree = parse_tree(text, Syntax::toml, source);
    if (!tree) return tree.error();
    Problem problem(source);
    read_sections(*tree, folder, problem, settings);
    if (problem.any()) return problem.error();
    if (auto applied = apply_environment(environment, settings); !applied) return applied.error();
    for (const auto& [name, value] : flags)
        if (auto applied = override_row(name, value, "flag for " + name, settings); !applied) return applied.error();
    if (!is_address(settings.listen_address))
        return {ErrorCode::invalid_request,
                "listen.address: must be HOST:PORT, is " + quote_json(settings.listen_address), "listen.address"};
    for (const auto& [name, address] : {std::pair("cluster.listen", &settings.link_address),
                                        std::pair("cluster.advertise", &settings.link_advertise)})
        if (!is_address(*address) && !(address == &settings.link_advertise && address->empty()))
            return {ErrorCode::invalid_request, std::string(name) + ": must be HOST:PORT, is " + quote_json(*address),
                    name};
    if (settings.min_in_sync > settings.replicas)
        return {ErrorCode::invalid_request, "cluster.min_in_sync: cannot be more than cluster.replicas",
                "cluster.min_in_sync"};
    for (const auto& host : settings.allowed_hosts)
        if (!is_host_name(host))
            return {ErrorCode::invalid_request,
                    "listen.allowed_hosts: must be host names without a port, has " + quote_json(host),
                    "listen.allowed_hosts"};
    return settings;
}

Result<Settings> load_settings(const std::string& file, const std::vector<std::string>& environment,
                               const std::vector<SettingOverride>& flags) {
    if (file.empty()) return parse_settings({}, "defaults", {}, environment, flags);
    auto text = read_text_file(file, limits::agent_file_bytes_max);
    if (!text) return text.error();
    return parse_settings(*text, file, std::filesystem::path(file).parent_path().string(), environment, flags);
}

std::string print_effective(const Settings& settings) {
    std::string out;
    std::string_view section;
    for (const auto& row : rows()) {
        if (row.section != section) {
            out += (out.empty() ? "[" : "\n[") + std::string(row.section) + "]\n";
            section = row.section;
        }
        out += std::string(row.key) + " = " + printed(settings, row) + "\n";
    }
    out += settings.admin_key.empty() ? "\n# admin key: the file admin.key of the store's directory\n"
                                      : "\n# admin key: *** (from MAINSTAY_ADMIN_KEY)\n";
    return out;
}

std::vector<std::string> setting_names() {
    std::vector<std::string> out;
    for (const auto& row : rows()) out.push_back(row.name());
    return out;
}

std::vector<std::string> read_environment() {
    std::vector<std::string> out;
    for (char** entry = environ; entry && *entry; ++entry)
        if (std::string_view(*entry).starts_with("MAINSTAY_")) out.emplace_back(*entry);
    return out;
}

}  // namespace mainstay
