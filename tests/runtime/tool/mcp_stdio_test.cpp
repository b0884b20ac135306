#include "runtime/tool/mcp_stdio.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <sstream>

#include "support/tool_calls.h"

using namespace mainstay;
namespace json = boost::json;
using Kind = ToolOutcome::Kind;

namespace {

McpServer hostile(std::vector<std::string> mode) {
    McpServer server;
    server.label = "hostile";
    server.tenant = TenantId(1);
    server.command = {"/usr/bin/python3", MAINSTAY_SOURCE_DIR "/tests/support/hostile_server.py"};
    for (auto& word : mode) server.command.push_back(std::move(word));
    return server;
}

/// The state letter of a process, '-' where there is none.
char state_of(int pid) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    const auto at = text.rfind(") ");
    return at == std::string::npos ? '-' : text[at + 2];
}

/// Not running any more; who reaps a process that is not our child is not ours to say.
bool gone(int pid) { return state_of(pid) == '-' || state_of(pid) == 'Z'; }

struct Host {
    ToolLog log;
    std::unique_ptr<McpStdio> servers;
    uint64_t next_call = 1;

    explicit Host(McpStdio::Options options = {}) {
        options.log = log.sink();
        servers = std::make_unique<McpStdio>(std::move(options));
    }
    std::future<ToolOutcome> begin(const McpServer& server, std::string tool, uint32_t timeout_ms = 20'000,
                                   std::string arguments = "{}") {
        auto [done, future] = expect_call();
        McpCall call;
        call.call_id = next_call++;
        call.name = std::move(tool);
        call.arguments = std::move(arguments);
        call.idempotency_key = "key";
        servers->call(server, std::move(call), timeout_ms, std::move(done));
        return std::move(future);
    }
    ToolOutcome call(const McpServer& server, std::string tool, uint32_t timeout_ms = 20'000) {
        auto future = begin(server, std::move(tool), timeout_ms);
        return await(future);
    }
    std::pair<McpTools, std::string> list(const McpServer& server) {
        auto promise = std::make_shared<std::promise<std::pair<McpTools, std::string>>>();
        auto future = promise->get_future();
        servers->list(server, [promise](McpTools tools, std::string failure) {
            promise->set_value({std::move(tools), std::move(failure)});
        });
        return await(future);
    }
    int pid(const McpServer& server) { return std::stoi(call(server, "pid").output); }
};

}  // namespace

TEST_CASE("mcp_stdio: a server is started at its first use, serves, and ends with its host") {
    int pid = 0;
    {
        Host host;
        CHECK(host.servers->figures().servers == 0);
        const auto [tools, failure] = host.list(hostile({"polite"}));
        CHECK(failure.empty());
        REQUIRE(tools);
        CHECK(tools->size() == 3);
        CHECK(host.call(hostile({"polite"}), "go").output == "went");
        pid = host.pid(hostile({"polite"}));
        CHECK(pid == host.log.last_pid());
        CHECK(host.servers->figures().starts == 1);
        CHECK_FALSE(gone(pid));
    }
    CHECK(state_of(pid) == '-');  // reaped, no zombie
}

TEST_CASE("mcp_stdio: instances are per tenant, per session where asked, and shared otherwise") {
    Host host;
    auto one = hostile({"polite"}), other = one, session = one, other_session = one, relabelled = one, changed = one;
    other.tenant = TenantId(2);
    session.session = SessionKey{TenantId(1), SessionId{FamilyId(1), 1, 1}};
    other_session.session = SessionKey{TenantId(1), SessionId{FamilyId(1), 1, 2}};
    relabelled.label = "same";
    changed.env["X"] = "1";
    const int first = host.pid(one);
    CHECK(host.pid(relabelled) == first);
    std::vector<int> pids = {first, host.pid(other), host.pid(session), host.pid(other_session), host.pid(changed)};
    std::sort(pids.begin(), pids.end());
    CHECK(std::unique(pids.begin(), pids.end()) == pids.end());
    CHECK(host.pid(session) != first);
    CHECK(host.servers->figures().starts == 5);
}

TEST_CASE("mcp_stdio: a server sees a minimal environment, three descriptors and no blocked signals") {
    ::setenv("MAINSTAY_ADMIN_KEY", "secret-of-the-daemon", 1);
    Host host;
    auto server = hostile({"inside"});
    server.env = {{"TOKEN", "t"}, {"LANG", "C.UTF-8"}};
    const auto outcome = host.call(server, "go");
    ::unsetenv("MAINSTAY_ADMIN_KEY");
    REQUIRE(outcome.kind == Kind::result);
    const auto found = json::parse(outcome.output).as_object();
    const auto& environment = found.at("environment").as_object();
    CHECK(environment.at("TOKEN").as_string() == "t");
    CHECK(environment.at("LANG").as_string() == "C.UTF-8");
    CHECK(environment.contains("PATH"));
    CHECK(outcome.output.find("secret-of-the-daemon") == std::string::npos);
    for (const auto& [name, value] : environment) {
        CAPTURE(name);
        const bool known = name == "TOKEN" || name == "LANG" || name == "PATH" || name == "HOME" || name == "LC_CTYPE";
        CHECK(known);
    }
    CHECK(found.at("descriptors") == json::value(json::array{0, 1, 2}));
    CHECK(found.at("leads_group").as_bool());
    CHECK(found.at("blocked").as_string() == "0000000000000000");
}

TEST_CASE("mcp_stdio: a program that does not exist, or cannot run, is named, and not tried in a loop") {
    Host host;
    McpServer server;
    server.command = {"no-such-program-of-any-name"};
    auto outcome = host.call(server, "go");
    CHECK(outcome.kind == Kind::failed);
    CHECK(outcome.error_class == ErrorClass::transient);
    CHECK(outcome.code == ErrorCode::tool_unavailable);
    CHECK(outcome.message.find("no-such-program-of-any-name") != std::string::npos);
    server.command = {MAINSTAY_SOURCE_DIR "/CMakeLists.txt"};
    CHECK(host.call(server, "go").message.find("Permission denied") != std::string::npos);
    CHECK(host.call(server, "go").message.find("Permission denied") != std::string::npos);
    CHECK(host.call(server, "go").message.find("not started again for") != std::string::npos);
    server.command.clear();
    CHECK(host.list(server).second.find("no command") != std::string::npos);
    CHECK(host.servers->figures().starts == 0);
}

TEST_CASE("mcp_stdio: a server that exits at once fails its calls as not run, with its status") {
    Host host;
    for (int i = 0; i < 2; ++i) {
        const auto outcome = host.call(hostile({"exits"}), "go");
        CHECK(outcome.kind == Kind::failed);
        CHECK(outcome.error_class == ErrorClass::transient);
        CAPTURE(outcome.message);
        CHECK(outcome.message.find("exited with status 3") != std::string::npos);
    }
    // From the second failure in a row it is held back for a time that the refusal names ...
    CHECK(host.call(hostile({"exits"}), "go").message.find("not started again for") != std::string::npos);
    CHECK(host.servers->figures().starts == 2);
    // ... and then tried again.
    CHECK(eventually(
        [&] { return host.call(hostile({"exits"}), "go").message.find("exited with status 3") != std::string::npos; }));
    CHECK(eventually([&] { return host.servers->figures().crashes == 3; }));  // counted after the call was told
}

TEST_CASE("mcp_stdio: a server that dies within a call loses it, and the next call starts another") {
    Host host;
    const auto server = hostile({"exits_on_go"});
    const int first = host.pid(server);
    const auto outcome = host.call(server, "go");
    CHECK(outcome.kind == Kind::lost);
    CHECK(outcome.code == ErrorCode::tool_outcome_unknown);
    CHECK(outcome.message.find("exited with status 4") != std::string::npos);
    CHECK(host.call(server, "fine").output == "fine");  // at once: it had worked
    CHECK(host.pid(server) != first);
    CHECK(state_of(first) == '-');
}

TEST_CASE("mcp_stdio: kill -9 of a server within a call loses that call only once") {
    Host host;
    const auto server = hostile({"silent"});
    const int pid = host.pid(server);
    auto open = host.begin(server, "go");
    CHECK(host.call(server, "fine").output == "fine");  // so `go` was read
    ::kill(pid, SIGKILL);
    const auto outcome = await(open);
    CHECK(outcome.kind == Kind::lost);
    CHECK(outcome.message.find("killed by signal 9") != std::string::npos);
    CHECK(host.call(server, "fine").output == "fine");
    CHECK(host.servers->figures().starts == 2);
}

TEST_CASE("mcp_stdio: an answer that was given before the end counts") {
    Host host;
    for (int i = 0; i < 5; ++i) {
        const auto outcome = host.call(hostile({"answers_dying"}), "go");
        CHECK(outcome.kind == Kind::result);
        CHECK(outcome.output == "went, and gone");
        // A call that met the dying server would rightly be failed.
        CHECK(eventually([&] { return host.servers->figures().servers == 0; }));
    }
}

TEST_CASE("mcp_stdio: what a dead server left unread in its pipe did not run") {
    Host host;
    const auto server = hostile({"deaf"});
    auto small = host.begin(server, "go");
    // More than a pipe holds: some of this is never even written.
    const std::string big = R"({"text":")" + std::string(200'000, 'x') + R"("})";
    auto large = host.begin(server, "go", 20'000, big);
    REQUIRE(eventually([&] { return host.servers->figures().calls == 2 && host.log.last_pid() != 0; }));
    // Both were taken; let the server stop reading before it ends. It sleeps once it is initialized.
    const int pid = host.log.last_pid();
    REQUIRE(eventually([&] {
        std::ifstream in("/proc/" + std::to_string(pid) + "/wchan");
        std::string where;
        in >> where;
        return where.find("nanosleep") != std::string::npos;
    }));
    ::kill(pid, SIGUSR1);
    for (auto* future : {&small, &large}) {
        const auto outcome = await(*future);
        // Its one read may have taken the small call along with `initialized`: then it is lost, never failed.
        CAPTURE(outcome.message);
        if (future == &large) CHECK(outcome.kind == Kind::failed);
        if (outcome.kind == Kind::failed) CHECK(outcome.message.find("did not run") != std::string::npos);
    }
}

TEST_CASE("mcp_stdio: a call that times out is lost, its late answer is dropped, and the server goes on") {
    Host host;
    const auto server = hostile({"silent"});
    const int pid = host.pid(server);
    const auto outcome = host.call(server, "go", 50);
    CHECK(outcome.kind == Kind::lost);
    CHECK(outcome.error_class == ErrorClass::timeout);
    CHECK(outcome.code == ErrorCode::tool_timeout);
    CHECK(outcome.duration_micros >= 50'000);
    CHECK(host.pid(server) == pid);
}

TEST_CASE("mcp_stdio: a server that starts slowly is waited for, up to the bound") {
    McpStdio::Options options;
    options.start_timeout_ms = 20'000;
    Host patient(options);
    CHECK(patient.call(hostile({"slow_start", "300"}), "go").output == "went");
    // The call's own time runs from the beginning, and it was never sent.
    const auto late = patient.call(hostile({"slow_start", "60000"}), "go", 100);
    CHECK(late.kind == Kind::failed);
    CHECK(late.error_class == ErrorClass::timeout);

    options.start_timeout_ms = 100;
    Host hasty(options);
    const auto outcome = hasty.call(hostile({"slow_start", "60000"}), "go");
    CHECK(outcome.kind == Kind::failed);
    CHECK(outcome.message.find("initialize in time") != std::string::npos);
    CHECK(eventually([&] { return hasty.servers->figures().servers == 0; }));
}

TEST_CASE("mcp_stdio: an unknown revision of the protocol is refused by name") {
    Host host;
    const auto outcome = host.call(hostile({"old"}), "go");
    CHECK(outcome.kind == Kind::failed);
    CHECK(outcome.error_class == ErrorClass::protocol);
    CHECK(outcome.message.find("1999-01-01") != std::string::npos);
    CHECK(host.list(hostile({"old"})).second.find("1999-01-01") != std::string::npos);
}

TEST_CASE("mcp_stdio: endless lines, floods and closed ends stop the server and lose its call") {
    struct Row {
        const char* mode;
        const char* said;
    };
    for (const auto& row : {Row{"endless", "tool_line_bytes_max"}, Row{"flood", "tool_notifications_per_second_max"},
                            Row{"closes_output", "closed its output"}, Row{"closes_input", "closed its input"}}) {
        CAPTURE(row.mode);
        Host host;
        const auto server = hostile({row.mode});
        const int pid = host.pid(server);
        const auto outcome = host.call(server, "go");
        CHECK(outcome.kind == Kind::lost);
        CAPTURE(outcome.message);
        CHECK(outcome.message.find(row.said) != std::string::npos);
        CHECK(eventually([&] { return state_of(pid) == '-'; }));
        CHECK(host.call(server, "fine").output == "fine");
    }
}

TEST_CASE("mcp_stdio: banners, wrong ids and answers given twice are dropped and counted") {
    Host host;
    CHECK(host.call(hostile({"banner"}), "go").output == "went");
    CHECK(eventually([&] { return host.servers->figures().counters.bad_lines >= 4; }));
    CHECK(host.call(hostile({"wrong_ids"}), "go").output == "yours");
    CHECK(host.call(hostile({"wrong_ids"}), "fine").output == "fine");
    CHECK(eventually([&] { return host.servers->figures().counters.unknown_answers == 3; }));
}

TEST_CASE("mcp_stdio: a result beyond the bound is refused by the bound's name") {
    Host host;
    const auto outcome = host.call(hostile({"huge"}), "go");
    CHECK(outcome.kind == Kind::failed);
    CHECK(outcome.code == ErrorCode::tool_result_too_large);
    CHECK(outcome.error_class == ErrorClass::invalid);
    CHECK(host.call(hostile({"huge"}), "fine").output == "fine");
}

TEST_CASE("mcp_stdio: requests of the server are answered") {
    Host host;
    const auto told = json::parse(host.call(hostile({"asks"}), "go").output).as_array();
    REQUIRE(told.size() == 3);
    CHECK(told[0].at("result").at("roots").as_array().empty());
    CHECK(told[1].at("code") == -32601);
    CHECK(told[2].at("result").as_object().empty());
    CHECK(told[2].at("id").as_string() == "ask-2");
}

TEST_CASE("mcp_stdio: a list is remembered until the server says that it changed") {
    Host host;
    const auto server = hostile({"grows"});
    const auto first = host.list(server).first;
    REQUIRE(first);
    CHECK(first->size() == 3);
    CHECK(host.list(server).first == first);  // the very same: nobody was asked
    auto of_session = server;
    of_session.session = SessionKey{TenantId(1), SessionId{FamilyId(1), 1, 1}};
    CHECK(host.list(of_session).first == first);
    CHECK(host.servers->figures().starts == 1);
    CHECK(host.call(server, "go").output == "grown");
    const auto second = host.list(server).first;
    REQUIRE(second);
    REQUIRE(second->size() == 4);
    CHECK(second->at(3).name == "grown_3");
}

TEST_CASE("mcp_stdio: a cancelled call is settled at once; unknown ids are nothing") {
    Host host;
    const auto server = hostile({"silent"});
    host.pid(server);
    auto open = host.begin(server, "go");
    const uint64_t id = host.next_call - 1;
    CHECK(host.call(server, "fine").output == "fine");
    host.servers->cancel(id);
    host.servers->cancel(id);
    host.servers->cancel(987'654);
    CHECK(await(open).kind == Kind::lost);
    CHECK(host.call(server, "fine").output == "fine");
}

TEST_CASE("mcp_stdio: an idle server is stopped, and its list is still known") {
    McpStdio::Options options;
    options.idle_ms = 50;
    Host host(options);
    const auto server = hostile({"polite"});
    const auto tools = host.list(server).first;
    const int pid = host.log.last_pid();
    CHECK(eventually([&] { return state_of(pid) == '-'; }));
    CHECK(host.servers->figures().crashes == 0);
    CHECK(host.list(server).first == tools);
    CHECK(host.servers->figures().starts == 1);
    CHECK(host.pid(server) != pid);
}

TEST_CASE("mcp_stdio: beyond the bound of servers an idle one makes room, and a busy one does not") {
    McpStdio::Options options;
    options.servers_max = 1;
    Host host(options);
    const int first = host.pid(hostile({"polite"}));
    auto open = host.begin(hostile({"silent"}), "go");
    CHECK(eventually([&] { return gone(first); }));
    REQUIRE(eventually([&] { return host.servers->figures().servers == 1; }));
    const auto refused = host.call(hostile({"polite"}), "fine");
    CHECK(refused.kind == Kind::failed);
    CHECK(refused.message.find("tool_servers_max") != std::string::npos);
    host.servers->cancel(host.next_call - 2);
    CHECK(await(open).kind != Kind::result);
    CHECK(host.call(hostile({"polite"}), "fine").output == "fine");
}

TEST_CASE("mcp_stdio: a stubborn server is killed at the end, with its whole group") {
    McpStdio::Options options;
    options.stop_ms = 50;
    int stubborn = 0, child = 0;
    {
        Host host(options);
        stubborn = host.pid(hostile({"stubborn"}));
        child = std::stoi(host.call(hostile({"breeds"}), "go").output);
        CHECK_FALSE(gone(child));
    }
    CHECK(state_of(stubborn) == '-');
    CHECK(eventually([&] { return gone(child); }));
}

TEST_CASE("mcp_stdio: calls in flight are settled when the host ends") {
    std::future<ToolOutcome> open, waiting;
    {
        Host host;
        host.pid(hostile({"silent"}));
        open = host.begin(hostile({"silent"}), "go");
        CHECK(host.call(hostile({"silent"}), "fine").output == "fine");
        waiting = host.begin(hostile({"slow_start", "60000"}), "go");
    }
    CHECK(await(open).kind == Kind::lost);
    const auto outcome = await(waiting);
    CHECK(outcome.kind == Kind::failed);
    CHECK(outcome.message.find("did not run") != std::string::npos);
}

TEST_CASE("mcp_stdio: what a server prints is logged in bounded, plain lines") {
    Host host;
    CHECK(host.call(hostile({"shouts"}), "go").output == "shouted");
    CHECK(eventually([&] { return host.log.has("shout 100 "); }));
    CHECK(host.call(hostile({"shouts"}), "fine").output == "fine");
    size_t shouts = 0;
    for (const auto& line : host.log.lines()) {
        shouts += line.find("shout ") != std::string::npos;
        CHECK(line.find('\x1b') == std::string::npos);
    }
    CHECK(shouts == limits::tool_log_lines_per_minute_max);
}

TEST_CASE("mcp_stdio: many calls at once from several threads are each answered once") {
    Host host;
    const auto server = hostile({"polite"});
    std::mutex mutex;
    std::vector<std::future<ToolOutcome>> open;
    std::atomic<uint64_t> id{1000};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 100; ++i) {
                auto [done, future] = expect_call();
                McpCall call;
                call.call_id = id++;
                call.name = "fine";
                host.servers->call(server, std::move(call), 20'000, std::move(done));
                std::lock_guard lock(mutex);
                open.push_back(std::move(future));
            }
        });
    }
    for (auto& thread : threads) thread.join();
    for (auto& future : open) CHECK(await(future).output == "fine");
    CHECK(host.servers->figures().starts == 1);
}

// Runs in a process of its own, which the next case kills.
TEST_CASE("mcp_stdio: helper, a host that is killed" * doctest::skip()) {
    const char* file = std::getenv("MAINSTAY_TEST_PID_FILE");
    REQUIRE(file);
    Host host;
    const int pid = host.pid(hostile({"stubborn"}));
    std::ofstream(std::string(file) + ".part") << pid << std::flush;
    REQUIRE(::rename((std::string(file) + ".part").c_str(), file) == 0);
    for (;;) ::pause();
}

TEST_CASE("mcp_stdio: kill -9 of the daemon leaves no server behind") {
    char directory[] = "/tmp/mainstay_tool_test_XXXXXX";
    REQUIRE(::mkdtemp(directory));
    const std::string file = std::string(directory) + "/pid";
    const pid_t helper = ::fork();
    REQUIRE(helper >= 0);
    if (helper == 0) {
        ::setenv("MAINSTAY_TEST_PID_FILE", file.c_str(), 1);
        ::execl("/proc/self/exe", "tool_test", "--no-skip", "--test-case=mcp_stdio: helper*", nullptr);
        ::_exit(127);
    }
    int server = 0;
    const bool started = eventually([&] {
        std::ifstream in(file);
        return static_cast<bool>(in >> server);
    });
    ::kill(helper, SIGKILL);
    int status = 0;
    ::waitpid(helper, &status, 0);
    CHECK(started);
    CHECK(WIFSIGNALED(status));
    // It ignores the end of its input and SIGTERM, so nothing but the kernel ends it.
    if (started) CHECK(eventually([&] { return gone(server); }));
    ::unlink(file.c_str());
    ::rmdir(directory);
}
