#include "runtime/agent/catalogue.h"

#include <algorithm>
#include <mutex>

#include "runtime/agent/agent_file.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

template <class Spec>
std::shared_ptr<const Spec> find_latest(const auto& map, std::string_view name) {
    const auto found = map.find(name);
    return found == map.end() ? nullptr : found->second.latest;
}

template <class Spec>
std::shared_ptr<const Spec> find_version(const auto& map, std::string_view name, uint64_t version) {
    const auto found = map.find(name);
    if (found == map.end()) return nullptr;
    for (const auto& spec : found->second.all)
        if (spec->version == version) return spec;
    return nullptr;
}

template <class Spec>
std::vector<std::shared_ptr<const Spec>> list_latest(const auto& map) {
    std::vector<std::shared_ptr<const Spec>> out;
    for (const auto& [name, versions] : map)
        if (versions.latest) out.push_back(versions.latest);
    return out;
}

}  // namespace

AgentPtr Catalogue::agent(std::string_view name) const {
    std::shared_lock lock(mutex_);
    return find_latest<AgentSpec>(agents_, name);
}

AgentPtr Catalogue::agent(std::string_view name, uint64_t version) const {
    std::shared_lock lock(mutex_);
    return find_version<AgentSpec>(agents_, name, version);
}

ModelPtr Catalogue::model(std::string_view name) const {
    std::shared_lock lock(mutex_);
    return find_latest<ModelSpec>(models_, name);
}

ModelPtr Catalogue::model(std::string_view name, uint64_t version) const {
    std::shared_lock lock(mutex_);
    return find_version<ModelSpec>(models_, name, version);
}

std::vector<AgentPtr> Catalogue::agents() const {
    std::shared_lock lock(mutex_);
    return list_latest<AgentSpec>(agents_);
}

std::vector<ModelPtr> Catalogue::models() const {
    std::shared_lock lock(mutex_);
    return list_latest<ModelSpec>(models_);
}

Result<void> Catalogue::check(const AgentSpec& agent) const {
    std::shared_lock lock(mutex_);
    if (!find_latest<ModelSpec>(models_, agent.model))
        return {ErrorCode::model_not_found,
                "agent \"" + agent.name + "\" names a model that is not known: \"" + agent.model + "\"", "model"};
    if (agents_.size() >= limits::agents_max && agents_.find(agent.name) == agents_.end())
        return {ErrorCode::invalid_request,
                "there are already " + std::to_string(limits::agents_max) + " agents (agents_max)", "name"};
    return {};
}

template <class Spec>
void Catalogue::remember(Versions<Spec>& versions, const std::shared_ptr<const Spec>& spec) {
    auto& all = versions.all;
    std::erase_if(all, [&](const auto& known) { return known->version == spec->version; });
    all.push_back(spec);
    if (all.size() > limits::agent_versions_max) {
        // The latest is never the one to go.
        const auto oldest = all.front() == versions.latest ? all.begin() + 1 : all.begin();
        all.erase(oldest);
    }
}

template <class Spec>
bool Catalogue::apply_to(ByName<Spec>& map, std::shared_ptr<const Spec> spec, TimeMs at) {
    std::unique_lock lock(mutex_);
    auto& versions = map[spec->name];
    const bool changed = !versions.latest || versions.latest->version != spec->version;
    versions.latest_at = std::max(versions.latest_at, at);
    if (!changed) return false;
    versions.latest = spec;
    remember(versions, spec);
    return true;
}

bool Catalogue::apply(AgentPtr agent, TimeMs at) { return apply_to(agents_, std::move(agent), at); }
bool Catalogue::apply(ModelPtr model, TimeMs at) { return apply_to(models_, std::move(model), at); }

Result<Authored> Catalogue::apply_all(const Authored& authored, TimeMs at) {
    Authored changed;
    for (const auto& model : authored.models)
        if (apply(model, at)) changed.models.push_back(model);
    for (const auto& agent : authored.agents) {
        if (auto checked = check(*agent); !checked) return checked.error();
        if (apply(agent, at)) changed.agents.push_back(agent);
    }
    return changed;
}

template <class Spec>
Result<void> Catalogue::restore_to(ByName<Spec>& map, Result<std::shared_ptr<const Spec>> parsed,
                                   const EntityRecord& record) {
    if (!parsed)
        return {ErrorCode::state_damaged,
                "stored " + record.kind + " \"" + record.name + "\" cannot be read: " + parsed.error().message};
    // A later program may write another canonical form of the same thing: what was journalled keeps its version.
    auto spec = std::make_shared<Spec>(**parsed);
    spec->version = record.version;
    spec->canonical_json = record.body;
    std::unique_lock lock(mutex_);
    auto& versions = map[spec->name];
    if (record.at >= versions.latest_at) {
        versions.latest_at = record.at;
        versions.latest = record.removed ? nullptr : spec;
    }
    remember(versions, std::shared_ptr<const Spec>(std::move(spec)));
    return {};
}

Result<void> Catalogue::load_entity(std::string_view bytes) {
    const auto record = decode_entity(bytes);
    if (!record) return record.error();
    return restore(*record);
}

Result<void> Catalogue::restore(const EntityRecord& record) {
    const std::string what = "stored " + record.kind + " \"" + record.name + "\"";
    if (version_of(record.body) != record.version)
        return {ErrorCode::state_damaged, what + ": the body is not the one that its version names"};
    if (record.kind == "agent") {
        auto parsed = parse_agent(record.body, Syntax::json);
        if (parsed && (*parsed)->name != record.name) return {ErrorCode::state_damaged, what + " has another name"};
        return restore_to<AgentSpec>(agents_, std::move(parsed), record);
    }
    if (record.kind == "model") {
        auto parsed = parse_model(record.body, Syntax::json);
        if (parsed && (*parsed)->name != record.name) return {ErrorCode::state_damaged, what + " has another name"};
        return restore_to<ModelSpec>(models_, std::move(parsed), record);
    }
    return {ErrorCode::state_damaged, what + ": unknown kind"};
}

}  // namespace mainstay
