// Finds what authors left in config/agents and config/models.
#include <algorithm>
#include <filesystem>
#include <map>

#include "runtime/agent/agent_file.h"
#include "runtime/agent/catalogue.h"
#include "runtime/agent/settings.h"

namespace mainstay {
namespace {

Result<std::vector<std::string>> list_toml(const std::string& directory, std::string_view setting) {
    namespace fs = std::filesystem;
    std::error_code failure;
    if (!fs::is_directory(directory, failure))
        return {ErrorCode::not_found, directory + ": there is no such directory (" + std::string(setting) + ")"};
    std::vector<std::string> files;
    for (auto entry = fs::directory_iterator(directory, failure); !failure && entry != fs::directory_iterator();
         entry.increment(failure)) {
        const auto name = entry->path().filename().string();
        if (entry->path().extension() == ".toml" && !name.starts_with('.')) files.push_back(entry->path().string());
    }
    if (failure) return {ErrorCode::invalid_request, directory + ": cannot be listed: " + failure.message()};
    if (files.size() > limits::agent_files_max)
        return {ErrorCode::invalid_request, directory + ": holds more than " + std::to_string(limits::agent_files_max) +
                                                " files (agent_files_max)"};
    std::sort(files.begin(), files.end());
    return files;
}

template <class Ptr>
Result<std::vector<Ptr>> load_all(const std::string& directory, std::string_view setting,
                                  Result<Ptr> (*parse)(std::string_view, Syntax, std::string_view)) {
    const auto files = list_toml(directory, setting);
    if (!files) return files.error();
    std::vector<Ptr> out;
    std::map<std::string, std::string> file_of;
    for (const auto& file : *files) {
        const auto text = read_text_file(file, limits::agent_file_bytes_max);
        if (!text) return text.error();
        auto spec = parse(*text, Syntax::toml, file);
        if (!spec) return spec.error();
        const auto [first, is_new] = file_of.emplace((*spec)->name, file);
        if (!is_new)
            return {ErrorCode::invalid_request,
                    file + ": the name \"" + (*spec)->name + "\" also stands in " + first->second, "name"};
        out.push_back(std::move(*spec));
    }
    return out;
}

}  // namespace

Result<std::vector<AgentPtr>> read_agents(const std::string& directory) {
    return load_all<AgentPtr>(directory, "agents.directory", parse_agent);
}

Result<std::vector<ModelPtr>> read_models(const std::string& directory) {
    return load_all<ModelPtr>(directory, "models.directory", parse_model);
}

Result<Authored> load_directory(const std::string& agents_directory, const std::string& models_directory) {
    auto models = read_models(models_directory);
    if (!models) return models.error();
    auto agents = read_agents(agents_directory);
    if (!agents) return agents.error();
    return Authored{std::move(*agents), std::move(*models)};
}

std::vector<std::string> Authored::changed_entities(TimeMs at) const {
    std::vector<std::string> out;
    for (const auto& model : models) out.push_back(encode_model_entity(*model, at, "config"));
    for (const auto& agent : agents) out.push_back(encode_agent_entity(*agent, at, "config"));
    return out;
}

Result<Authored> Catalogue::load_models(const std::string& directory) {
    auto models = read_models(directory);
    if (!models) return models.error();
    return apply_all({{}, std::move(*models)});
}

Result<Authored> Catalogue::load_agents(const std::string& directory) {
    auto agents = read_agents(directory);
    if (!agents) return agents.error();
    return apply_all({std::move(*agents), {}});
}

}  // namespace mainstay
