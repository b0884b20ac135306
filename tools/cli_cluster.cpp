// `mainstay cluster`, `node` and `shard`: a cluster as the door tells of it, and what is done before there is one: its
// CA, its nodes' certificates, and the directory of a node that was alone.
#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "cluster/certificates.h"
#include "runtime/base/random.h"
#include "tools/adopt.h"
#include "tools/cli_commands.h"
#include "tools/cli_output.h"

namespace mainstay {
namespace {

namespace json = boost::json;

constexpr size_t uuid_columns = 8;  // of a table: the door takes as many as a name

std::string cell(const json::value& object, std::string_view key, size_t columns = 60) {
    return shortened_to(printable(text_at(object, key), false), columns);
}

std::string short_uuid(const std::string& uuid) { return printable(uuid, false).substr(0, uuid_columns); }

const json::value& part(const json::value& object, std::string_view key) {
    static const json::value none;
    const auto* member = object.is_object() ? object.as_object().if_contains({key.data(), key.size()}) : nullptr;
    return member ? *member : none;
}

const json::array& data_of(const json::value& answer) {
    const auto* data = array_at(answer, "data");
    if (!data) throw CliFailure{ExitStatus::failed, "the answer has no list: is this Mainstay?"};
    return *data;
}

bool is(const json::value& object, std::string_view key) { return text_at(object, key) == "true"; }

std::string or_dash(std::string text) { return text.empty() ? "-" : text; }

std::string node_path(const std::string& node) { return "/v1/cluster/nodes/" + path_segment(node); }
std::string shard_path(const std::string& shard) { return "/v1/cluster/shards/" + path_segment(shard); }

std::string state_of(const json::value& node) {
    std::string out = is(node, "live") ? "live" : "gone";
    if (is(node, "draining")) out += ", draining";
    if (is(node, "live") && !is(node, "self") && !is(node, "linked")) out += ", no link";
    return out;
}

/// Short uuids of an array of uuids, or of replicas.
std::string uuids_of(const json::value& object, std::string_view key, bool whole = false) {
    std::string out;
    const auto* entries = array_at(object, key);
    if (!entries) return out;
    for (const auto& entry : *entries) {
        const std::string uuid = entry.is_string() ? text_of(entry) : text_at(entry, "node");
        out += (out.empty() ? "" : whole ? ", " : " ") + (whole ? printable(uuid, false) : short_uuid(uuid));
    }
    return out;
}

void print_decisions(std::ostream& out, const json::array& decisions, bool of_one_shard) {
    std::vector<std::vector<std::string>> rows;
    for (const auto& one : decisions) {
        rows.push_back({time_text(number_at(one, "at_ms")), cell(one, "what"), cell(one, "why", 100)});
        if (!of_one_shard) rows.back().insert(rows.back().begin() + 1, cell(one, "shard"));
    }
    print_table(out,
                of_one_shard ? std::vector<std::string>{"AT", "DECISION", "WHY"}
                             : std::vector<std::string>{"AT", "SHARD", "DECISION", "WHY"},
                rows);
}

[[noreturn]] void fail(const Error& error) {
    ExitStatus status = ExitStatus::failed;
    if (error.code == ErrorCode::not_found) status = ExitStatus::not_found;
    throw CliFailure{status, error.message + " (" + std::string(error_name(error.code)) + ")"};
}

}  // namespace

// --- over the door --------------------------------------------------------------------------------------------------

void show_cluster(CliContext& context) {
    const auto status = context.client.call("GET", "/v1/cluster");
    if (context.json) return print_json(context.streams.out, status);
    const json::value& coordinator = part(status, "coordinator");
    print_fields(
        context.streams.out,
        {{"cluster", cell(status, "id")},
         {"this node", cell(status, "node")},
         {"coordinator", is(coordinator, "reached") ? "reached " + cell(coordinator, "age_ms") + " ms ago"
                                                    : "not reached for " + cell(coordinator, "age_ms") + " ms"},
         {"nodes", cell(status, "nodes_live") + " live"},
         {"shards", cell(status, "shards") + ", " + cell(status, "replicas") + " copies of each, at least " +
                        cell(status, "min_in_sync") + " in sync to write"},
         {"serving", cell(status, "shards_serving")},
         {"unavailable", cell(status, "shards_unavailable")},
         {"under-replicated", cell(status, "shards_under_replicated")},
         {"moving", cell(status, "shards_moving")}});
    if (const auto* problems = array_at(status, "problems"))
        for (const auto& problem : *problems)
            context.streams.out << "problem: " << shortened_to(printable(text_of(problem), false), 200) << "\n";
}

void list_decisions(CliContext& context, const std::string& shard, size_t limit) {
    std::string query = "?limit=" + std::to_string(limit);
    if (!shard.empty()) query += "&shard=" + path_segment(shard);
    const auto answer = context.client.call("GET", "/v1/cluster/decisions" + query);
    if (context.json) return print_json(context.streams.out, data_of(answer));
    print_decisions(context.streams.out, data_of(answer), false);
}

/// What a node computes on devices of our own.
std::string models_of(const json::value& node, size_t max) {
    const auto* models = node.as_object().if_contains("models");
    if (!models || !models->is_array()) return "-";
    std::string out;
    for (const auto& name : models->get_array()) {
        const std::string one = text_of(name);
        out += (out.empty() ? "" : ", ") + (one == "*" ? "all" : one);
    }
    return out.empty() ? "none" : shortened_to(printable(out, false), max);
}

void list_nodes(CliContext& context) {
    const auto answer = context.client.call("GET", "/v1/cluster/nodes");
    const auto& data = data_of(answer);
    if (context.json) return print_json(context.streams.out, data);
    std::vector<std::vector<std::string>> rows;
    for (const auto& node : data)
        rows.push_back({short_uuid(text_at(node, "id")) + (is(node, "self") ? " *" : ""), state_of(node),
                        or_dash(cell(node, "zone", 24)), cell(node, "capacity"), cell(node, "primaries"),
                        cell(node, "in_sync"), cell(node, "copies"), models_of(node, 24),
                        or_dash(cell(node, "client_address", 48)), or_dash(cell(node, "version", 16))});
    print_table(context.streams.out,
                {"NODE", "STATE", "ZONE", "CAPACITY", "PRIMARIES", "IN SYNC", "COPIES", "MODELS", "ADDRESS", "VERSION"},
                rows);
}

void show_node(CliContext& context, const std::string& name) {
    const auto node = context.client.call("GET", node_path(name));
    if (context.json) return print_json(context.streams.out, node);
    print_fields(context.streams.out, {{"node", cell(node, "id")},
                                       {"state", state_of(node) + (is(node, "self") ? ", this one answers" : "")},
                                       {"disk", or_dash(cell(node, "disk"))},
                                       {"incarnation", or_dash(cell(node, "incarnation"))},
                                       {"zone", or_dash(cell(node, "zone"))},
                                       {"for clients", or_dash(cell(node, "client_address", 200))},
                                       {"for nodes", or_dash(cell(node, "link_address", 200))},
                                       {"version", or_dash(cell(node, "version"))},
                                       {"capacity", cell(node, "capacity")},
                                       {"computes", models_of(node, 400)},
                                       {"primaries", cell(node, "primaries")},
                                       {"in sync", cell(node, "in_sync") + " of " + cell(node, "copies") + " copies"}});
}

void drain_node(CliContext& context, const std::string& name, bool on) {
    const auto node = context.client.call("POST", node_path(name) + (on ? "/drain" : "/undrain"), "{}");
    if (context.json) return print_json(context.streams.out, node);
    context.streams.error << "node " << cell(node, "id");
    if (on)
        context.streams.error << " drains: " << cell(node, "primaries") << " primaries and " << cell(node, "copies")
                              << " copies go elsewhere\n";
    else
        context.streams.error << " takes part\n";
}

void list_shards(CliContext& context, bool problems_only) {
    const auto answer = context.client.call("GET", "/v1/cluster/shards");
    json::array shown;
    for (const auto& shard : data_of(answer))
        if (!problems_only || !text_at(shard, "problem").empty()) shown.push_back(shard);
    if (context.json) return print_json(context.streams.out, shown);
    std::vector<std::vector<std::string>> rows;
    for (const auto& shard : shown) {
        const std::string target = text_at(shard, "target");
        rows.push_back({cell(shard, "shard"), cell(shard, "epoch"), or_dash(short_uuid(text_at(shard, "primary"))),
                        uuids_of(shard, "in_sync"), uuids_of(shard, "replicas"), or_dash(short_uuid(target)),
                        cell(shard, "problem", 60)});
    }
    print_table(context.streams.out, {"SHARD", "EPOCH", "PRIMARY", "IN SYNC", "COPIES ON", "TARGET", "PROBLEM"}, rows);
}

void show_shard(CliContext& context, const std::string& name) {
    const auto shard = context.client.call("GET", shard_path(name));
    if (context.json) return print_json(context.streams.out, shard);
    const std::string primary = cell(shard, "primary");
    print_fields(
        context.streams.out,
        {{"shard", cell(shard, "shard")},
         {"epoch", cell(shard, "epoch") + ", version " + cell(shard, "version")},
         {"primary", primary.empty() ? "nobody; last " + cell(part(shard, "primary_on_record"), "node") : primary},
         {"in sync", uuids_of(shard, "in_sync", true)},
         {"copies on", uuids_of(shard, "replicas", true)},
         {"target", or_dash(cell(shard, "target"))},
         {"at least", cell(shard, "min_in_sync") + " in sync"},
         {"this node", std::string(is(shard, "led_here") ? "leads it" : "does not lead it") +
                           (is(shard, "serving") ? " and serves" : "") + "; its copy ends at " +
                           cell(shard, "last_index") + ", committed to " + cell(shard, "commit_index")},
         {"problem", or_dash(cell(shard, "problem", 200))}});
    const auto answer = context.client.call("GET", "/v1/cluster/decisions?limit=20&shard=" + path_segment(name));
    const auto& decisions = data_of(answer);
    if (decisions.empty()) return;
    context.streams.out << "\n";
    print_decisions(context.streams.out, decisions, true);
}

void move_shard(CliContext& context, const std::string& name, const std::string& to) {
    const auto shard =
        context.client.call("POST", shard_path(name) + "/move", json::serialize(json::object{{"to", to}}));
    if (context.json) return print_json(context.streams.out, shard);
    context.streams.error << "shard " << cell(shard, "shard") << " goes to node " << or_dash(cell(shard, "target"))
                          << "\n";
}

void migrate_session(CliContext& context, const std::string& session, const std::string& to) {
    const auto shard = context.client.call("POST", "/v1/sessions/" + path_segment(session) + "/migrate",
                                           json::serialize(json::object{{"to", to}}));
    if (context.json) return print_json(context.streams.out, shard);
    context.streams.error << "the session goes to node " << or_dash(cell(shard, "target")) << ", with all of shard "
                          << cell(shard, "shard") << "\n";
}

void force_lead(CliContext& context, const std::string& name, bool accept_loss) {
    const auto shard = context.client.call("GET", shard_path(name));
    const std::string last = cell(shard, "last_index");
    if (!accept_loss)
        throw CliFailure{ExitStatus::usage,
                         "nothing was done. The copy on this node ends at index " + last +
                             "; whatever others hold beyond it would be lost for ever, and their copies "
                             "with it. In sync on record, and sure to hold everything that was acknowledged: " +
                             uuids_of(shard, "in_sync") +
                             ". If it is what you want all the same, repeat it with --accept-loss"};
    const auto led =
        context.client.call("POST", shard_path(name) + "/force_lead",
                            "{\"accept_loss_beyond\":" + std::to_string(number_at(shard, "last_index")) + "}");
    if (context.json) return print_json(context.streams.out, led);
    context.streams.error << "shard " << cell(led, "shard") << " is led by this node's copy alone in epoch "
                          << cell(led, "epoch") << "; it ended at index " << last
                          << ", and what was acknowledged beyond is lost\n";
}

// --- offline --------------------------------------------------------------------------------------------------------

void init_cluster(CliStreams& streams, const std::string& directory, bool as_json) {
    const auto cluster = make_cluster(directory);
    if (!cluster) fail(cluster.error());
    streams.error << "ca.key can make any node: keep it where you make certificates, and on no node\n";
    if (as_json) return print_json(streams.out, json::object{{"cluster", to_text(*cluster)}, {"directory", directory}});
    print_fields(streams.out, {{"cluster", to_text(*cluster)}, {"directory", printable(directory, false)}});
}

void join_cluster(CliStreams& streams, const std::string& directory, const std::string& out, const std::string& name,
                  bool as_json) {
    NodeUuid node{};
    if (name.empty()) {
        SecureRandom random;
        for (size_t i = 0; i < node.size(); ++i) node[i] = static_cast<uint8_t>(random.below(256));
        node[6] = static_cast<uint8_t>((node[6] & 0x0f) | 0x40);  // RFC 9562: version 4, its variant
        node[8] = static_cast<uint8_t>((node[8] & 0x3f) | 0x80);
    } else {
        const auto given = parse_uuid(name);
        if (!given) throw CliFailure{ExitStatus::usage, "--node is no uuid (8-4-4-4-12 lower-case hex digits)"};
        node = *given;
    }
    if (auto made = make_node_certificate(directory, node, out); !made) fail(made.error());
    if (as_json) return print_json(streams.out, json::object{{"node", to_text(node)}, {"directory", out}});
    print_fields(streams.out, {{"node", to_text(node)}, {"directory", printable(out, false)}});
}

void adopt(CliStreams& streams, const std::string& data, const std::string& cluster, bool as_json) {
    const auto adopted = adopt_directory(data, cluster);
    if (!adopted) fail(adopted.error());
    streams.error
        << "it opens only as a part of this cluster now. Start its node first and alone, with as many shards: "
           "the cluster begins with what it has\n";
    const std::string uuid = to_text(adopted->cluster);
    if (as_json)
        return print_json(
            streams.out,
            json::object{
                {"cluster", uuid}, {"directory", data}, {"epoch", adopted->epoch.value}, {"shards", adopted->shards}});
    print_fields(streams.out, {{"cluster", uuid},
                               {"directory", printable(data, false)},
                               {"epoch", std::to_string(adopted->epoch.value)},
                               {"shards", std::to_string(adopted->shards)}});
}

}  // namespace mainstay
