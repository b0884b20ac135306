#include "cluster/etcd_coordinator.h"

#include <boost/json.hpp>

#include <algorithm>
#include <charconv>
#include <limits>
#include <tuple>
#include <utility>

#include "cluster/record_json.h"
#include "runtime/base/base64.h"
#include "runtime/base/invariant.h"
#include "runtime/base/utf8.h"

namespace mainstay {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t detail_bytes_max = 512;
constexpr uint32_t watch_pause_min_ms = 50, watch_pause_max_ms = 2'000;
constexpr int code_not_found = 5, code_out_of_range = 11;

std::string number(int64_t value) { return std::to_string(value); }

/// etcd writes 64-bit numbers as texts and leaves out what is zero.
int64_t int64_in(const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    if (!value) return 0;
    if (value->is_int64()) return value->get_int64();
    if (!value->is_string()) return 0;
    const json::string& text = value->get_string();
    int64_t out = 0;
    std::from_chars(text.data(), text.data() + text.size(), out);
    return out;
}

bool flag_in(const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    return value && value->is_bool() && value->get_bool();
}

const json::object& object_in(const json::object& object, const char* name) {
    static const json::object none;
    const json::value* value = object.if_contains(name);
    return value && value->is_object() ? value->get_object() : none;
}

const json::array& array_in(const json::object& object, const char* name) {
    static const json::array none;
    const json::value* value = object.if_contains(name);
    return value && value->is_array() ? value->get_array() : none;
}

int64_t revision_of(const json::object& answer) { return int64_in(object_in(answer, "header"), "revision"); }

struct Pair {
    std::string key, value;
    int64_t mod_revision = 0, lease = 0;
};

/// Nothing where it is not a pair as etcd sends them. An empty value is left out by etcd, as is no lease.
std::optional<Pair> pair_of(const json::value& given) {
    if (!given.is_object()) return std::nullopt;
    const json::object& object = given.get_object();
    Pair out;
    for (const auto& [name, bytes] : {std::pair{"key", &out.key}, std::pair{"value", &out.value}}) {
        const json::value* text = object.if_contains(name);
        if (!text) continue;
        const auto decoded = text->is_string() ? from_base64(text->get_string()) : std::nullopt;
        if (!decoded) return std::nullopt;
        *bytes = *decoded;
    }
    out.mod_revision = int64_in(object, "mod_revision");
    out.lease = int64_in(object, "lease");
    if (out.key.empty() || out.mod_revision <= 0) return std::nullopt;
    return out;
}

json::object put(const std::string& key, const std::string& value, int64_t lease = 0) {
    json::object out{{"key", to_base64(key)}, {"value", to_base64(value)}};
    if (lease != 0) out["lease"] = number(lease);
    return out;
}

json::object range(const std::string& key) { return {{"key", to_base64(key)}}; }

json::object compare_mod(const std::string& key, uint64_t revision) {
    return {
        {"key", to_base64(key)}, {"target", "MOD"}, {"result", "EQUAL"}, {"mod_revision", std::to_string(revision)}};
}
json::object compare_absent(const std::string& key) {
    return {{"key", to_base64(key)}, {"target", "CREATE"}, {"result", "EQUAL"}, {"create_revision", "0"}};
}
json::object compare_version(const std::string& key, const char* how) {
    return {{"key", to_base64(key)}, {"target", "VERSION"}, {"result", how}, {"version", "0"}};
}

/// "Where the key is absent, put it; else tell what is there."
json::object put_if_absent(const std::string& key, const std::string& value, int64_t lease = 0) {
    return {{"compare", json::array{compare_absent(key)}},
            {"success", json::array{json::object{{"request_put", put(key, value, lease)}}}},
            {"failure", json::array{json::object{{"request_range", range(key)}}}}};
}
std::optional<Pair> what_is_there(const json::object& answer) {
    const json::array& responses = array_in(answer, "responses");
    if (responses.empty() || !responses[0].is_object()) return std::nullopt;
    const json::array& pairs = array_in(object_in(responses[0].get_object(), "response_range"), "kvs");
    return pairs.empty() ? std::nullopt : pair_of(pairs[0]);
}

Error unavailable(const std::string& why) { return {ErrorCode::coordinator_unavailable, "etcd: " + why, {}}; }
Error strange(const std::string& what) { return unavailable("an answer without " + what); }

/// The key after all that begin with `prefix`, whose last byte is not 0xff.
std::string end_of(std::string prefix) {
    ++prefix.back();
    return prefix;
}

std::optional<uint16_t> shard_from_text(std::string_view text) {
    uint16_t out = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (error != std::errc() || end != text.data() + text.size() || std::to_string(out) != text) return std::nullopt;
    return out;
}

Result<void> check_detail(const char* name, std::string_view text) {
    if (text.size() > detail_bytes_max)
        return {ErrorCode::unsupported_value, "longer than " + std::to_string(detail_bytes_max) + " bytes", name};
    while (!text.empty()) {
        const Utf8Step step = utf8_next(text);
        if (!step.valid) return {ErrorCode::unsupported_value, "not UTF-8", name};
        text.remove_prefix(step.bytes);
    }
    return {};
}

}  // namespace

Result<std::unique_ptr<EtcdCoordinator>> EtcdCoordinator::open(EtcdSettings settings) {
    if (settings.urls.empty() || settings.urls.size() > limits::coordinator_urls_max)
        return {ErrorCode::unsupported_value, "1 to coordinator_urls_max addresses of etcd are needed", "urls"};
    for (const auto& url : settings.urls)
        if (auto checked = check_http_url(url); !checked) return checked.error();
    if (settings.certificate_file.empty() != settings.key_file.empty())
        return {ErrorCode::unsupported_value, "a client certificate needs its key, and a key its certificate",
                "certificate_file"};
    const NodeDetails& details = settings.details;
    for (const auto& [name, text] :
         {std::pair{"link_address", &details.link_address}, std::pair{"client_address", &details.client_address},
          std::pair{"zone", &details.zone}, std::pair{"version", &details.version}})
        if (auto checked = check_detail(name, *text); !checked) return checked.error();
    if (details.models.size() > limits::node_models_max)
        return {ErrorCode::unsupported_value, "at most node_models_max names of models", "models"};
    for (const auto& model : details.models)
        if (auto checked = check_detail("models", model); !checked) return checked.error();
    INVARIANT(settings.page_keys > 0 && settings.lease_ms > 0 && settings.request_timeout_ms > 0, "bounds are not 0");
    return std::unique_ptr<EtcdCoordinator>(new EtcdCoordinator(std::move(settings)));
}

EtcdCoordinator::EtcdCoordinator(EtcdSettings settings)
    : settings_(std::move(settings)),
      prefix_("/mainstay/" + to_text(settings_.cluster) + "/"),
      client_({settings_.urls,
               settings_.user,
               settings_.password,
               {settings_.ca_file, settings_.certificate_file, settings_.key_file}}),
      watch_connection_(client_.tls()) {}

EtcdCoordinator::~EtcdCoordinator() {
    {
        const std::lock_guard lock(hint_lock_);
        stop_ = true;
    }
    stopping_.notify_all();
    watch_connection_.stop();
    if (watcher_.joinable()) watcher_.join();
}

std::string EtcdCoordinator::node_key(const Incarnation& incarnation) const {
    return prefix_ + "nodes/" + to_text(incarnation.node) + "/" + incarnation_text(incarnation.incarnation);
}

std::string EtcdCoordinator::shard_key(ShardId shard) const {
    return prefix_ + "shards/" + std::to_string(shard.value);
}

std::string EtcdCoordinator::forced_key(const ForcedLead& forced) const {
    return prefix_ + "forced/" + std::to_string(forced.shard.value) + "/" + std::to_string(forced.epoch.value);
}

EtcdDeadline EtcdCoordinator::deadline() const {
    return steady_clock::now() + milliseconds(settings_.request_timeout_ms);
}

// --- meta, leases, drain --------------------------------------------------------------------------------------------

Result<ClusterMeta> EtcdCoordinator::meta(const ClusterMeta& if_absent) {
    INVARIANT(if_absent.cluster == settings_.cluster, "the meta is this cluster's");
    const std::string key = prefix_ + "meta";
    // Repeating is safe: it is created with the same content or found.
    const EtcdAnswer answer =
        client_.post("/v3/kv/txn", put_if_absent(key, to_json(if_absent)), EtcdClient::Repeat::allowed, deadline());
    if (!answer.done()) return unavailable(answer.problem);
    if (flag_in(answer.body, "succeeded")) return if_absent;
    const auto pair = what_is_there(answer.body);
    if (!pair) return strange("the meta that is there");
    auto meta = cluster_meta_from_json(key, pair->value);
    if (meta && meta->cluster != settings_.cluster)
        return {ErrorCode::state_damaged, key + ": damaged: cluster is " + to_text(meta->cluster)};
    return meta;
}

Result<int64_t> EtcdCoordinator::grant(int64_t seconds, EtcdDeadline deadline) {
    const json::object body{{"TTL", number(seconds)}};
    // One whose answer was lost holds nothing and expires.
    const EtcdAnswer answer = client_.post("/v3/lease/grant", body, EtcdClient::Repeat::allowed, deadline);
    if (!answer.done()) return unavailable(answer.problem);
    const int64_t lease = int64_in(answer.body, "ID");
    if (lease == 0) return strange("a lease");
    return lease;
}

Result<int64_t> EtcdCoordinator::prolong(int64_t lease, EtcdDeadline deadline) {
    const EtcdAnswer answer =
        client_.post("/v3/lease/keepalive", json::object{{"ID", number(lease)}}, EtcdClient::Repeat::allowed, deadline);
    if (!answer.done()) return unavailable(answer.problem);
    const json::object& result = object_in(answer.body, "result");
    if (int64_in(result, "ID") != lease) return strange("the lease that was asked for");
    return int64_in(result, "TTL");
}

EtcdAnswer EtcdCoordinator::revoke(int64_t lease, EtcdDeadline deadline) {
    return client_.post("/v3/lease/revoke", json::object{{"ID", number(lease)}}, EtcdClient::Repeat::allowed, deadline);
}

Result<void> EtcdCoordinator::join() {
    const std::lock_guard lock(join_lock_);
    const EtcdDeadline until = deadline();
    if (candidate_ != 0) {
        const auto left = prolong(candidate_, until);
        if (!left) return left.error();
        if (*left <= 0) {
            joined_lease_ = 0;
            candidate_ = 0;
        }
    }
    if (candidate_ == 0) {
        const auto granted = grant((int64_t{settings_.lease_ms} + 999) / 1000, until);
        if (!granted) return granted.error();
        candidate_ = *granted;
    }
    const std::string key = node_key({settings_.self.name.node, settings_.self.incarnation});
    const std::string value = to_json(NodeEntry{settings_.self.name.disk, settings_.details});
    // Repeating is safe: the key hangs on the same lease, and is told from another's by it.
    const EtcdAnswer answer =
        client_.post("/v3/kv/txn", put_if_absent(key, value, candidate_), EtcdClient::Repeat::allowed, until);
    if (!answer.done()) return unavailable(answer.problem);
    if (!flag_in(answer.body, "succeeded")) {
        const auto pair = what_is_there(answer.body);
        if (!pair) return strange("the lease that is there");
        if (pair->lease != candidate_ || joined_lease_ == candidate_) {
            if (pair->lease != candidate_) revoke(std::exchange(candidate_, 0), until);
            return {ErrorCode::conflict, "this incarnation has its lease"};
        }
        // An earlier join() of ours, whose answer was lost, or whose time was up.
    }
    joined_lease_ = candidate_;
    return {};
}

Result<void> EtcdCoordinator::keep_alive() {
    const int64_t lease = joined_lease_;
    if (lease == 0) return {ErrorCode::conflict, "this incarnation has no lease"};
    const auto left = prolong(lease, deadline());
    if (!left) return left.error();
    if (*left <= 0) return {ErrorCode::conflict, "the lease of this incarnation has expired"};
    return {};
}

Result<void> EtcdCoordinator::leave() {
    const std::lock_guard lock(join_lock_);
    if (candidate_ == 0) return {};
    const EtcdAnswer answer = revoke(candidate_, deadline());
    if (!answer.done() && answer.code != code_not_found) return unavailable(answer.problem);
    candidate_ = 0;
    joined_lease_ = 0;
    return {};
}

Result<void> EtcdCoordinator::set_draining(const NodeUuid& node, bool draining) {
    const std::string key = prefix_ + "drain/" + to_text(node);
    // Never twice: a repeated one could land behind somebody's opposite wish.
    const EtcdAnswer answer =
        draining ? client_.post("/v3/kv/put", put(key, "{}"), EtcdClient::Repeat::never, deadline())
                 : client_.post("/v3/kv/deleterange", range(key), EtcdClient::Repeat::never, deadline());
    if (!answer.done()) return unavailable(answer.problem);
    return {};
}

// --- records --------------------------------------------------------------------------------------------------------

int64_t EtcdCoordinator::trail_lease(EtcdDeadline deadline) {
    constexpr int64_t day_s = 86'400;
    const std::lock_guard lock(trail_lock_);
    const auto now = steady_clock::now();
    if (trail_lease_ != 0 && now - trail_since_ < std::chrono::seconds(day_s)) return trail_lease_;
    const auto granted = grant(settings_.trail_days * day_s, deadline);
    if (!granted) return 0;
    trail_since_ = now;
    return trail_lease_ = *granted;
}

ChangeAnswer EtcdCoordinator::change(const ShardChange& change) {
    const ShardRecord& desired = change.desired;
    INVARIANT(desired.in_sync.size() <= limits::replicas_max && desired.replicas.size() <= limits::replicas_max &&
                  desired.min_in_sync <= limits::replicas_max,
              "a record is within the bounds of its reader");
    const std::string key = shard_key(desired.shard);
    json::array compare;
    compare.push_back(change.expected_version == 0 ? compare_absent(key) : compare_mod(key, change.expected_version));
    if (change.gone) compare.push_back(compare_version(node_key(*change.gone), "EQUAL"));
    for (const auto& incarnation : change.present) compare.push_back(compare_version(node_key(incarnation), "GREATER"));
    json::array puts{json::object{{"request_put", put(key, to_json(desired))}}};
    if (const auto& forced = change.forced)
        puts.push_back(json::object{{"request_put", put(forced_key(*forced), to_json(*forced))}});
    const EtcdDeadline until = deadline();
    if (const auto& decision = change.decision) {
        // One change at most finds this version. A change does not fail for want of its reason.
        const std::string at =
            trail_prefix() + std::to_string(desired.shard.value) + "/" + std::to_string(change.expected_version);
        if (const int64_t lease = trail_lease(until); lease != 0)
            puts.push_back(json::object{{"request_put", put(at, to_json(*decision), lease)}});
    }
    const json::object body{{"compare", std::move(compare)}, {"success", std::move(puts)}};
    const EtcdAnswer answer = client_.post("/v3/kv/txn", body, EtcdClient::Repeat::never, until);
    // Even a refusal is no conflict: the record may be as expected, and the caller must not take it for moved.
    if (!answer.done()) {
        const std::lock_guard lock(trail_lock_);
        trail_lease_ = 0;  // an etcd that was restored does not know it, and refuses all that hangs on it
        return {ChangeOutcome::unknown, 0, answer.problem};
    }
    const int64_t revision = revision_of(answer.body);
    if (revision <= 0) return {ChangeOutcome::unknown, 0, "an answer without a revision"};
    if (!flag_in(answer.body, "succeeded")) return {ChangeOutcome::conflict, 0, {}};
    return {ChangeOutcome::ok, static_cast<uint64_t>(revision), {}};
}

Result<std::vector<PlacementDecision>> EtcdCoordinator::decisions(std::optional<ShardId> shard, size_t limit) {
    const std::string prefix = trail_prefix() + (shard ? std::to_string(shard->value) + "/" : "");
    const json::object body{{"key", to_base64(prefix)},
                            {"range_end", to_base64(end_of(prefix))},
                            {"sort_order", "DESCEND"},
                            {"sort_target", "MOD"},
                            {"limit", number(static_cast<int64_t>(limit))}};
    const EtcdAnswer answer = client_.post("/v3/kv/range", body, EtcdClient::Repeat::allowed, deadline());
    if (!answer.done()) return unavailable(answer.problem);
    std::vector<PlacementDecision> out;
    for (const auto& given : array_in(answer.body, "kvs")) {
        const auto pair = pair_of(given);
        if (!pair || !pair->key.starts_with(prefix)) return strange("readable pairs");
        const std::string_view name = std::string_view(pair->key).substr(trail_prefix().size());
        const auto number = shard_from_text(name.substr(0, name.find('/')));
        auto decision = placement_decision_from_json(pair->key, pair->value);
        if (!number || !decision) continue;  // only told to people, as a forced lead
        decision->shard = ShardId(*number);
        out.push_back(std::move(*decision));
    }
    return out;
}

Result<ShardRecord> EtcdCoordinator::ownership(ShardId shard) {
    const std::string key = shard_key(shard);
    const EtcdAnswer answer = client_.post("/v3/kv/range", range(key), EtcdClient::Repeat::allowed, deadline());
    if (!answer.done()) return unavailable(answer.problem);
    if (revision_of(answer.body) <= 0) return strange("a revision");
    const json::array& pairs = array_in(answer.body, "kvs");
    if (pairs.empty()) return {ErrorCode::not_found, "shard " + std::to_string(shard.value) + " has no record"};
    const auto pair = pair_of(pairs[0]);
    if (!pair) return strange("a readable pair");
    ClusterView view;
    if (auto taken = take_pair(key, pair->value, pair->mod_revision, view); !taken) return taken.error();
    return std::move(view.shards.front());
}

Result<void> EtcdCoordinator::take_pair(const std::string& key, const std::string& value, int64_t mod_revision,
                                        ClusterView& view) {
    const auto damaged = [&key](const char* what) {
        return Error{ErrorCode::state_damaged, key + ": damaged: " + what, {}};
    };
    const std::string_view name = std::string_view(key).substr(prefix_.size());
    if (name.starts_with("shards/")) {
        const auto shard = shard_from_text(name.substr(7));
        if (!shard) return damaged("the key has no shard's number");
        auto record = shard_record_from_json(key, value);
        if (!record) return record.error();
        if (record->shard != ShardId(*shard)) return damaged("shard is not the key's");
        record->config_version = static_cast<uint64_t>(mod_revision);
        view.shards.push_back(std::move(*record));
    } else if (name.starts_with("nodes/")) {
        const auto node = uuid_from_text(name.substr(6, 36));
        const auto incarnation =
            name.size() == 59 && name[42] == '/' ? incarnation_from_text(name.substr(43)) : std::nullopt;
        if (!node || !incarnation) return damaged("the key names no incarnation of a node");
        auto entry = node_entry_from_json(key, value);
        if (!entry) return entry.error();
        view.nodes.push_back({{*node, entry->disk}, *incarnation});
        view.details.push_back(std::move(entry->details));
    } else if (name.starts_with("drain/")) {
        const auto node = uuid_from_text(name.substr(6));
        if (!node) return damaged("the key names no node");
        view.draining.push_back(*node);
    } else if (name.starts_with("forced/")) {
        // Only told to people: one that cannot be read must not keep records from being read.
        if (auto forced = forced_lead_from_json(key, value)) view.forced.push_back(std::move(*forced));
    }
    return {};  // meta, and what later releases keep here
}

Result<bool> EtcdCoordinator::list_page(std::string& from, int64_t& revision, bool& more, ClusterView& view,
                                        EtcdDeadline deadline) {
    json::object body{
        {"key", to_base64(from)}, {"range_end", to_base64(listed_end())}, {"limit", number(settings_.page_keys)}};
    if (revision != 0) body["revision"] = number(revision);
    const EtcdAnswer answer = client_.post("/v3/kv/range", body, EtcdClient::Repeat::allowed, deadline);
    if (revision != 0 && answer.kind == EtcdAnswer::Kind::refused && answer.code == code_out_of_range) return false;
    if (!answer.done()) return unavailable(answer.problem);
    if (revision == 0) revision = revision_of(answer.body);
    if (revision <= 0) return strange("a revision");
    for (const auto& given : array_in(answer.body, "kvs")) {
        const auto pair = pair_of(given);
        if (!pair || !pair->key.starts_with(prefix_)) return strange("readable pairs");
        if (auto taken = take_pair(pair->key, pair->value, pair->mod_revision, view); !taken) return taken.error();
        from = pair->key + '\0';
    }
    more = flag_in(answer.body, "more");
    return true;
}

Result<ClusterView> EtcdCoordinator::list() {
    const EtcdDeadline until = deadline();
    for (;;) {  // again where the moment that is listed was compacted meanwhile; the deadline ends it
        ClusterView view;
        std::string from = prefix_;
        int64_t revision = 0;
        bool more = true, whole = true;
        while (more && whole) {
            const auto page = list_page(from, revision, more, view, until);
            if (!page) return page.error();
            whole = *page;
        }
        if (!whole) continue;
        // etcd sorts by key, where shard 10 comes before shard 2; nodes and drain are in order.
        std::sort(view.shards.begin(), view.shards.end(),
                  [](const ShardRecord& a, const ShardRecord& b) { return a.shard < b.shard; });
        return view;
    }
}

// --- hints ----------------------------------------------------------------------------------------------------------

void EtcdCoordinator::on_hint(std::function<void()> callback) {
    const std::lock_guard lock(hint_lock_);
    callback_ = std::move(callback);
    if (!watcher_.joinable()) watcher_ = std::thread([this] { watch(); });
}

void EtcdCoordinator::hint() {
    std::function<void()> callback;
    {
        const std::lock_guard lock(hint_lock_);
        callback = callback_;
    }
    if (callback) callback();
}

void EtcdCoordinator::watch() {
    uint32_t pause_ms = watch_pause_min_ms;
    for (;;) {
        const bool came_up = watch_once();
        pause_ms = came_up ? watch_pause_min_ms : std::min(pause_ms * 2, watch_pause_max_ms);
        std::unique_lock lock(hint_lock_);
        if (stopping_.wait_for(lock, milliseconds(pause_ms), [this] { return stop_; })) return;
    }
}

bool EtcdCoordinator::watch_once() {
    // A watch begins at the present, never where the last one ended: a hint says "read again", which makes up for all
    // that was missed, and the past may be compacted, or be another etcd's that was restored from a backup.
    const json::object present{
        {"key", to_base64(prefix_)}, {"range_end", to_base64(listed_end())}, {"count_only", true}};
    const EtcdAnswer now = client_.post("/v3/kv/range", present, EtcdClient::Repeat::allowed, deadline());
    if (!now.done()) return false;
    json::object create{{"key", to_base64(prefix_)},
                        {"range_end", to_base64(listed_end())},
                        {"start_revision", number(revision_of(now.body) + 1)}};
    bool came_up = false;
    client_.stream(watch_connection_, "/v3/watch", json::object{{"create_request", std::move(create)}},
                   settings_.watch_silence_ms, settings_.request_timeout_ms, [&](const json::object& result) {
                       // Cancelled: compacted, or etcd would not serve it any longer.
                       if (flag_in(result, "canceled")) return false;
                       if (flag_in(result, "created")) came_up = true;
                       if (flag_in(result, "created") || !array_in(result, "events").empty()) hint();
                       return true;
                   });
    return came_up;
}

}  // namespace mainstay
