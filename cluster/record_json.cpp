#include "cluster/record_json.h"

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <limits>

#include "runtime/base/limits.h"

namespace mainstay {
namespace {

namespace json = boost::json;

constexpr uint32_t format_known = 1;

/// Takes fields out of one object; after the first that is not as it must be, everything is refused.
class Fields {
  public:
    Fields(std::string_view key, std::string_view text) : key_(key) {
        json::error_code error;
        value_ = json::parse({text.data(), text.size()}, error);
        if (error || !value_.is_object()) fail("is not a JSON object");
    }
    /// A part of another object, whose failures are that one's.
    Fields(Fields& whole, json::value value, std::string name)
        : key_(whole.key_), whole_(&whole), inside_(std::move(name)), value_(std::move(value)) {
        if (!value_.is_object()) fail("is not an object");
    }

    bool ok() const { return whole_ ? whole_->ok() : !problem_; }
    Error error() const { return {ErrorCode::state_damaged, *problem_, {}}; }
    void fail(const std::string& what) {
        const std::string said = inside_.empty() ? what : inside_ + " " + what;
        if (whole_)
            whole_->fail(said);
        else if (!problem_)
            problem_ = key_ + ": damaged: " + said;
    }

    uint64_t number(const char* name, uint64_t max) {
        const json::value* value = find(name);
        uint64_t out = 0;
        if (value && value->is_uint64())
            out = value->get_uint64();
        else if (value && value->is_int64() && value->get_int64() >= 0)
            out = static_cast<uint64_t>(value->get_int64());
        else if (value)
            fail(std::string(name) + " is not a whole number");
        if (out > max) fail(std::string(name) + " is too large");
        return out;
    }
    std::string text(const char* name) {
        const json::value* value = find(name);
        if (value && value->is_string()) return std::string(value->get_string());
        if (value) fail(std::string(name) + " is not a text");
        return {};
    }
    NodeUuid uuid(const char* name) { return uuid_of(name, text(name)); }
    uint64_t incarnation(const char* name) {
        const auto out = incarnation_from_text(text(name));
        if (!out) fail(std::string(name) + " is not 16 hex digits");
        return out.value_or(0);
    }
    ReplicaName replica(const char* name) {
        const json::value* value = find(name);
        return value ? replica_of(name, *value) : ReplicaName{};
    }
    std::vector<ReplicaName> replicas(const char* name) {
        std::vector<ReplicaName> out;
        for (const auto& value : list(name, limits::replicas_max)) out.push_back(replica_of(name, value));
        return out;
    }
    std::vector<std::string> texts(const char* name, size_t max) {
        std::vector<std::string> out;
        for (const auto& value : list(name, max)) {
            if (!value.is_string()) fail(std::string(name) + " has what is not a text");
            out.push_back(value.is_string() ? std::string(value.get_string()) : std::string());
        }
        return out;
    }
    std::vector<NodeUuid> uuids(const char* name) {
        std::vector<NodeUuid> out;
        for (const auto& value : list(name, limits::replicas_max))
            out.push_back(uuid_of(name, value.is_string() ? std::string(value.get_string()) : std::string()));
        return out;
    }
    bool has(const char* name) { return ok() && value_.get_object().contains(name); }

  private:
    const json::value* find(const char* name) {
        if (!ok()) return nullptr;
        const json::value* value = value_.get_object().if_contains(name);
        if (!value) fail(std::string(name) + " is missing");
        return value;
    }
    json::array list(const char* name, size_t max) {
        const json::value* value = find(name);
        if (!value) return {};
        if (!value->is_array() || value->get_array().size() > max) {
            fail(std::string(name) + " is not a list of at most " + std::to_string(max));
            return {};
        }
        return value->get_array();
    }
    NodeUuid uuid_of(const char* name, const std::string& text) {
        const auto out = uuid_from_text(text);
        if (!out) fail(std::string(name) + " is not a uuid");
        return out.value_or(NodeUuid{});
    }
    ReplicaName replica_of(const char* name, const json::value& value) {
        Fields part(*this, value, name);
        ReplicaName out;
        out.node = part.uuid("node");
        out.disk = part.uuid("disk");
        return out;
    }

    std::string key_;
    Fields* whole_ = nullptr;
    std::string inside_;
    json::value value_;
    std::optional<std::string> problem_;
};

json::object replica_json(const ReplicaName& name) {
    return {{"node", to_text(name.node)}, {"disk", to_text(name.disk)}};
}

}  // namespace

std::string incarnation_text(uint64_t incarnation) {
    std::string out(16, '0');
    for (size_t at = out.size(); at-- > 0; incarnation >>= 4) out[at] = "0123456789abcdef"[incarnation & 15];
    return out;
}

std::optional<uint64_t> incarnation_from_text(std::string_view text) {
    const auto lower_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (text.size() != 16 || !std::all_of(text.begin(), text.end(), lower_hex)) return std::nullopt;
    uint64_t out = 0;
    std::from_chars(text.data(), text.data() + text.size(), out, 16);
    return out;
}

std::string to_json(const ShardRecord& record) {
    json::object out;
    out["shard"] = record.shard.value;
    out["epoch"] = record.epoch.value;
    out["primary"] = replica_json(record.primary);
    out["incarnation"] = incarnation_text(record.incarnation);
    json::array in_sync, replicas;
    for (const auto& name : record.in_sync) in_sync.push_back(replica_json(name));
    for (const auto& node : record.replicas) replicas.push_back(json::string(to_text(node)));
    out["in_sync"] = std::move(in_sync);
    out["replicas"] = std::move(replicas);
    if (record.target) out["target"] = to_text(*record.target);
    out["min_in_sync"] = record.min_in_sync;
    return json::serialize(out);
}

Result<ShardRecord> shard_record_from_json(std::string_view key, std::string_view text) {
    Fields fields(key, text);
    ShardRecord out;
    out.shard = ShardId(static_cast<uint16_t>(fields.number("shard", std::numeric_limits<uint16_t>::max())));
    out.epoch = Epoch(fields.number("epoch", std::numeric_limits<uint64_t>::max()));
    out.primary = fields.replica("primary");
    out.incarnation = fields.incarnation("incarnation");
    out.in_sync = fields.replicas("in_sync");
    out.replicas = fields.uuids("replicas");
    if (fields.has("target")) out.target = fields.uuid("target");
    out.min_in_sync = static_cast<uint32_t>(fields.number("min_in_sync", limits::replicas_max));
    if (!fields.ok()) return fields.error();
    return out;
}

std::string to_json(const NodeEntry& entry) {
    json::object out;
    out["disk"] = to_text(entry.disk);
    out["link_address"] = entry.details.link_address;
    out["client_address"] = entry.details.client_address;
    out["zone"] = entry.details.zone;
    out["version"] = entry.details.version;
    out["capacity"] = entry.details.capacity;
    json::array models;
    for (const auto& name : entry.details.models) models.push_back(json::string(name));
    out["models"] = std::move(models);
    out["events"] = entry.details.events;
    out["calls"] = entry.details.calls;
    return json::serialize(out);
}

Result<NodeEntry> node_entry_from_json(std::string_view key, std::string_view text) {
    Fields fields(key, text);
    NodeEntry out;
    out.disk = fields.uuid("disk");
    out.details.link_address = fields.text("link_address");
    out.details.client_address = fields.text("client_address");
    out.details.zone = fields.text("zone");
    out.details.version = fields.text("version");
    out.details.capacity = fields.number("capacity", std::numeric_limits<uint64_t>::max());
    // A release that did not know the word computes every model.
    if (fields.has("models")) out.details.models = fields.texts("models", limits::node_models_max);
    if (fields.has("events")) out.details.events = fields.number("events", std::numeric_limits<uint64_t>::max());
    if (fields.has("calls")) out.details.calls = fields.number("calls", std::numeric_limits<uint64_t>::max());
    if (!fields.ok()) return fields.error();
    return out;
}

std::string to_json(const ForcedLead& forced) {
    json::object out;
    out["shard"] = forced.shard.value;
    out["epoch"] = forced.epoch.value;
    out["at_ms"] = forced.at_ms;
    out["copy"] = replica_json(forced.copy);
    out["last_index"] = forced.last_index;
    json::array in_sync;
    for (const auto& name : forced.in_sync) in_sync.push_back(replica_json(name));
    out["in_sync"] = std::move(in_sync);
    out["who"] = forced.who;
    return json::serialize(out);
}

Result<ForcedLead> forced_lead_from_json(std::string_view key, std::string_view text) {
    constexpr uint64_t any = std::numeric_limits<uint64_t>::max();
    Fields fields(key, text);
    ForcedLead out;
    out.shard = ShardId(static_cast<uint16_t>(fields.number("shard", std::numeric_limits<uint16_t>::max())));
    out.epoch = Epoch(fields.number("epoch", any));
    out.at_ms = fields.number("at_ms", any);
    out.copy = fields.replica("copy");
    out.last_index = fields.number("last_index", any);
    out.in_sync = fields.replicas("in_sync");
    out.who = fields.text("who");
    if (!fields.ok()) return fields.error();
    return out;
}

std::string to_json(const PlacementDecision& decision) {
    json::object out;
    out["at_ms"] = decision.at;
    out["what"] = decision.what;
    out["why"] = decision.why;
    return json::serialize(out);
}

Result<PlacementDecision> placement_decision_from_json(std::string_view key, std::string_view text) {
    Fields fields(key, text);
    PlacementDecision out;
    out.at = static_cast<TimeMs>(fields.number("at_ms", std::numeric_limits<int64_t>::max()));
    out.what = fields.text("what");
    out.why = fields.text("why");
    if (!fields.ok()) return fields.error();
    return out;
}

std::string to_json(const ClusterMeta& meta) {
    json::object out;
    out["format"] = meta.format;
    out["cluster"] = to_text(meta.cluster);
    out["shards"] = meta.shards;
    out["replicas"] = meta.replicas;
    out["min_in_sync"] = meta.min_in_sync;
    return json::serialize(out);
}

Result<ClusterMeta> cluster_meta_from_json(std::string_view key, std::string_view text) {
    Fields fields(key, text);
    ClusterMeta out;
    out.format = static_cast<uint32_t>(fields.number("format", std::numeric_limits<uint32_t>::max()));
    if (fields.ok() && out.format > format_known)
        return {ErrorCode::unsupported_value, std::string(key) + ": format " + std::to_string(out.format) +
                                                  " is of a later release; this one knows " +
                                                  std::to_string(format_known)};
    out.cluster = fields.uuid("cluster");
    out.shards = static_cast<uint16_t>(fields.number("shards", limits::cluster_shards_max));
    out.replicas = static_cast<uint32_t>(fields.number("replicas", limits::replicas_max));
    out.min_in_sync = static_cast<uint32_t>(fields.number("min_in_sync", limits::replicas_max));
    if (!fields.ok()) return fields.error();
    return out;
}

}  // namespace mainstay
