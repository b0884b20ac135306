#include "runtime/agent/settings.h"

#include <doctest/doctest.h>

#include <algorithm>

using namespace mainstay;

namespace {

Result<Settings> parse(std::string_view text, std::vector<std::string> environment = {},
                       std::vector<SettingOverride> flags = {}) {
    return parse_settings(text, "mainstay.toml", "conf", environment, flags);
}

Error error_of(std::string_view text, std::vector<std::string> environment = {},
               std::vector<SettingOverride> flags = {}) {
    const auto parsed = parse(text, std::move(environment), std::move(flags));
    REQUIRE_FALSE(parsed.ok());
    return parsed.error();
}

const std::string shipped = std::string(MAINSTAY_SOURCE_DIR) + "/config/mainstay.toml";

}  // namespace

TEST_CASE("settings: the shipped file names every setting with its default") {
    const auto text = read_text_file(shipped, 1 << 20);
    REQUIRE(text.ok());
    const auto from_file = parse_settings(*text, "mainstay.toml", "", {}, {});
    REQUIRE_MESSAGE(from_file.ok(), from_file.error().message);
    CHECK(print_effective(*from_file) == print_effective(Settings{}));
    for (const auto& name : setting_names()) {
        const size_t dot = name.find('.');
        CAPTURE(name);
        const size_t section = text->find("\n[" + name.substr(0, dot) + "]\n");
        REQUIRE(section != std::string::npos);
        const size_t end = std::min(text->find("\n[", section + 1), text->size());
        CHECK(text->substr(section, end - section).find("\n" + name.substr(dot + 1) + " = ") != std::string::npos);
    }
}

TEST_CASE("settings: what is printed is read back") {
    const auto changed = parse(
        "[session]\ncommit = \"strict\"\nwindow_bytes = 100000\npassivate_after = \"1500ms\"\n"
        "[log]\nlevel = \"debug\"\nformat = \"json\"\n[metrics]\nwithout_key = false\n"
        "[store]\nsegment_bytes = \"100MB\"\n");
    REQUIRE_MESSAGE(changed.ok(), changed.error().message);
    CHECK(changed->commit == CommitMode::strict);
    CHECK(changed->window_bytes == 100'000);
    CHECK(changed->passivate_after_ms == 1500);
    CHECK(changed->log_format == LogFormat::json);
    CHECK_FALSE(changed->metrics_without_key);
    CHECK(changed->segment_bytes == 100ull << 20);
    const auto again = parse_settings(print_effective(*changed), "", "", {}, {});
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK(print_effective(*again) == print_effective(*changed));
}

TEST_CASE("settings: host names are a list in the file and separated by commas in the environment") {
    const std::string file = "[listen]\nallowed_hosts = [\"a.example\", \"[fd00::1]\"]\n";
    CHECK(parse(file)->allowed_hosts == std::vector<std::string>{"a.example", "[fd00::1]"});
    const auto again = parse_settings(print_effective(*parse(file)), "", "", {}, {});
    REQUIRE_MESSAGE(again.ok(), again.error().message);
    CHECK(again->allowed_hosts == parse(file)->allowed_hosts);
    const auto from_environment = parse(file, {"MAINSTAY_LISTEN__ALLOWED_HOSTS=b.example, c.example"});
    REQUIRE_MESSAGE(from_environment.ok(), from_environment.error().message);
    CHECK(from_environment->allowed_hosts == std::vector<std::string>{"b.example", "c.example"});
    CHECK(parse(file, {"MAINSTAY_LISTEN__ALLOWED_HOSTS="})->allowed_hosts.empty());
    CHECK(parse(file)->computed_models == std::vector<std::string>{"*"});
    CHECK(parse(file, {"MAINSTAY_INFERENCE__MODELS="})->computed_models.empty());
    CHECK(parse("[inference]\nmodels = [\"a\", \"b\"]\n")->computed_models == std::vector<std::string>{"a", "b"});
    for (const char* bad : {"a.example:80", "http://a", "", "[]", "a b"}) {
        CAPTURE(bad);
        CHECK(error_of("[listen]\nallowed_hosts = [\"" + std::string(bad) + "\"]\n").code ==
              ErrorCode::invalid_request);
    }
}

TEST_CASE("settings: flags win over the environment, which wins over the file") {
    const std::string file = "[listen]\naddress = \"127.0.0.1:1\"\n[session]\ncommit=\"strict\"\nactive_max = 5\n";
    const std::vector<std::string> environment = {"MAINSTAY_LISTEN__ADDRESS=127.0.0.1:2",
                                                  "MAINSTAY_SESSION__ACTIVE_MAX=7",
                                                  "MAINSTAY_METRICS__WITHOUT_KEY=false",
                                                  "HOME=/root",
                                                  "MAINSTAY_URL=http://x",
                                                  "MAINSTAY_ADMIN_KEY=sk-secret"};
    const auto settings = parse(file, environment, {{"listen.address", "[::1]:3"}, {"store.directory", "d"}});
    REQUIRE_MESSAGE(settings.ok(), settings.error().message);
    CHECK(settings->listen_address == "[::1]:3");
    CHECK(settings->active_max == 7);
    CHECK(settings->commit == CommitMode::strict);
    CHECK_FALSE(settings->metrics_without_key);
    CHECK(settings->directory == "d");
    CHECK(settings->admin_key == "sk-secret");
}

TEST_CASE("settings: the key is masked where settings are printed") {
    const auto settings = parse("", {"MAINSTAY_ADMIN_KEY=sk-secret"});
    CHECK(print_effective(*settings).find("sk-secret") == std::string::npos);
    CHECK(print_effective(*settings).find("***") != std::string::npos);
}

TEST_CASE("settings: directories of a file are relative to it, an override is not") {
    CHECK(parse("")->agents_directory == "conf/agents");
    CHECK(parse("[agents]\ndirectory = \"/etc/agents\"\n")->agents_directory == "/etc/agents");
    CHECK(parse("[models]\ndirectory = \"../m\"\n")->models_directory == "m");
    CHECK(parse("", {"MAINSTAY_AGENTS__DIRECTORY=here"})->agents_directory == "here");
}

TEST_CASE("settings: what is unknown or out of range is refused with its place") {
    CHECK(error_of("[session]\n\ncomit = \"strict\"\n")
              .message.starts_with("mainstay.toml:3: session.comit: unknown key"));
    CHECK(error_of("[sesion]\n").code == ErrorCode::unknown_field);
    CHECK(error_of("listen = 3\n").param == "listen");
    CHECK(error_of("[listen]\ntls = true\n").code == ErrorCode::not_yet);
    CHECK(error_of("[session]\ncommit = \"fast\"\n").code == ErrorCode::unsupported_value);
    CHECK(error_of("[session]\npassivate_after = \"1ms\"\n").message ==
          "mainstay.toml:2: session.passivate_after: must be between 10ms and 1d");
    CHECK(error_of("[store]\nsegment_bytes = \"1MB\"\n").param == "store.segment_bytes");
    CHECK(error_of("[store]\nsegment_bytes = \"1GB\"\n").param == "store.segment_bytes");
    CHECK(error_of("[store]\ndisk_reserve = \"much\"\n").param == "store.disk_reserve");
    CHECK(error_of("[metrics]\nwithout_key = \"yes\"\n").param == "metrics.without_key");
    CHECK(error_of("", {"MAINSTAY_SESSION__COMIT=strict"}).message ==
          "MAINSTAY_SESSION__COMIT: there is no setting session.comit");
    CHECK(error_of("", {"MAINSTAY_SESSION__COMMIT=fast"}).message.starts_with("MAINSTAY_SESSION__COMMIT: "));
    CHECK(error_of("", {}, {{"listen.address", "8080"}}).param == "listen.address");
    for (const auto* address : {"x", ":80", "h:", "h:99999", "h:80x", "h h:80"})
        CHECK_FALSE(parse("", {}, {{"listen.address", address}}).ok());
    CHECK(load_settings("no/such/file.toml", {}, {}).error().code == ErrorCode::not_found);
}
