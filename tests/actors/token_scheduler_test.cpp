// The token scheduler with its workers, on the shipped small model. Most cases run every actor on one thread with
// virtual time, so that each race is driven by hand; those of hanging devices have threads.
#include "actors/token_scheduler.h"

#include <doctest/doctest.h>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <thread>

#include "actors/own_model.h"
#include "support/model_sink.h"
#include "support/tiny_model.h"

using namespace mainstay;

namespace {

ModelPtr tiny(uint32_t devices = 1) {
    ModelSpec model = tiny_model();
    model.own.devices = devices;
    model.own.kv_disk_bytes = 64 << 20;
    return std::make_shared<const ModelSpec>(std::move(model));
}

ItemPtr message(Role role, std::string text, uint16_t step = 0) {
    Item item;
    item.role = role;
    item.text = std::move(text);
    item.step = step;
    return std::make_shared<const Item>(std::move(item));
}

/// What a test makes of each device: called before each step that it runs.
using BeforeStep = std::function<std::optional<DeviceError>(uint32_t index, uint64_t step)>;

class Hooked final : public Device {
  public:
    Hooked(std::unique_ptr<Device> device, uint32_t index, std::shared_ptr<std::atomic<uint64_t>> steps,
           BeforeStep before)
        : device_(std::move(device)), index_(index), steps_(std::move(steps)), before_(std::move(before)) {}
    const DeviceCaps& caps() const override { return device_->caps(); }
    DeviceResult<StepResult> run(const Step& step) override {
        if (auto error = before_(index_, ++*steps_)) return *error;
        return device_->run(step);
    }
    DeviceResult<> copy_blocks(std::span<const BlockCopy> copies) override { return device_->copy_blocks(copies); }
    DeviceResult<std::string> export_block(BlockId block, uint32_t tokens) const override {
        return device_->export_block(block, tokens);
    }
    DeviceResult<uint32_t> import_block(BlockId block, std::string_view bytes) override {
        return device_->import_block(block, bytes);
    }

  private:
    std::unique_ptr<Device> device_;
    uint32_t index_;
    std::shared_ptr<std::atomic<uint64_t>> steps_;
    BeforeStep before_;
};

class Folder {
  public:
    Folder() {
        std::string name = (std::filesystem::temp_directory_path() / "mainstay-tokens-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path = name;
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::filesystem::path path;
};

struct Config : caf::actor_system_config {
    explicit Config(bool threads) {
        if (!threads) set("scheduler.policy", caf::atom("testing"));
        set("logger.verbosity", caf::atom("quiet"));
    }
};

/// A model and whoever asks it.
class Bench {
  public:
    struct Options {
        ModelPtr model = tiny();
        std::string kv_directory;
        BeforeStep before;
        int loads_that_fail = 0;
        bool threads = false;
        uint32_t step_timeout_ms = 30'000;
        bool settled = true;  // the model is there before the first step
    };
    explicit Bench(Options options) : options_(std::move(options)), config_(options_.threads), system_(config_) {
        TokenSchedulerConfig config;
        config.model = options_.model;
        config.load = [this]() -> Result<LoadedModel> {
            if (options_.loads_that_fail > 0) {
                --options_.loads_that_fail;
                return {ErrorCode::model_not_loadable, "a tensor is torn", "t"};
            }
            return load_model(*options_.model, models_directory);
        };
        config.open = [this](const LoadedModel& loaded, uint32_t index) -> Result<std::unique_ptr<Device>> {
            auto device = open_device(*options_.model, loaded, index);
            if (!device.ok() || !options_.before) return device;
            return std::unique_ptr<Device>(std::make_unique<Hooked>(std::move(*device), index, steps, options_.before));
        };
        config.kv_directory = options_.kv_directory;
        config.step_timeout_ms = options_.step_timeout_ms;
        config.detached = options_.threads;
        config.clock = options_.threads ? static_cast<const Clock*>(&system_clock_) : &clock;
        config.metrics = &metrics;
        model.emplace(system_, std::move(config));
        if (options_.settled) settle();
    }
    ~Bench() {
        model->stop();
        settle();
        system_.await_all_actors_done();
    }

    caf::scheduler::test_coordinator& coordinator() {
        return dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
    }
    void settle() {
        if (!options_.threads) coordinator().run();
    }
    /// So many messages are handled.
    void some(size_t messages) {
        for (size_t i = 0; i < messages && coordinator().has_job(); ++i) coordinator().run_once();
    }
    void advance(TimeMs by) {
        clock.advance(by);
        coordinator().advance_time(std::chrono::milliseconds(by));
        settle();
    }

    SessionKey session(uint64_t n) const { return {TenantId{1}, SessionId{FamilyId{n}, n, n}}; }
    ModelRequest request(uint64_t of_session, std::string text, std::vector<ItemPtr> before = {}) {
        ModelRequest request;
        request.request_id = ++requests_;
        request.model = options_.model;
        request.session = request.root = session(of_session);
        before.push_back(message(Role::user, std::move(text)));
        request.prompt.open = std::move(before);
        request.tools = std::make_shared<const std::vector<ToolDefinition>>(std::vector<ToolDefinition>{
            {"calc", "calculates",
             R"({"type":"object","properties":{"expression":{"type":"string"}},"required":["expression"]})", false}});
        request.options = "{}";
        request.max_output_tokens = 120;
        request.idempotency_key = "step " + std::to_string(requests_);
        request.stream = true;
        return request;
    }
    std::shared_ptr<RecordingSink> submit(ModelRequest request) {
        auto sink = std::make_shared<RecordingSink>();
        model->submit(std::move(request), sink);
        return sink;
    }
    std::shared_ptr<RecordingSink> ask(uint64_t of_session, std::string text, std::vector<ItemPtr> before = {}) {
        auto sink = submit(request(of_session, std::move(text), std::move(before)));
        settle();
        return sink;
    }
    /// As soon as the scheduler has come to the question: what else there is to do goes on after it.
    ModelInfo info_now() {
        std::optional<ModelInfo> got;
        model->read(ReplyTo<ModelInfo>([&](Result<ModelInfo> info) {
            REQUIRE(info.ok());
            got = *info;
        }));
        while (!got && coordinator().has_job()) coordinator().run_once();
        REQUIRE(got.has_value());
        return *got;
    }
    ModelInfo info() {
        struct Got {
            std::mutex mutex;
            std::condition_variable changed;
            std::optional<ModelInfo> info;
        };
        auto got = std::make_shared<Got>();
        model->read(ReplyTo<ModelInfo>([got](Result<ModelInfo> info) {
            std::lock_guard lock(got->mutex);
            REQUIRE(info.ok());
            got->info = *info;
            got->changed.notify_all();
        }));
        settle();
        std::unique_lock lock(got->mutex);
        REQUIRE(got->changed.wait_for(lock, std::chrono::seconds(20), [&] { return got->info.has_value(); }));
        return *got->info;
    }

    Metrics metrics;
    ManualClock clock;
    std::shared_ptr<std::atomic<uint64_t>> steps = std::make_shared<std::atomic<uint64_t>>(0);
    std::optional<OwnModel> model;

  private:
    Options options_;
    SystemClock system_clock_;
    Config config_;
    caf::actor_system system_;
    uint64_t requests_ = 0;
};

ModelResult result_of(const std::shared_ptr<RecordingSink>& sink) {
    if (const auto error = sink->error()) FAIL(error->message);
    REQUIRE(sink->ends() == 1);
    return *sink->result();
}

/// Of one series, named with its labels as it is exposed.
double metric(Bench& bench, const std::string& series) {
    const std::string text = bench.metrics.expose();
    const size_t at = text.find("\n" + series + " ");
    INFO(series);
    REQUIRE(at != std::string::npos);
    return std::stod(text.substr(at + series.size() + 2));
}

const std::vector<std::string> questions = {"hello",
                                            "what is 17 + 25?",
                                            "remember that my code is kato",
                                            "what does a tozek cost?",
                                            "multiply 6 by 7",
                                            "what time is it?",
                                            "thank you",
                                            "what do you remember?"};

std::string whole(const ModelResult& result) {
    std::string out = result.text;
    for (const auto& call : result.calls) out += "|" + call.name + call.arguments;
    return out;
}

std::vector<std::string> answers_one_by_one() {
    std::vector<std::string> out;
    for (size_t i = 0; i < questions.size(); ++i) {
        Bench bench({});
        out.push_back(whole(result_of(bench.ask(i + 1, questions[i]))));
    }
    return out;
}

}  // namespace

TEST_CASE("token scheduler: a step calls a tool, and answers from its result") {
    Bench bench({});
    const auto called = result_of(bench.ask(1, "what is 17 + 25?"));
    REQUIRE(called.calls.size() == 1);
    CHECK(called.calls[0].name == "calc");
    CHECK(called.calls[0].arguments == R"({"expression":"17+25"})");
    CHECK(called.finish_reason == "tool_calls");

    Item call;
    call.kind = ItemKind::tool_call;
    call.call_id = called.calls[0].call_id;
    call.name = "calc";
    call.server_label = "builtin";
    call.arguments = called.calls[0].arguments;
    call.text = "42";
    auto next = bench.request(1, "what is 17 + 25?");
    next.prompt.open.push_back(std::make_shared<const Item>(call));
    next.step = 1;
    const auto sink = bench.submit(std::move(next));
    bench.settle();
    const auto answered = result_of(sink);
    CHECK(answered.text == "17 + 25 = 42.");
    CHECK(sink->joined() == answered.text);
    CHECK(sink->deltas().size() > 3);
    CHECK(answered.usage.simulated);
    CHECK(answered.usage.device_micros > 0);
    CHECK(answered.usage.micro_joules > 0);
    // The whole first step was computed already: what is new is the tool's result.
    CHECK(answered.usage.cached_tokens + 12 > answered.usage.input_tokens);
}

TEST_CASE("token scheduler: many at once say what each says alone, also under the constraints of a compiled graph") {
    const auto alone = answers_one_by_one();
    Bench::Options options;
    SUBCASE("any shape") {}
    SUBCASE("static shapes") {
        ModelSpec strict = *tiny();
        strict.own.strict = true;
        options.model = std::make_shared<const ModelSpec>(strict);
    }
    Bench bench(options);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (size_t i = 0; i < questions.size(); ++i) sinks.push_back(bench.submit(bench.request(i + 1, questions[i])));
    bench.settle();
    for (size_t i = 0; i < questions.size(); ++i) CHECK(whole(result_of(sinks[i])) == alone[i]);
    CHECK(bench.info().scheduler.pool.entries > 0);
}

TEST_CASE("token scheduler: a worker that dies amid a batch is replaced, and everybody gets the same tokens") {
    const auto alone = answers_one_by_one();
    for (const char* how : {"throws", "reports"}) {
        Bench::Options options;
        options.before = [how](uint32_t, uint64_t step) -> std::optional<DeviceError> {
            if (step != 9) return std::nullopt;
            if (std::string_view(how) == "throws") throw std::runtime_error("on purpose");
            DeviceError error;
            error.action = DeviceAction::restart_worker;
            error.fault = DeviceFault::hardware;
            error.message = "on purpose";
            return error;
        };
        Bench bench(options);
        std::vector<std::shared_ptr<RecordingSink>> sinks;
        for (size_t i = 0; i < questions.size(); ++i) sinks.push_back(bench.submit(bench.request(i + 1, questions[i])));
        bench.settle();
        for (size_t i = 0; i < questions.size(); ++i) {
            CHECK(whole(result_of(sinks[i])) == alone[i]);
            if (sinks[i]->result()->calls.empty()) CHECK(sinks[i]->joined() == sinks[i]->result()->text);
        }
        const auto info = bench.info();
        CHECK(info.workers.at(0).losses == 1);
        CHECK(info.workers.at(0).state == WorkerState::up);
        CHECK(info.scheduler.requeued >= 1);
    }
}

TEST_CASE("token scheduler: of two devices one dies for good, and the other one serves") {
    Bench::Options options;
    options.model = tiny(2);
    options.before = [](uint32_t index, uint64_t) -> std::optional<DeviceError> {
        if (index == 0) return std::nullopt;
        DeviceError error;
        error.action = DeviceAction::restart_worker;
        error.fault = DeviceFault::hardware;
        error.message = "worn out";
        return error;
    };
    Bench bench(options);
    for (int round = 0; round < 12; ++round) {
        std::vector<std::shared_ptr<RecordingSink>> sinks;
        for (uint64_t i = 0; i < 6; ++i) sinks.push_back(bench.submit(bench.request(100 * round + i + 1, "hello")));
        bench.settle();
        for (const auto& sink : sinks) CHECK(sink->ends() == 1);
    }
    const auto info = bench.info();
    CHECK(info.workers.at(1).state == WorkerState::down);
    CHECK(info.workers.at(1).losses == limits::device_restarts_max + 1);
    CHECK(info.workers.at(1).problem.find("worn out") != std::string::npos);
    CHECK(result_of(bench.ask(9999, "hello")).finish_reason == "stop");
}

TEST_CASE("token scheduler: a turn prefills its new tokens only, also after its session slept and the daemon ended") {
    Folder folder;
    Bench::Options options;
    options.kv_directory = folder.path / "kv";
    std::vector<ItemPtr> history;
    uint32_t prompt = 0;
    {
        Bench bench(options);
        for (int turn = 0; turn < 3; ++turn) {
            const auto result = result_of(bench.ask(1, "tell me a joke", history));
            if (turn > 0) CHECK(result.usage.cached_tokens >= prompt - 1);
            prompt = result.usage.input_tokens + result.usage.output_tokens;
            history.push_back(message(Role::user, "tell me a joke"));
            history.push_back(message(Role::assistant, result.text));
        }
        bench.model->session_idle(bench.session(1));
        bench.settle();
        CHECK(bench.info().scheduler.pool.disk_blocks > 0);
    }
    std::string said;
    {
        Bench bench(options);
        CHECK(bench.info().scheduler.pool.disk_blocks > 0);
        const auto result = result_of(bench.ask(1, "hello", history));
        // Full blocks came from the disk; what followed the last of them was computed.
        CHECK(result.usage.cached_tokens + 16 > prompt);
        CHECK(bench.info().scheduler.pool.loaded > 0);  // brought back before anybody asked
        said = whole(result);
        // Another tenant asks the same and learns nothing from the time that it takes.
        auto foreign = bench.request(2, "hello", history);
        foreign.session.tenant = foreign.root.tenant = TenantId{2};
        const auto sink = bench.submit(std::move(foreign));
        bench.settle();
        CHECK(result_of(sink).usage.cached_tokens == 0);
        CHECK(whole(result_of(sink)) == said);

        bench.model->session_deleted(bench.session(1));
        bench.settle();
        const auto after = bench.info().scheduler.pool;
        CHECK(after.disk_blocks == 0);
    }
    Bench bench(options);
    CHECK(bench.info().scheduler.pool.disk_blocks == 0);
    CHECK(whole(result_of(bench.ask(1, "hello", history))) == said);
}

TEST_CASE("token scheduler: a block that is damaged on disk is computed again, counted, and never served") {
    Folder folder;
    Bench::Options options;
    options.kv_directory = folder.path / "kv";
    std::vector<ItemPtr> history = {message(Role::user, "tell me a joke"),
                                    message(Role::assistant, "I cannot do that.")};
    std::string said;
    std::string identity;
    {
        Bench bench(options);
        said = whole(result_of(bench.ask(1, "what is 17 + 25?", history)));
        bench.model->session_idle(bench.session(1));
        bench.settle();
        REQUIRE(bench.info().scheduler.pool.disk_blocks > 1);
    }
    {
        auto loaded = load_model(*tiny(), models_directory);
        REQUIRE(loaded.ok());
        auto device = open_device(*tiny(), *loaded, 0);
        REQUIRE(device.ok());
        LmdbKvConfig config;
        config.directory = options.kv_directory;
        config.boot_id = current_boot_id();
        config.identity = (*device)->caps().model_hash + "/" + (*device)->caps().kv_format;
        auto kv = LmdbKv::open(config);
        REQUIRE(kv.ok());
        std::vector<KvBlock> blocks;
        (*kv)->visit([&](const KvBlock& block) { blocks.push_back(block); });
        REQUIRE(blocks.size() > 1);
        auto whole_block = (*kv)->get(blocks[0].hash);
        REQUIRE(whole_block);
        whole_block->bytes[whole_block->bytes.size() / 2] ^= 1;  // stored with a checksum of its own, and wrong within
        REQUIRE((*kv)->put(std::vector<KvBlock>{*whole_block}).ok());
    }
    Bench bench(options);
    CHECK(whole(result_of(bench.ask(1, "what is 17 + 25?", history))) == said);
    CHECK(bench.info().scheduler.pool.load_failed > 0);
}

TEST_CASE("token scheduler: a device that hangs is given up after its time, and the step goes on elsewhere") {
    struct Gate {
        std::mutex mutex;
        std::condition_variable changed;
        bool open = false;
    };
    auto gate = std::make_shared<Gate>();
    Bench::Options options;
    options.threads = true;
    options.step_timeout_ms = 1500;  // no other step comes near it, on any machine
    options.before = [gate](uint32_t, uint64_t step) -> std::optional<DeviceError> {
        if (step != 4) return std::nullopt;
        std::unique_lock lock(gate->mutex);
        gate->changed.wait_for(lock, std::chrono::seconds(30), [&] { return gate->open; });
        return std::nullopt;
    };
    {
        Bench bench(options);
        const auto sink = bench.submit(bench.request(1, "what is 17 + 25?"));
        REQUIRE(sink->wait());
        CHECK(whole(result_of(sink)) == R"(|calc{"expression":"17+25"})");
        const auto info = bench.info();
        CHECK(info.workers.at(0).losses == 1);
        CHECK(info.workers.at(0).problem.find("1500 ms") != std::string::npos);
        std::lock_guard lock(gate->mutex);
        gate->open = true;
        gate->changed.notify_all();
    }
}

TEST_CASE("token scheduler: a step that is cancelled is heard of no more, and its place is free") {
    Bench bench({});
    auto request = bench.request(1, "tell me a joke");
    const uint64_t id = request.request_id;
    const auto sink = bench.submit(std::move(request));
    bench.some(8);
    bench.model->cancel(id);
    const size_t heard = sink->deltas().size();
    bench.settle();
    CHECK(sink->ends() == 0);
    CHECK(sink->deltas().size() == heard);
    CHECK(bench.info().scheduler.running == 0);
}

TEST_CASE("token scheduler: a step that is paused goes on elsewhere, and says what it would have said") {
    struct Case {
        std::string text, options;
    };
    const std::vector<Case> cases = {{"tell me a joke", "{}"},
                                     {"what is 17 + 25?", R"({"tool_choice":"required"})"},
                                     {"what does a tozek cost?", R"({"temperature":1.3,"top_p":0.95})"}};
    for (const Case& one : cases) {
        CAPTURE(one.text);
        const auto make = [&](Bench& bench) {
            auto request = bench.request(1, one.text);
            request.options = one.options;
            request.idempotency_key = "the step";
            return request;
        };
        Bench unmoved({});
        const auto sink = unmoved.submit(make(unmoved));
        unmoved.settle();
        const auto expected = result_of(sink);
        const std::string streamed = sink->joined();

        // From device to device, up to three tokens further each time.
        std::shared_ptr<const StepTokens> said;
        std::optional<ModelResult> got;
        size_t pauses = 0;
        while (!got && pauses < 200) {
            Bench::Options options;
            std::function<void()> pause;
            options.before = [&](uint32_t, uint64_t step) {
                if (step == 4) pause();
                return std::nullopt;
            };
            Bench bench(options);
            auto request = make(bench);
            request.resume = said;
            pause = [&, id = request.request_id] { CHECK(bench.model->pause(id)); };
            const auto sink_here = bench.submit(std::move(request));
            bench.settle();
            REQUIRE(sink_here->ends() == 1);
            CHECK(streamed.starts_with(sink_here->joined()));
            CHECK(bench.info().scheduler.running == 0);
            if (sink_here->result()) {
                got = sink_here->result();
                CHECK(sink_here->joined() == streamed);
                break;
            }
            REQUIRE(sink_here->paused());
            const StepTokens now = *sink_here->paused();
            REQUIRE(now.ids.size() > (said ? said->ids.size() : 0));
            if (said) CHECK(std::equal(said->ids.begin(), said->ids.end(), now.ids.begin()));
            said = std::make_shared<const StepTokens>(now);
            ++pauses;
        }
        REQUIRE(got);
        CHECK(pauses > 1);
        CHECK(whole(*got) == whole(expected));
        for (size_t i = 0; i < expected.calls.size(); ++i) CHECK(got->calls[i].call_id == expected.calls[i].call_id);
        CHECK(got->finish_reason == expected.finish_reason);
        CHECK(got->usage.input_tokens == expected.usage.input_tokens);
        CHECK(got->usage.output_tokens == expected.usage.output_tokens);
    }
}

TEST_CASE("token scheduler: what another tokenizer said, or this step cannot have said, counts for nothing") {
    Bench unmoved({});
    const auto request = [](Bench& bench) {
        auto made = bench.request(1, "what is 17 + 25?");
        made.options = R"({"tool_choice":"required"})";
        made.idempotency_key = "the step";
        return made;
    };
    const auto sink = unmoved.submit(request(unmoved));
    unmoved.settle();
    const auto expected = result_of(sink);

    Bench::Options options;
    std::function<void()> pause;
    options.before = [&](uint32_t, uint64_t step) {
        if (step == 5) pause();
        return std::nullopt;
    };
    Bench source(options);
    auto begun = request(source);
    pause = [&, id = begun.request_id] { source.model->pause(id); };
    const auto begun_sink = source.submit(std::move(begun));
    source.settle();
    REQUIRE(begun_sink->paused());
    const StepTokens said = *begun_sink->paused();
    REQUIRE(said.ids.size() > 2);

    std::vector<StepTokens> wrong(5, said);
    wrong[0].tokenizer[0] ^= 1;
    wrong[1].template_version += 1;
    wrong[2].ids[0] = 5;                              // the grammar does not let it come
    wrong[3].ids.assign(500, said.ids[0]);            // more than it may say
    wrong[4].ids.insert(wrong[4].ids.end(), 0xffff);  // no token
    for (const StepTokens& tokens : wrong) {
        Bench bench({});
        auto resumed = request(bench);
        resumed.resume = std::make_shared<const StepTokens>(tokens);
        const auto sink_here = bench.submit(std::move(resumed));
        bench.settle();
        const auto got = result_of(sink_here);
        CHECK(whole(got) == whole(expected));
        CHECK(got.usage.output_tokens == expected.usage.output_tokens);
    }
}

TEST_CASE("token scheduler: a step that waits for its model is paused, too") {
    Bench::Options options;
    options.settled = false;
    Bench bench(options);
    auto request = bench.request(1, "hello");
    const uint64_t id = request.request_id;
    const StepTokens before{{}, 1, {4, 5}};
    request.resume = std::make_shared<const StepTokens>(before);
    const auto sink = bench.submit(std::move(request));
    bench.model->pause(id);
    bench.settle();
    REQUIRE(sink->ends() == 1);
    REQUIRE(sink->paused());
    CHECK(*sink->paused() == before);
}

TEST_CASE("token scheduler: what a request may and may not have") {
    Bench bench({});
    SUBCASE("a call that is required is made, whatever the model would have said") {
        auto request = bench.request(1, "hello");
        request.options = R"({"tool_choice":"required"})";
        const auto sink = bench.submit(std::move(request));
        bench.settle();
        const auto result = result_of(sink);
        REQUIRE(result.calls.size() >= 1);
        CHECK(result.calls[0].name == "calc");
    }
    SUBCASE("JSON that is required comes") {
        auto request = bench.request(1, "hello");
        request.tools = nullptr;
        request.options =
            R"({"text":{"format":{"type":"json_schema","name":"x","schema":{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"]}}}})";
        const auto sink = bench.submit(std::move(request));
        bench.settle();
        const auto text = result_of(sink).text;
        CHECK((text == R"({"ok":true})" || text == R"({"ok":false})" || text == R"({"ok": true})" ||
               text == R"({"ok": false})"));
    }
    SUBCASE("a prompt that is too long says by how much") {
        const auto sink = bench.ask(1, std::string(900, 'x'));
        REQUIRE(sink->error());
        CHECK(sink->error()->error_class == ErrorClass::context_overflow);
        CHECK(sink->error()->context_tokens > 900);
        CHECK(sink->error()->context_limit == 768 - 120);
    }
    SUBCASE("a bound on tokens cuts") {
        auto request = bench.request(1, "tell me a joke");
        request.max_output_tokens = 3;
        const auto sink = bench.submit(std::move(request));
        bench.settle();
        CHECK(result_of(sink).finish_reason == "length");
        CHECK(result_of(sink).usage.output_tokens == 3);
    }
    SUBCASE("a deadline ends a step") {
        auto request = bench.request(1, "tell me a joke");
        request.deadline = bench.clock.now_ms() + 50;
        const auto sink = bench.submit(std::move(request));
        bench.some(6);
        bench.advance(100);
        REQUIRE(sink->error());
        CHECK(sink->error()->error_class == ErrorClass::timeout);
    }
}

TEST_CASE("token scheduler: a worker that is drained takes nothing new, and works again after") {
    Bench::Options options;
    options.model = tiny(2);
    Bench bench(options);
    const auto drain = [&](bool on) {
        bool answered = false;
        bench.model->drain(1, on, ReplyTo<ModelInfo>([&](Result<ModelInfo> info) { answered = info.ok(); }));
        bench.settle();
        CHECK(answered);
    };
    drain(true);
    CHECK(bench.info().workers.at(1).state == WorkerState::drained);
    for (uint64_t i = 0; i < 8; ++i) bench.submit(bench.request(i + 1, "hello"));
    bench.settle();
    CHECK(bench.info().workers.at(1).device.steps == 0);
    drain(false);
    for (uint64_t i = 0; i < 40; ++i) bench.submit(bench.request(i + 100, "hello"));
    bench.settle();
    CHECK(bench.info().workers.at(1).device.steps > 0);
}

TEST_CASE("token scheduler: the only worker of a model ends what it runs when it is drained, and says which it is") {
    Bench bench({});
    const auto running = bench.submit(bench.request(1, "what is 17 + 25?"));
    bench.some(12);
    REQUIRE(bench.info_now().workers.at(0).device.running == 1);
    WorkerState answered = WorkerState::down;
    bench.model->drain(0, true, ReplyTo<ModelInfo>([&](Result<ModelInfo> info) {
                           REQUIRE(info.ok());
                           answered = info->workers.at(0).state;
                       }));
    const auto waits = bench.submit(bench.request(2, "hello"));
    bench.settle();
    CHECK(answered == WorkerState::draining);
    CHECK(whole(result_of(running)) == R"(|calc{"expression":"17+25"})");
    CHECK(bench.info().workers.at(0).state == WorkerState::drained);
    CHECK(bench.info().scheduler.waiting == 1);
    CHECK(waits->ends() == 0);
    bench.model->drain(0, false, ReplyTo<ModelInfo>([](Result<ModelInfo>) {}));
    bench.settle();
    CHECK(!whole(result_of(waits)).empty());
}

TEST_CASE("token scheduler: a model that cannot be loaded is named, and tried again later") {
    ModelSpec broken = *tiny();
    broken.own.path = "no_such_folder";
    Bench::Options options;
    options.model = std::make_shared<const ModelSpec>(broken);
    Bench bench(options);
    const auto sink = bench.ask(1, "hello");
    REQUIRE(sink->error());
    CHECK(sink->error()->code == ErrorCode::model_not_loadable);
    CHECK(sink->error()->error_class == ErrorClass::invalid);
    CHECK(sink->error()->message.find("no_such_folder") != std::string::npos);
    CHECK(bench.info().state == ModelState::failed);
}

TEST_CASE("token scheduler: what metrics tell is what it did, a second later at most, across a lost worker") {
    Bench::Options options;
    options.before = [](uint32_t, uint64_t step) -> std::optional<DeviceError> {
        if (step != 3) return std::nullopt;
        return DeviceError{DeviceAction::restart_worker, DeviceFault::hardware, "pulled out", {}, 0};
    };
    std::optional<Bench> bench(std::in_place, options);
    const std::string of = "{model=\"mainstay_tiny\"}", worker = "{model=\"mainstay_tiny\",worker=\"0\"}";
    uint64_t prompt = 0, cached = 0, generated = 0;
    std::vector<ItemPtr> history;
    for (const std::string& question : {questions[0], questions[6], questions[4]}) {
        const auto result = result_of(bench->ask(1, question, history));
        prompt += result.usage.input_tokens;
        cached += result.usage.cached_tokens;
        generated += result.usage.output_tokens;
        history.push_back(message(Role::user, question));
        history.push_back(message(Role::assistant, result.text));
    }
    // A step that gives up waiting, and one that is cancelled amid its tokens, are counted as what they are.
    auto late = bench->request(2, "hello");
    late.deadline = bench->clock.now_ms() + 50;
    const auto sink = bench->submit(std::move(late));
    bench->some(1);
    bench->advance(100);
    CHECK(sink->error());
    auto cut = bench->request(3, "tell me a joke");
    const uint64_t id = cut.request_id;
    bench->submit(std::move(cut));
    bench->some(8);
    bench->model->cancel(id);
    bench->settle();
    bench->advance(1000);

    CHECK(cached > 0);
    CHECK(metric(*bench, "mainstay_model_sequences_total{end=\"deadline\",model=\"mainstay_tiny\"}") == 1);
    CHECK(metric(*bench, "mainstay_model_sequences_total{end=\"cancelled\",model=\"mainstay_tiny\"}") == 1);
    CHECK(metric(*bench, "mainstay_model_queue_wait_seconds_count" + of) == 5);
    CHECK(metric(*bench, "mainstay_model_time_to_first_token_seconds_count" + of) >= 3);
    const auto info = bench->info();
    CHECK(metric(*bench, "mainstay_model_prompt_tokens_total" + of) > double(prompt));
    CHECK(metric(*bench, "mainstay_model_cached_tokens_total{model=\"mainstay_tiny\",tier=\"device\"}") >=
          double(cached));
    CHECK(metric(*bench, "mainstay_model_generated_tokens_total" + of) == double(info.scheduler.generated_tokens));
    CHECK(info.scheduler.generated_tokens >= generated);
    CHECK(metric(*bench, "mainstay_model_prefilled_tokens_total" + of) == double(info.scheduler.prefilled_tokens));
    // Two steps ran on the device that was lost, the rest on the one after it.
    CHECK(info.workers.at(0).losses == 1);
    CHECK(metric(*bench, "mainstay_worker_losses_total" + worker) == 1);
    CHECK(metric(*bench, "mainstay_worker_steps_total" + worker) == double(info.workers.at(0).device.steps + 2));
    CHECK(metric(*bench, "mainstay_model_requeued_sequences_total" + of) == 1);
    CHECK(metric(*bench,
                 "mainstay_worker_device_seconds_total{model=\"mainstay_tiny\",simulated=\"true\",worker="
                 "\"0\"}") > info.workers.at(0).device.device_s);
    CHECK(metric(*bench, "mainstay_worker_rows_max" + worker) == 16);
    CHECK(metric(*bench, "mainstay_model_kv_blocks_max{model=\"mainstay_tiny\",tier=\"host\"}") ==
          double((16 << 20) / info.block_bytes));
    const auto view = info.workers.at(0).device;
    CHECK(metric(*bench, "mainstay_model_kv_blocks{model=\"mainstay_tiny\",tier=\"device\"}") ==
          double(view.blocks_total - view.blocks_free));
    CHECK(metric(*bench, "mainstay_model_workers{model=\"mainstay_tiny\",state=\"up\"}") == 1);
}

TEST_CASE("token scheduler: workers of a model that cannot be loaded are shown as down, with the reason") {
    ModelSpec broken = *tiny(2);
    broken.own.path = "no_such_folder";
    Bench::Options options;
    options.model = std::make_shared<const ModelSpec>(broken);
    Bench bench(options);
    const auto info = bench.info();
    REQUIRE(info.workers.size() == 2);
    for (const WorkerInfo& worker : info.workers) {
        CHECK(worker.state == WorkerState::down);
        CHECK(worker.problem.find("no_such_folder") != std::string::npos);
        CHECK(worker.kind == "neuron_core_sim");
    }
    bench.advance(1000);
    CHECK(metric(bench, "mainstay_model_workers{model=\"mainstay_tiny\",state=\"down\"}") == 2);
    std::string refused;
    bench.model->drain(0, true, ReplyTo<ModelInfo>([&](Result<ModelInfo> answer) {
                           REQUIRE(!answer.ok());
                           refused = answer.error().message;
                       }));
    bench.settle();
    CHECK(refused.find("failed") != std::string::npos);
}

TEST_CASE("token scheduler: a model that was mended is loaded by a later step") {
    Bench::Options options;
    options.loads_that_fail = 1;
    Bench bench(options);
    const auto torn = bench.ask(1, "hello");
    REQUIRE(torn->error());
    CHECK(torn->error()->message == "a tensor is torn");
    CHECK(bench.ask(1, "hello")->error());  // not at each step
    bench.advance(6000);
    CHECK(result_of(bench.ask(1, "hello")).finish_reason == "stop");
    CHECK(bench.info().state == ModelState::ready);
}
