// A worker of the Neuron runtime that hangs, dies, lies or cannot start: what the daemon's side makes of it. What it
// does when all is well is in device_contract_test.cpp.
#include "runtime/inference/nrt_process.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <set>
#include <thread>

#include "runtime/base/version.h"
#include "runtime/inference/nrt_protocol.h"
#include "runtime/inference/nrt_worker.h"
#include "tests/support/device_kinds.h"

using namespace mainstay;

namespace {

/// Every child of this process, of any of its threads.
std::set<pid_t> children() {
    std::set<pid_t> out;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream file(task.path() / "children");
        for (pid_t pid; file >> pid;) out.insert(pid);
    }
    return out;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// A worker over the stub, with faults that can be set while it runs.
struct Subject {
    TestFolder folder;
    NrtOptions options;
    std::unique_ptr<Device> device;
    pid_t pid = -1;

    explicit Subject(uint32_t step_timeout_ms = 30'000) {
        options = stub_options(contract_graph_folder());
        options.step_timeout_ms = step_timeout_ms;
        options.environment["NEURON_STUB_FAULTS"] = (folder.path / "faults").string();
    }
    void fault(const std::string& what) { std::ofstream(folder.path / "faults") << what << "\n"; }
    void open() {
        const std::set<pid_t> before = children();
        device = required(open_nrt_device(options));
        for (const pid_t child : children())
            if (!before.contains(child)) pid = child;
        REQUIRE(pid > 0);
    }
    bool reaped() const { return ::kill(pid, 0) != 0; }
    bool ended() const {  // and waits to be reaped
        siginfo_t info{};
        return ::waitid(P_PID, id_t(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
    }
    DeviceResult<StepResult> step() { return device->run(step_on(*device, {row_of({1, 2, 3}, 0, {1})})); }

    /// Whatever is asked of it from now on.
    void check_lost(const DeviceError& error) {
        CHECK(error.action == DeviceAction::restart_worker);
        CHECK(reaped());
        const std::string block(device->caps().block_bytes, 'x');
        for (const DeviceError& later :
             {step().error(), device->export_block(1, 1).error(), device->import_block(1, block).error(),
              device->copy_blocks(std::vector<BlockCopy>{{1, 2}}).error()}) {
            CHECK(later.action == DeviceAction::restart_worker);
            CHECK(later.fault == error.fault);
            CHECK(later.message == error.message);
        }
    }
};

/// A program that is started as a worker and is none.
struct Impostor {
    TestFolder folder;
    NrtOptions options;

    explicit Impostor(const std::string& script) {
        options = stub_options(contract_graph_folder());
        options.worker_program = (folder.path / "worker").string();
        std::ofstream(options.worker_program) << "#!/bin/sh\n" << script << "\n";
        REQUIRE(::chmod(options.worker_program.c_str(), 0700) == 0);
    }
    /// The script may `cat` it.
    std::string says(const std::string& name, const std::string& frame) {
        std::ofstream(folder.path / name, std::ios::binary) << frame;
        return (folder.path / name).string();
    }
    Error error() {
        const std::set<pid_t> before = children();
        const auto device = open_nrt_device(options);
        REQUIRE(!device.ok());
        CHECK(children() == before);
        return device.error();
    }
};

DeviceCaps some_caps() {
    static const DeviceCaps caps = device_kinds()[2].open()->caps();
    return caps;
}
std::string ready(const DeviceCaps& caps) {
    return encode_nrt_reply({0, NrtReady{std::string(build_version()), caps}});
}

}  // namespace

TEST_CASE("nrt worker: a hang ends in a timeout, a killed worker and an explanation, and another one goes on") {
    std::mt19937 random(2);
    const std::vector<TokenId> tokens = random_tokens(20, random);
    const std::vector<Logits> expected = run_alone(*device_kinds()[0].open(), tokens, {1, 2});
    Subject sound;
    sound.open();
    run_alone(*sound.device, {tokens.begin(), tokens.begin() + 19}, {1, 2});
    const std::string first = *sound.device->export_block(1, 16), second = *sound.device->export_block(2, 3);

    Subject subject(400);  // only what hangs is timed
    subject.open();
    subject.fault("execute hang");
    const auto failed = subject.device->run(step_on(*subject.device, {row_of({tokens[19]}, 19, {1, 2})}));
    REQUIRE(!failed.ok());
    CHECK(failed.error().fault == DeviceFault::timeout);
    CHECK(contains(failed.error().message, "(cores 0), process " + std::to_string(subject.pid)));
    CHECK(contains(failed.error().message, "did not answer within 400 ms; it was killed for it"));
    CHECK(contains(failed.error().message, "last line on stderr: stub: execute does not come back"));
    subject.check_lost(failed.error());

    // Its successor has none of its blocks, but can be given them.
    subject.fault("");
    subject.options.step_timeout_ms = 30'000;
    subject.open();
    CHECK(*subject.device->import_block(7, first) == 16);
    CHECK(*subject.device->import_block(3, second) == 3);
    CHECK(same_bits(run_rows(*subject.device, {row_of({tokens[19]}, 19, {7, 3})})[0].logits, expected[19]));
}

TEST_CASE("nrt worker: a crash is told with its signal and its last words, and takes nobody along") {
    Subject subject;
    subject.open();
    subject.fault("execute abort");
    const auto failed = subject.step();
    REQUIRE(!failed.ok());
    CHECK(failed.error().fault == DeviceFault::hardware);
    CHECK(contains(failed.error().message, "ended its channel; it was ended by signal 6"));
    CHECK(contains(failed.error().message, "stub: assertion failed in execute"));
    subject.check_lost(failed.error());
}

TEST_CASE("nrt worker: killed from outside, before a step and while it waits for one's inputs") {
    Subject subject;
    subject.open();
    REQUIRE(::kill(subject.pid, SIGKILL) == 0);
    const auto failed = subject.step();
    REQUIRE(!failed.ok());
    CHECK(failed.error().fault == DeviceFault::hardware);
    CHECK(contains(failed.error().message, "it was ended by signal 9"));
    subject.check_lost(failed.error());
}

TEST_CASE("nrt worker: a status that only a new process mends ends the worker; any other does not") {
    Subject subject;
    for (const int code : {5, 6, 101, 1004, 1202, 4711}) {
        INFO("status ", code);
        subject.fault("");
        subject.open();
        subject.fault("execute " + std::to_string(code));
        const auto failed = subject.step();
        REQUIRE(!failed.ok());
        CHECK(failed.error().status == code);
        CHECK(failed.error().fault == (code == 5 ? DeviceFault::timeout : DeviceFault::hardware));
        CHECK(contains(failed.error().message, "reported nrt_execute: "));
        CHECK(contains(failed.error().message, "(" + std::to_string(code) + ")"));
        subject.check_lost(failed.error());
    }
    subject.fault("");
    subject.open();
    for (const auto& [code, action] :
         {std::pair{7, DeviceAction::retry}, std::pair{4, DeviceAction::retry},
          std::pair{2, DeviceAction::fail_request}, std::pair{1006, DeviceAction::fail_request}}) {
        subject.fault("execute " + std::to_string(code));
        const auto failed = subject.step();
        REQUIRE(!failed.ok());
        CHECK(failed.error().action == action);
        CHECK(failed.error().status == code);
        CHECK(!subject.reaped());
        subject.fault("execute nan:0");
        CHECK(subject.step().error().row == 0);
        subject.fault("");
        CHECK(subject.step().ok());
    }
    subject.device.reset();
    CHECK(subject.reaped());
}

TEST_CASE("nrt worker: what fails while it opens is the error that it met, or the story of its end") {
    Subject subject;
    const auto error = [&](const char* fault) {
        subject.fault(fault);
        const std::set<pid_t> before = children();
        const auto device = open_nrt_device(subject.options);
        REQUIRE(!device.ok());
        CHECK(children() == before);
        return device.error();
    };
    CHECK(error("cores none").code == ErrorCode::device_absent);
    CHECK(contains(error("cores none").message, "this machine has no NeuronCore"));
    CHECK(error("load 9").code == ErrorCode::device_absent);
    CHECK(error("load 10").code == ErrorCode::model_not_loadable);
    CHECK(error("memory full").param == "memory");
    Error got = error("load abort");
    CHECK(got.code == ErrorCode::model_not_loadable);
    CHECK(contains(got.message, "ended by signal 6; last line on stderr: stub: assertion failed in load"));
    subject.options.start_timeout_ms = 300;
    got = error("load hang");
    CHECK(got.code == ErrorCode::model_not_loadable);
    CHECK(contains(got.message, "did not answer within 300 ms; it was killed for it"));
    subject.options.start_timeout_ms = 60'000;
    subject.fault("");
    subject.options.library = "/nonexistent/libnrt.so.1";
    CHECK(contains(error("").message, "the Neuron runtime is not on this machine: /nonexistent/libnrt.so.1"));
    CHECK(error("").code == ErrorCode::device_absent);
    subject.options.library = stub_library("libnrt_stub_old.so");
    CHECK(error("").code == ErrorCode::device_absent);
    subject.options.library = stub_library();
    subject.options.directory = "/nonexistent";
    CHECK(error("").code == ErrorCode::model_not_loadable);
    subject.options.worker_program = "/nonexistent/worker";
    CHECK(error("").code == ErrorCode::device_absent);
    CHECK(error("").param == "worker_program");
    CHECK(contains(error("").message, "No such file"));
}

TEST_CASE("nrt worker: options that cannot be are refused by name") {
    const auto param = [](auto change) {
        NrtOptions options = stub_options(contract_graph_folder());
        change(options);
        const auto device = open_nrt_device(options);
        REQUIRE(!device.ok());
        CHECK(device.error().code == ErrorCode::unsupported_value);
        return device.error().param;
    };
    CHECK(param([](NrtOptions& o) { o.step_timeout_ms = 0; }) == "step_timeout_ms");
    CHECK(param([](NrtOptions& o) { o.start_timeout_ms = UINT32_MAX; }) == "start_timeout_ms");
    for (const char* cores : {"a", "0-", "-1", "0,1", "0-1-2", "123456"}) {
        INFO(cores);
        CHECK(param([&](NrtOptions& o) { o.visible_cores = cores; }) == "visible_cores");
    }
}

TEST_CASE("nrt worker: one that speaks nonsense while it opens is killed and quoted") {
    const auto message = [](const std::string& script) {
        const Error error = Impostor(script).error();
        CHECK(error.code == ErrorCode::model_not_loadable);
        return error.message;
    };
    CHECK(contains(message("echo 'hello there, daemon' >&3; sleep 60"), "no frame begins here"));
    CHECK(contains(message("printf 'MNRT\\377\\377\\377\\377' >&3; sleep 60"), "a frame of 4294967295 bytes"));
    CHECK(contains(message("printf 'MNRT\\010\\0\\0\\0' >&3; printf '12345678' >&3; sleep 60"), "no message"));
    CHECK(contains(message("printf 'MNRT\\0\\0\\0\\020' >&3; printf 'short' >&3"), "exited with status 0"));
    CHECK(contains(message("echo first >&2; printf 'no ore\\033[31m\\nlibnrt: \\377bad' >&2; exit 3"),
                   "exited with status 3; last line on stderr: libnrt: ?bad"));
    CHECK(contains(message("exit 4"), "exited with status 4; it wrote nothing to stderr"));
    // A megabyte on stderr does not stop the worker from being heard.
    CHECK(contains(message("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo last >&2; exit 5"),
                   "exited with status 5; last line on stderr: last"));

    const auto refused = [](const NrtReply& reply) {
        Impostor impostor("");
        const std::string file = impostor.says("frame", encode_nrt_reply(reply));
        std::ofstream(impostor.options.worker_program) << "#!/bin/sh\ncat " << file << " >&3; sleep 60\n";
        return impostor.error();
    };
    CHECK(contains(refused({0, NrtDone{}}).message, "began with another message"));
    CHECK(contains(refused({1, NrtReady{std::string(build_version()), some_caps()}}).message, "began with another"));
    CHECK(refused({0, NrtReady{"0.0.0", some_caps()}}).code == ErrorCode::device_absent);
    for (const auto change :
         {+[](DeviceCaps& c) { c.vocabulary = 0; }, +[](DeviceCaps& c) { c.block_tokens = 0; },
          +[](DeviceCaps& c) { c.block_count = UINT32_MAX; }, +[](DeviceCaps& c) { c.block_bytes = 1ull << 40; },
          +[](DeviceCaps& c) { c.rows_max = 0; }, +[](DeviceCaps& c) { c.tokens_max = 1 << 30; },
          +[](DeviceCaps& c) { c.context_max = 0; }, +[](DeviceCaps& c) { c.decode_buckets.clear(); }}) {
        DeviceCaps caps = some_caps();
        change(caps);
        CHECK(contains(refused({0, NrtReady{std::string(build_version()), caps}}).message, "told impossible"));
    }
}

TEST_CASE("nrt worker: an answer to another question is not believed") {
    const auto lost = [](const NrtReply& reply) {
        Impostor impostor("");
        const std::string first = impostor.says("first", ready(some_caps()));
        const std::string second = impostor.says("second", encode_nrt_reply(reply));
        std::ofstream(impostor.options.worker_program)
            << "#!/bin/sh\ncat " << first << " >&3; head -c 8 <&3 >/dev/null; cat " << second << " >&3; sleep 60\n";
        const auto device = required(open_nrt_device(impostor.options));
        StepRow row = row_of({1}, 0, {1});
        row.allowed = {0xff, 0, 0};
        const auto failed = device->run(step_on(*device, {row}));
        REQUIRE(!failed.ok());
        CHECK(failed.error().action == DeviceAction::restart_worker);
        CHECK(failed.error().fault == DeviceFault::hardware);
        return contains(failed.error().message, "answered another question; it was killed for it");
    };
    const auto stepped = [](std::optional<TokenId> token, size_t logits, size_t rows = 1) {
        NrtStepped out;
        out.logits.assign(logits, 0.5f);
        out.result.rows.resize(rows);
        if (rows) out.result.rows[0].token = token;
        if (rows) out.result.rows[0].logits = out.logits;
        return out;
    };
    CHECK(lost({1, NrtDone{}}));
    CHECK(lost({2, stepped(3, contract_vocabulary)}));  // the number of another call
    CHECK(lost({1, stepped(3, contract_vocabulary, 0)}));
    CHECK(lost({1, stepped(3, contract_vocabulary, 2)}));
    CHECK(lost({1, stepped(std::nullopt, contract_vocabulary)}));
    CHECK(lost({1, stepped(contract_vocabulary, contract_vocabulary)}));
    CHECK(lost({1, stepped(9, contract_vocabulary)}));  // not in the mask
    CHECK(lost({1, stepped(3, 7)}));
    CHECK(lost({1, NrtExported{"x"}}));
}

TEST_CASE("nrt worker: it gets the cores and the runtime's settings, no secret and no descriptor") {
    ::setenv("NEURON_RT_LOG_LEVEL", "WARN", 1);
    ::setenv("VLLM_KEY", "secret", 1);
    const int null = ::open("/dev/null", O_RDONLY), open = ::dup2(null, 57);  // neither is close-on-exec
    REQUIRE(null >= 0);
    REQUIRE(open == 57);
    Impostor impostor(
        "echo \"cores $NEURON_RT_VISIBLE_CORES level $NEURON_RT_LOG_LEVEL timeout $NEURON_RT_EXEC_TIMEOUT "
        "more $MORE key ${VLLM_KEY-none} channel $([ -e /proc/$$/fd/3 ] && echo yes) "
        "other $([ -e /proc/$$/fd/57 ] || echo no)\" >&2; exit 1");
    impostor.options.visible_cores = "2-3";
    impostor.options.step_timeout_ms = 10'000;
    impostor.options.environment["MORE"] = "given";
    const Error error = impostor.error();
    ::close(open);
    ::close(null);
    ::unsetenv("VLLM_KEY");
    ::unsetenv("NEURON_RT_LOG_LEVEL");
    const char* expected = "cores 2-3 level WARN timeout 9 more given key none channel yes other no";
    CHECK_MESSAGE(contains(error.message, expected), error.message);
}

TEST_CASE("nrt worker: it dies with the thread that opened it") {
    Subject subject;
    std::thread([&] { subject.open(); }).join();
    // The kernel kills it once the thread has ended, which may be a moment after the join.
    for (int i = 0; i < 2000 && !subject.ended(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    REQUIRE(subject.ended());
    const auto failed = subject.step();
    REQUIRE(!failed.ok());
    CHECK(contains(failed.error().message, "signal 9"));
    subject.check_lost(failed.error());
}

TEST_CASE("nrt worker: serves a device until its channel ends, and nothing that is no request") {
    const auto device = device_kinds()[2].open();
    const auto serve = [&](const std::string& bytes) {
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        REQUIRE(::write(ends[0], bytes.data(), bytes.size()) == ssize_t(bytes.size()));
        REQUIRE(::shutdown(ends[0], SHUT_WR) == 0);
        const int status = serve_device(*device, ends[1]);
        ::close(ends[1]);
        std::string said(1 << 20, '\0');
        size_t size = 0;
        for (ssize_t got; (got = ::read(ends[0], said.data() + size, said.size() - size)) > 0;) size += size_t(got);
        ::close(ends[0]);
        size_t frames = 0;
        for (size_t at = 0; at < size; ++frames) at += 8 + *nrt_frame_bytes(std::string_view(said).substr(at, 8));
        return std::pair(status, frames);
    };
    const std::string good = encode_nrt_request({1, NrtExportBlock{1, 16}});
    CHECK(serve("") == std::pair(0, size_t(1)));
    CHECK(serve(good + good) == std::pair(0, size_t(3)));
    CHECK(serve(good + good.substr(0, good.size() - 1)) == std::pair(0, size_t(2)));
    CHECK(serve(good.substr(0, 5)) == std::pair(0, size_t(1)));
    CHECK(serve(good + "nonsense") == std::pair(2, size_t(2)));
    std::string damaged = good;
    damaged[9] = 0x7f;  // more segments than there are bytes
    CHECK(serve(damaged + good) == std::pair(2, size_t(1)));
}
