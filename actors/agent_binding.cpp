#include "actors/agent_binding.h"

namespace mainstay {
namespace {

AgentPtr bare_model(const ModelPtr& model) {
    if (!model) return nullptr;
    auto agent = std::make_shared<AgentSpec>();
    agent->name = agent->model = model->name;
    agent->version = model->version;
    return agent;
}

}  // namespace

AgentPtr bind_agent(const Catalogue& catalogue, const std::string& name) {
    if (auto agent = catalogue.agent(name)) return agent;
    return bare_model(catalogue.model(name));
}

AgentPtr bound_agent(const Catalogue& catalogue, const std::string& name, uint64_t version) {
    if (auto agent = catalogue.agent(name, version)) return agent;
    return bare_model(catalogue.model(name));
}

}  // namespace mainstay
