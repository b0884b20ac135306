#pragma once
// The agents and models that this node knows: the latest of each name, which new turns are bound to, and earlier
// versions, which open turns still name. Specs are immutable and shared, so a reader holds what it was given for as
// long as it likes while the catalogue moves on.
//
// Safe from any thread: readers share the lock for the length of one look-up. What is durable is not decided here: the
// caller journals an entity first and applies it when it is committed.

#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/agent_spec.h"
#include "runtime/base/clock.h"
#include "runtime/base/result.h"

namespace mainstay {

/// A journalled agent or model (schema/entity.capnp) as a plain value.
struct EntityRecord {
    std::string kind;  // "agent", "model"
    std::string name;
    uint64_t version = 0;
    std::string body;  // canonical JSON
    TimeMs at = 0;
    std::string principal;
    bool removed = false;
};

/// Packed Cap'n Proto bytes, the payload of a journal record of kind entity.
std::string encode_entity(const EntityRecord& record);
/// Refuses (state_damaged) what is not a well-formed entity; never throws, whatever the bytes.
Result<EntityRecord> decode_entity(std::string_view bytes);

std::string encode_agent_entity(const AgentSpec& agent, TimeMs at, std::string_view principal);
std::string encode_model_entity(const ModelSpec& model, TimeMs at, std::string_view principal);

/// What was found in the directories, or what of it is new.
struct Authored {
    std::vector<AgentPtr> agents;
    std::vector<ModelPtr> models;

    /// Payloads of the journal records that keep them, models first. The principal is "config".
    std::vector<std::string> changed_entities(TimeMs at) const;
};

/// All *.toml of a directory, or of both, in order of their names; nothing is applied. The first problem ends it:
/// malformed files (with file and line), a name that stands in two files, a missing directory (not_found), too many
/// files.
Result<std::vector<AgentPtr>> read_agents(const std::string& directory);
Result<std::vector<ModelPtr>> read_models(const std::string& directory);
Result<Authored> load_directory(const std::string& agents_directory, const std::string& models_directory);

class Catalogue {
  public:
    /// Null if there is none. The version form also finds versions that are no longer the latest.
    AgentPtr agent(std::string_view name) const;
    AgentPtr agent(std::string_view name, uint64_t version) const;
    ModelPtr model(std::string_view name) const;
    ModelPtr model(std::string_view name, uint64_t version) const;
    /// The latest of each name, in order of names.
    std::vector<AgentPtr> agents() const;
    std::vector<ModelPtr> models() const;

    /// Whether `agent` may be applied: its model exists (model_not_found) and there is room (invalid_request naming
    /// agents_max). apply() itself does not ask, so that a restart can take things up in any order.
    Result<void> check(const AgentSpec& agent) const;
    /// Makes it the latest of its name, as of `at` (0: nobody says; what restore() brings then takes its place). False
    /// if it already was.
    bool apply(AgentPtr agent, TimeMs at = 0);
    bool apply(ModelPtr model, TimeMs at = 0);
    /// Applies models, checks and applies agents; the answer holds those that were not the latest before. On an error
    /// (named as in check) agents from the faulty one on are not applied.
    Result<Authored> apply_all(const Authored& authored, TimeMs at = 0);
    /// One directory read and applied; the answer as in apply_all. Models before agents.
    Result<Authored> load_models(const std::string& directory);
    Result<Authored> load_agents(const std::string& directory);

    /// Takes an entity up from the store, in any order: the latest is the one with the greatest `at`. state_damaged if
    /// the body is not what its version says.
    Result<void> restore(const EntityRecord& record);
    Result<void> load_entity(std::string_view bytes);  // decode_entity, then restore

  private:
    template <class Spec>
    struct Versions {
        std::vector<std::shared_ptr<const Spec>> all;  // oldest first, at most agent_versions_max
        std::shared_ptr<const Spec> latest;            // null: removed
        TimeMs latest_at = 0;
    };
    template <class Spec>
    using ByName = std::map<std::string, Versions<Spec>, std::less<>>;

    template <class Spec>
    static void remember(Versions<Spec>& versions, const std::shared_ptr<const Spec>& spec);
    template <class Spec>
    bool apply_to(ByName<Spec>& map, std::shared_ptr<const Spec> spec, TimeMs at);
    template <class Spec>
    Result<void> restore_to(ByName<Spec>& map, Result<std::shared_ptr<const Spec>> parsed, const EntityRecord& record);

    mutable std::shared_mutex mutex_;
    ByName<AgentSpec> agents_;
    ByName<ModelSpec> models_;
};

}  // namespace mainstay
