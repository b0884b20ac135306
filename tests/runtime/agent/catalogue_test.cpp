#include "runtime/agent/catalogue.h"

#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/agent/agent_file.h"
#include "runtime/agent/settings.h"
#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

AgentPtr agent(const std::string& name, const std::string& instructions = {}, const std::string& model = "m") {
    return parse_agent("name=\"" + name + "\"\nmodel=\"" + model + "\"\ninstructions=\"" + instructions + "\"\n",
                       Syntax::toml)
        .value();
}

ModelPtr model(const std::string& name) {
    return parse_model("name=\"" + name + "\"\nbase_url=\"http://127.0.0.1/v1\"\n", Syntax::toml).value();
}

EntityRecord record(const AgentPtr& spec, TimeMs at) {
    return {"agent", spec->name, spec->version, spec->canonical_json, at, "admin", false};
}

/// A directory of its own that goes with the test.
class Folder {
  public:
    Folder() {
        std::string path = (std::filesystem::temp_directory_path() / "mainstay-catalogue-XXXXXX").string();
        REQUIRE(mkdtemp(path.data()) != nullptr);
        path_ = path;
        std::filesystem::create_directory(path_ + "/agents");
        std::filesystem::create_directory(path_ + "/models");
    }
    ~Folder() { std::filesystem::remove_all(path_); }
    Folder(const Folder&) = delete;
    void write(const std::string& name, const std::string& text) const { std::ofstream(path_ + "/" + name) << text; }
    Result<Authored> load() const { return load_directory(path_ + "/agents", path_ + "/models"); }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

const std::string model_text = "name=\"m\"\nbase_url=\"http://127.0.0.1/v1\"\n";

}  // namespace

TEST_CASE("catalogue: applying the same text twice changes nothing") {
    Catalogue catalogue;
    CHECK(catalogue.apply(agent("a", "one")));
    CHECK_FALSE(catalogue.apply(agent("a", "one")));
    CHECK(catalogue.apply(agent("a", "two")));
    CHECK(catalogue.apply(agent("a", "one")));
    CHECK(catalogue.agents().size() == 1);
}

TEST_CASE("catalogue: an open turn finds the version that it was bound to") {
    Catalogue catalogue;
    const auto first = agent("a", "one"), second = agent("a", "two");
    catalogue.apply(first);
    catalogue.apply(second);
    CHECK(catalogue.agent("a") == second);
    CHECK(catalogue.agent("a", first->version) == first);
    CHECK(catalogue.agent("a", 12345) == nullptr);
    CHECK(catalogue.agent("b") == nullptr);
    CHECK(catalogue.agent("b", first->version) == nullptr);
    catalogue.apply(model("m"));
    CHECK(catalogue.model("m")->name == "m");
    CHECK(catalogue.model("m", model("m")->version) != nullptr);
}

TEST_CASE("catalogue: old versions are bounded, the latest always stays") {
    Catalogue catalogue;
    const auto first = agent("a", "0");
    catalogue.apply(first);
    for (size_t i = 1; i <= limits::agent_versions_max; ++i) catalogue.apply(agent("a", std::to_string(i)));
    CHECK(catalogue.agent("a", first->version) == nullptr);
    CHECK(catalogue.agent("a", agent("a", "1")->version) != nullptr);
    // Taking up old ones from the store does not push the latest out.
    for (size_t i = 0; i <= 2 * limits::agent_versions_max; ++i)
        REQUIRE(catalogue.restore(record(agent("a", "old" + std::to_string(i)), 0)).ok());
    const auto latest = catalogue.agent("a");
    REQUIRE(latest);
    CHECK(catalogue.agent("a", latest->version) == latest);
}

TEST_CASE("catalogue: an agent whose model is unknown is refused by check") {
    Catalogue catalogue;
    CHECK(catalogue.check(*agent("a")).error().code == ErrorCode::model_not_found);
    catalogue.apply(model("m"));
    CHECK(catalogue.check(*agent("a")).ok());
    for (size_t i = 0; i < limits::agents_max; ++i) catalogue.apply(agent("a" + std::to_string(i)));
    CHECK(catalogue.check(*agent("one-more")).error().message.find("agents_max") != std::string::npos);
    CHECK(catalogue.check(*agent("a1", "changed")).ok());
}

TEST_CASE("catalogue: entities come back from their bytes, in any order") {
    const auto first = agent("a", "one"), second = agent("a", "two");
    Catalogue catalogue;
    for (const auto& bytes : {encode_agent_entity(*second, 200, "admin"), encode_agent_entity(*first, 100, "admin"),
                              encode_model_entity(*model("m"), 50, "admin")}) {
        const auto decoded = decode_entity(bytes);
        REQUIRE(decoded.ok());
        CHECK(decoded->principal == "admin");
        REQUIRE(catalogue.load_entity(bytes).ok());
    }
    CHECK(catalogue.agent("a")->instructions == "two");
    CHECK(catalogue.agent("a", first->version)->instructions == "one");
    CHECK(catalogue.model("m")->base_url == model("m")->base_url);
    CHECK_FALSE(catalogue.apply(second));
}

TEST_CASE("catalogue: a removed agent is not offered, but its open turns find it") {
    Catalogue catalogue;
    const auto spec = agent("a");
    auto gone = record(spec, 200);
    gone.removed = true;
    REQUIRE(catalogue.restore(gone).ok());
    REQUIRE(catalogue.restore(record(spec, 100)).ok());
    CHECK(catalogue.agent("a") == nullptr);
    CHECK(catalogue.agents().empty());
    CHECK(catalogue.agent("a", spec->version) != nullptr);
}

TEST_CASE("catalogue: a damaged entity is reported, not taken up") {
    Catalogue catalogue;
    auto bad = record(agent("a"), 1);
    bad.body += " ";
    CHECK(catalogue.restore(bad).error().code == ErrorCode::state_damaged);
    bad = record(agent("a"), 1);
    bad.name = "b";
    CHECK(catalogue.restore(bad).error().code == ErrorCode::state_damaged);
    bad = record(agent("a"), 1);
    bad.kind = "key";
    CHECK(catalogue.restore(bad).error().code == ErrorCode::state_damaged);
    bad = {"agent", "a", version_of("{}"), "{}", 1, "", false};
    CHECK(catalogue.restore(bad).error().code == ErrorCode::state_damaged);
    CHECK(catalogue.agents().empty());
    CHECK(decode_entity("").error().code == ErrorCode::state_damaged);
    CHECK_FALSE(decode_entity(std::string(100, '\xff')).ok());
    // Every truncation and every flipped byte is either read or refused, never a crash.
    const std::string bytes = encode_agent_entity(*agent("a", "some words"), 7, "admin");
    for (size_t length = 0; length < bytes.size(); ++length) (void)decode_entity(bytes.substr(0, length)).ok();
    for (size_t at = 0; at < bytes.size(); ++at)
        for (const char flip : {'\x01', '\x80', '\xff'}) {
            std::string broken = bytes;
            broken[at] = static_cast<char>(broken[at] ^ flip);
            if (const auto decoded = decode_entity(broken);
                decoded && decoded->body != agent("a", "some words")->canonical_json)
                CHECK_FALSE(catalogue.restore(*decoded).ok());
        }
}

TEST_CASE("catalogue: a directory is read in order, and its problems name file and line") {
    const Folder folder;
    folder.write("models/m.toml", model_text);
    folder.write("agents/b.toml", "name=\"b\"\nmodel=\"m\"\n");
    folder.write("agents/a.toml", "name=\"a\"\nmodel=\"m\"\n");
    folder.write("agents/notes.txt", "not read");
    folder.write("agents/.hidden.toml", "not read");
    const auto loaded = folder.load();
    REQUIRE_MESSAGE(loaded.ok(), loaded.error().message);
    REQUIRE(loaded->agents.size() == 2);
    CHECK(loaded->agents[0]->name == "a");

    Catalogue catalogue;
    auto changed = catalogue.apply_all(*loaded);
    REQUIRE(changed.ok());
    CHECK(changed->agents.size() == 2);
    CHECK(changed->models.size() == 1);
    changed = catalogue.apply_all(*loaded);
    CHECK(changed->agents.empty());
    CHECK(changed->models.empty());

    folder.write("agents/c.toml", "name=\"a\"\nmodel=\"m\"\n");
    CHECK(folder.load().error().message.find("also stands in " + folder.path() + "/agents/a.toml") !=
          std::string::npos);
    folder.write("agents/c.toml", "name=\"c\"\nmodel=\"m\"\ncolour=\"red\"\n");
    CHECK(folder.load().error().message.starts_with(folder.path() + "/agents/c.toml:3: colour: unknown key"));
    CHECK(load_directory(folder.path() + "/none", folder.path() + "/models").error().code == ErrorCode::not_found);
}

TEST_CASE("catalogue: the shipped agents and models fit together") {
    const std::string config = std::string(MAINSTAY_SOURCE_DIR) + "/config/";
    const auto loaded = load_directory(config + "agents", config + "models");
    REQUIRE_MESSAGE(loaded.ok(), loaded.error().message);
    Catalogue catalogue;
    const auto models = catalogue.load_models(config + "models");
    REQUIRE_MESSAGE(models.ok(), models.error().message);
    const auto agents = catalogue.load_agents(config + "agents");
    REQUIRE_MESSAGE(agents.ok(), agents.error().message);
    CHECK(models->changed_entities(1).size() == loaded->models.size());
    // What is journalled at the first start changes nothing at the second.
    Catalogue restarted;
    for (const auto& changed : {*models, *agents})
        for (const auto& bytes : changed.changed_entities(1)) REQUIRE(restarted.load_entity(bytes).ok());
    CHECK(restarted.load_models(config + "models")->changed_entities(2).empty());
    CHECK(restarted.load_agents(config + "agents")->changed_entities(2).empty());
    CHECK(catalogue.agent(Settings{}.default_agent));
}

TEST_CASE("catalogue: readers see whole versions while a writer moves on") {
    Catalogue catalogue;
    const auto first = agent("a", "one"), second = agent("a", "two");
    catalogue.apply(first);
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> wrong{0}, reads{0};
    std::thread reader([&] {
        while (!stop || reads == 0) {
            const auto seen = catalogue.agent("a");
            wrong += !seen || (seen->version != first->version && seen->version != second->version);
            wrong += catalogue.agent("a", first->version) == nullptr;
            ++reads;
        }
    });
    for (int i = 0; i < 2000; ++i) catalogue.apply(i % 2 ? first : second);
    stop = true;
    reader.join();
    CHECK(wrong == 0);
    CHECK(reads > 0);
}
