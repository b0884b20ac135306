#include "gateway/cluster.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "gateway/error_table.h"
#include "gateway/item_list.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"

namespace mainstay {
namespace {

constexpr size_t prefix_min = 4;
constexpr size_t names_shown_max = 10;
constexpr size_t decisions_default = 50;

JsonWriter& uuid(JsonWriter& writer, const NodeUuid& value) { return writer.string(to_text(value)); }

JsonWriter& uuid_or_null(JsonWriter& writer, const std::optional<NodeUuid>& value) {
    return value ? uuid(writer, *value) : writer.raw("null");
}

/// As text: 64 random bits are more than a number of JSON holds in most languages.
JsonWriter& incarnation(JsonWriter& writer, uint64_t value) {
    if (value == 0) return writer.raw("null");
    char digits[16];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
    return writer.string(std::string(16 - static_cast<size_t>(end - digits), '0').append(digits, end));
}

template <class List, class Append>
void list(JsonWriter& writer, const List& entries, Append append) {
    writer.raw("[");
    bool first = true;
    for (const auto& entry : entries) {
        if (!std::exchange(first, false)) writer.raw(",");
        append(entry);
    }
    writer.raw("]");
}

void append_replica(JsonWriter& writer, const ReplicaName& name) {
    uuid(writer.raw("{\"node\":"), name.node);
    uuid(writer.raw(",\"disk\":"), name.disk).raw("}");
}

void append_status(JsonWriter& writer, const ClusterStatus& status) {
    uuid(writer.raw("{\"object\":\"cluster\",\"id\":"), status.meta.cluster);
    uuid(writer.raw(",\"node\":"), status.self);
    writer.raw(",\"shards\":").number(uint64_t{status.meta.shards});
    writer.raw(",\"replicas\":").number(uint64_t{status.meta.replicas});
    writer.raw(",\"min_in_sync\":").number(uint64_t{status.meta.min_in_sync});
    writer.raw(",\"format\":").number(uint64_t{status.meta.format});
    writer.raw(",\"coordinator\":{\"reached\":").boolean(status.coordinator_reached);
    writer.raw(",\"age_ms\":").number(status.coordinator_age_ms);
    writer.raw("},\"nodes_live\":").number(uint64_t{status.nodes_live});
    writer.raw(",\"shards_serving\":").number(uint64_t{status.shards_serving});
    writer.raw(",\"shards_under_replicated\":").number(uint64_t{status.shards_under_replicated});
    writer.raw(",\"shards_unavailable\":").number(uint64_t{status.shards_unavailable});
    writer.raw(",\"shards_moving\":").number(uint64_t{status.shards_moving}).raw(",\"problems\":");
    list(writer, status.problems, [&writer](const std::string& problem) { writer.string(problem); });
    writer.raw("}");
}

void append_node(JsonWriter& writer, const ClusterNodeInfo& info) {
    uuid(writer.raw("{\"object\":\"cluster.node\",\"id\":"), info.node.name.node);
    const bool has_disk = info.node.name.disk != NodeUuid{};
    uuid_or_null(writer.raw(",\"disk\":"), has_disk ? std::optional(info.node.name.disk) : std::nullopt);
    incarnation(writer.raw(",\"incarnation\":"), info.node.incarnation);
    writer.raw(",\"live\":").boolean(info.live).raw(",\"self\":").boolean(info.self);
    writer.raw(",\"draining\":").boolean(info.draining).raw(",\"linked\":").boolean(info.linked);
    writer.raw(",\"link_address\":").string_or_null(info.details.link_address);
    writer.raw(",\"client_address\":").string_or_null(info.details.client_address);
    writer.raw(",\"zone\":").string_or_null(info.details.zone);
    writer.raw(",\"version\":").string_or_null(info.details.version);
    writer.raw(",\"capacity\":").number(info.details.capacity).raw(",\"models\":");
    if (info.live)
        list(writer, info.details.models, [&writer](const std::string& name) { writer.string(name); });
    else
        writer.raw("null");
    writer.raw(",\"primaries\":").number(uint64_t{info.primaries});
    writer.raw(",\"in_sync\":").number(uint64_t{info.in_sync});
    writer.raw(",\"copies\":").number(uint64_t{info.copies}).raw("}");
}

void append_shard(JsonWriter& writer, const ClusterShardInfo& info) {
    const ShardRecord& record = info.record;
    writer.raw("{\"object\":\"cluster.shard\",\"shard\":").number(uint64_t{record.shard.value});
    writer.raw(",\"epoch\":").number(record.epoch.value).raw(",\"version\":").number(record.config_version);
    uuid_or_null(writer.raw(",\"primary\":"), info.primary);
    append_replica(writer.raw(",\"primary_on_record\":"), record.primary);
    incarnation(writer.raw(",\"incarnation\":"), record.incarnation).raw(",\"in_sync\":");
    list(writer, record.in_sync, [&writer](const ReplicaName& name) { append_replica(writer, name); });
    writer.raw(",\"replicas\":");
    list(writer, record.replicas, [&writer](const NodeUuid& node) { uuid(writer, node); });
    uuid_or_null(writer.raw(",\"target\":"), record.target);
    writer.raw(",\"min_in_sync\":").number(uint64_t{record.min_in_sync});
    writer.raw(",\"led_here\":").boolean(info.led_here).raw(",\"serving\":").boolean(info.serving);
    writer.raw(",\"last_index\":").number(info.last_index);
    writer.raw(",\"commit_index\":").number(info.commit_index);
    writer.raw(",\"problem\":").string_or_null(info.problem).raw("}");
}

void append_decision(JsonWriter& writer, const PlacementDecision& decision) {
    writer.raw("{\"at_ms\":").number(uint64_t{decision.at});
    writer.raw(",\"shard\":").number(uint64_t{decision.shard.value});
    writer.raw(",\"what\":").string(decision.what).raw(",\"why\":").string(decision.why).raw("}");
}

/// An object's answer.
template <class T, class Append>
auto one(Append append) {
    return [append](Result<T> value) {
        if (!value) return error_answer(value.error());
        Answer answer;
        JsonWriter writer(answer.body);
        append(writer, *value);
        return answer;
    };
}

/// A list's.
template <class T, class Append>
auto many(Append append) {
    return [append](Result<std::vector<T>> values) {
        if (!values) return error_answer(values.error());
        Answer answer;
        JsonWriter writer(answer.body);
        writer.raw("{\"object\":\"list\",\"data\":");
        list(writer, *values, [&](const T& value) { append(writer, value); });
        writer.raw("}");
        return answer;
    };
}

std::optional<ShardId> shard_from(const std::string& text) {
    uint16_t shard = 0;
    const char* end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, shard);
    if (read.ec != std::errc() || read.ptr != end || std::to_string(shard) != text) return std::nullopt;
    return ShardId{shard};
}

Error no_shard(const std::string& text) {
    return {ErrorCode::shard_not_found, "There is no shard '" + quoted_back(text) + "'; shards are numbered from 0.",
            "shard"};
}

/// Reads a body, and refuses what it does not know.
template <class Read>
bool read_body(const HttpRequest& request, const Reply& reply, std::string_view known, Read read) {
    JsonBody document;
    if (auto ok = document.parse(request.body.empty() ? "{}" : request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return false;
    }
    FieldReader fields(document.object(), "");
    read(fields);
    for (const auto& member : document.object()) {
        if (std::string_view(member.key().data(), member.key().size()) == known) continue;
        const auto shown = quoted_back(member.key());
        fields.fail(Error{ErrorCode::unknown_field, "Unknown field '" + shown + "'.", shown});
    }
    if (!fields.failed()) return true;
    reply.send(error_answer(fields.take_error()));
    return false;
}

}  // namespace

Result<ClusterNodeInfo> node_named(const std::vector<ClusterNodeInfo>& nodes, const std::string& name,
                                   const std::string& param) {
    const std::string shown = "'" + quoted_back(name) + "'";
    if (name.size() < prefix_min)
        return Error{ErrorCode::invalid_request,
                     "A node is named by its uuid, or at least " + std::to_string(prefix_min) +
                         " characters of its beginning; " + shown + " is too short.",
                     param};
    std::string found, there;
    const ClusterNodeInfo* match = nullptr;
    size_t matches = 0, listed = 0;
    for (const auto& node : nodes) {
        const std::string text = to_text(node.node.name.node);
        if (text.starts_with(name)) {
            match = &node;
            if (++matches <= names_shown_max) found += (found.empty() ? "" : ", ") + text;
        }
        if (++listed <= names_shown_max) there += (there.empty() ? "" : ", ") + text;
    }
    if (matches == 1) return *match;
    if (matches > 1)
        return Error{ErrorCode::invalid_request, "More than one node's uuid begins with " + shown + ": " + found + ".",
                     param};
    if (listed > names_shown_max) there += ", and " + std::to_string(listed - names_shown_max) + " more";
    return Error{ErrorCode::node_not_found, "There is no node " + shown + "; there are: " + there + ".", param};
}

ClusterRoutes::ClusterRoutes(ClusterAdmin* cluster, Routes& routes) : cluster_(cluster) {
    const std::string base = "/v1/cluster";
    add(routes, HttpMethod::get, base, &ClusterRoutes::status);
    add(routes, HttpMethod::get, base + "/nodes", &ClusterRoutes::list_nodes);
    add(routes, HttpMethod::get, base + "/nodes/*", &ClusterRoutes::read_node);
    add(routes, HttpMethod::post, base + "/nodes/*/drain", &ClusterRoutes::drain);
    add(routes, HttpMethod::post, base + "/nodes/*/undrain", &ClusterRoutes::undrain);
    add(routes, HttpMethod::get, base + "/shards", &ClusterRoutes::list_shards);
    add(routes, HttpMethod::get, base + "/shards/*", &ClusterRoutes::read_shard);
    add(routes, HttpMethod::post, base + "/shards/*/move", &ClusterRoutes::move);
    add(routes, HttpMethod::post, base + "/shards/*/force_lead", &ClusterRoutes::force_lead);
    add(routes, HttpMethod::get, base + "/decisions", &ClusterRoutes::decisions);
    add(routes, HttpMethod::get, "/v1/sessions/*/place", &ClusterRoutes::place);
    add(routes, HttpMethod::post, "/v1/sessions/*/migrate", &ClusterRoutes::migrate);
}

void ClusterRoutes::add(Routes& routes, HttpMethod method, std::string pattern, Checked handler) {
    routes.add(method, std::move(pattern),
               [this, handler](const HttpRequest& request, const PathParams& params, const Reply& reply) {
                   if (!request.principal.admin)
                       return reply.send(error_answer(ErrorCode::forbidden, "Only an admin's key opens this."));
                   if (!cluster_)
                       return reply.send(
                           error_answer(ErrorCode::not_found, "This node is alone: it was started without a cluster."));
                   (this->*handler)(request, params, reply);
               });
}

void ClusterRoutes::status(const HttpRequest&, const PathParams&, const Reply& reply) {
    cluster_->status(reply.then<ClusterStatus>(one<ClusterStatus>(append_status)));
}

// --- nodes ----------------------------------------------------------------------------------------------------------

void ClusterRoutes::list_nodes(const HttpRequest&, const PathParams&, const Reply& reply) {
    cluster_->nodes(reply.then<std::vector<ClusterNodeInfo>>(many<ClusterNodeInfo>(append_node)));
}

void ClusterRoutes::read_node(const HttpRequest&, const PathParams& params, const Reply& reply) {
    using Nodes = std::vector<ClusterNodeInfo>;
    cluster_->nodes(reply.then<Nodes>([name = params[0]](Result<Nodes> nodes) {
        if (!nodes) return error_answer(nodes.error());
        return one<ClusterNodeInfo>(append_node)(node_named(*nodes, name, "node"));
    }));
}

template <class T>
void ClusterRoutes::with_node(const Reply& reply, std::string name, std::string param, ClusterAdmin::Answer<T> done,
                              std::function<void(const NodeUuid&, ClusterAdmin::Answer<T>)> then) {
    cluster_->nodes([mailbox = reply.mailbox(), name = std::move(name), param = std::move(param),
                     done = std::move(done), then = std::move(then)](Result<std::vector<ClusterNodeInfo>> nodes) {
        if (!nodes) return done(nodes.error());
        auto node = node_named(*nodes, name, param);
        if (!node) return done(node.error());
        mailbox->post([uuid = node->node.name.node, done, then] { then(uuid, done); });
    });
}

void ClusterRoutes::drain(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    set_draining(request, params, reply, true);
}

void ClusterRoutes::undrain(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    set_draining(request, params, reply, false);
}

void ClusterRoutes::set_draining(const HttpRequest& request, const PathParams& params, const Reply& reply, bool on) {
    if (!read_body(request, reply, "", [](FieldReader&) {})) return;
    with_node<ClusterNodeInfo>(
        reply, params[0], "node", reply.then<ClusterNodeInfo>(one<ClusterNodeInfo>(append_node)),
        [cluster = cluster_, on](const NodeUuid& node, ClusterAdmin::Answer<ClusterNodeInfo> done) {
            cluster->drain(node, on, std::move(done));
        });
}

// --- shards ---------------------------------------------------------------------------------------------------------

void ClusterRoutes::list_shards(const HttpRequest&, const PathParams&, const Reply& reply) {
    cluster_->shards(reply.then<std::vector<ClusterShardInfo>>(many<ClusterShardInfo>(append_shard)));
}

void ClusterRoutes::read_shard(const HttpRequest&, const PathParams& params, const Reply& reply) {
    show_shard(params[0], reply);
}

void ClusterRoutes::show_shard(std::string name, const Reply& reply) {
    using Shards = std::vector<ClusterShardInfo>;
    cluster_->shards(reply.then<Shards>([text = std::move(name)](Result<Shards> shards) {
        if (!shards) return error_answer(shards.error());
        const auto shard = shard_from(text);
        for (const auto& info : *shards)
            if (shard && info.record.shard == *shard) return one<ClusterShardInfo>(append_shard)(info);
        return error_answer(no_shard(text));
    }));
}

void ClusterRoutes::move(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    std::string to;
    if (!read_body(request, reply, "to", [&to](FieldReader& fields) { to = fields.required_text("to"); })) return;
    const auto shard = shard_from(params[0]);
    if (!shard) return reply.send(error_answer(no_shard(params[0])));
    move_to(*shard, std::move(to), reply);
}

void ClusterRoutes::move_to(ShardId shard, std::string to, const Reply& reply) {
    with_node<ClusterShardInfo>(
        reply, std::move(to), "to", reply.then<ClusterShardInfo>(one<ClusterShardInfo>(append_shard)),
        [cluster = cluster_, shard](const NodeUuid& node, ClusterAdmin::Answer<ClusterShardInfo> done) {
            cluster->move(shard, node, std::move(done));
        });
}

void ClusterRoutes::migrate(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    std::string to;
    if (!read_body(request, reply, "to", [&to](FieldReader& fields) { to = fields.required_text("to"); })) return;
    const auto id = parse_session_id(params[0]);
    if (!id) return reply.send(error_answer(ErrorCode::session_not_found, "There is no such session."));
    move_to(shard_of({request.principal.tenant, *id}, cluster_->shard_count()), std::move(to), reply);
}

void ClusterRoutes::place(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    const auto id = parse_session_id(params[0]);
    if (!id) return reply.send(error_answer(ErrorCode::session_not_found, "There is no such session."));
    show_shard(std::to_string(shard_of({request.principal.tenant, *id}, cluster_->shard_count()).value), reply);
}

void ClusterRoutes::force_lead(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    std::optional<int64_t> beyond;
    const auto read = [&beyond](FieldReader& fields) {
        beyond = fields.integer("accept_loss_beyond", 0, std::numeric_limits<int64_t>::max());
        if (!beyond)
            fields.fail(ErrorCode::invalid_request,
                        "must be there: the last index of this node's copy, beyond which whatever others hold is lost",
                        "accept_loss_beyond");
    };
    if (!read_body(request, reply, "accept_loss_beyond", read)) return;
    const auto shard = shard_from(params[0]);
    if (!shard) return reply.send(error_answer(no_shard(params[0])));
    cluster_->force_lead(*shard, static_cast<uint64_t>(*beyond), request.principal.name,
                         reply.then<ClusterShardInfo>(one<ClusterShardInfo>(append_shard)));
}

void ClusterRoutes::decisions(const HttpRequest& request, const PathParams&, const Reply& reply) {
    const auto limit = read_limit(request.query, decisions_default);
    if (!limit) return reply.send(error_answer(limit.error()));
    const std::string text = query_parameter(request.query, "shard");
    const auto shard = shard_from(text);
    if (!text.empty() && !shard) return reply.send(error_answer(no_shard(text)));
    cluster_->decisions(shard, *limit,
                        reply.then<std::vector<PlacementDecision>>(many<PlacementDecision>(append_decision)));
}

}  // namespace mainstay
