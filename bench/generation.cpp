// Model steps through the whole inference plane (token scheduler, accelerator worker, KV tiers; real threads), beside
// the raw device in the same run: a 15M Llama of random weights in BF16, two threads.
//   bench_generation            three parts, a table, and JSON to --json
//   turns     one session of 8,200 tokens, 10 tokens in and 10 out a turn: time to the first token of turn 200 against
//             the raw device's time for the same chunk at the same resident context; again after the session slept, and
//             after everything was stopped and opened anew. Tokens prefilled are counted.
//   batch     64 sessions at once against the raw decode rate of the device at that batch
//   one       the same sessions one by one: what batching is worth
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "actors/own_model.h"
#include "runtime/base/utf8.h"
#include "runtime/inference/neuron_core_sim.h"
#include "tests/support/random_llama.h"

using namespace mainstay;
namespace json = boost::json;

namespace {

// 41 tokens a turn with the marks of the template: turn 200 stands at 8,200.
constexpr uint32_t vocabulary = 32'000, context = 8704;
const std::filesystem::path folder =
    std::filesystem::temp_directory_path() / ("mainstay-bench-generation-" + std::to_string(::getpid()));

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
}

/// Bytes, the marks of ChatML, and words that no text is tokenized to: what a random model says is never canonical.
void write_tokenizer() {
    json::object vocab;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        std::string letter;
        utf8_append(letter, itself ? byte : next++);
        vocab[letter] = unsigned(byte);
    }
    json::array added;
    unsigned id = 256;
    for (const char* mark : {"<|im_start|>", "<|im_end|>", "<|endoftext|>"})
        added.push_back({{"id", id++}, {"content", mark}, {"special", true}});
    for (; id < vocabulary; ++id) vocab["word" + std::to_string(id)] = id;
    const json::object root{
        {"added_tokens", added},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array{}}}}};
    std::ofstream(folder / "tokenizer.json") << json::serialize(root);
    std::ofstream(folder / "tokenizer_config.json") << R"({"chat_template":"chatml"})";
}

ModelPtr make_model(uint32_t running_max) {
    ModelSpec model;
    model.name = "15M";
    model.version = running_max;
    model.device = "neuron_core_sim";
    model.context_window = context;
    DeviceSpec& own = model.own;
    own.path = folder;
    own.chat_template = "chatml";
    own.threads = 2;
    own.block_tokens = 16;
    own.rows_max = 64;
    own.tokens_max = 256;
    own.running_max = running_max;
    own.kv_device_bytes = 1ull << 30;
    own.kv_host_bytes = 1ull << 30;
    own.kv_disk_bytes = 1ull << 30;
    return std::make_shared<const ModelSpec>(std::move(model));
}

class Waiting final : public ModelSink {
  public:
    void delta(uint64_t, std::string) override {
        std::lock_guard lock(mutex_);
        if (first_ == 0) first_ = now();
    }
    void done(uint64_t, ModelResult result) override {
        std::lock_guard lock(mutex_);
        if (first_ == 0) first_ = now();
        result_ = std::move(result);
        ended_ = true;
        changed_.notify_all();
    }
    void failed(uint64_t, ModelError error) override {
        std::fprintf(stderr, "bench_generation: %s\n", error.message.c_str());
        std::_Exit(1);
    }
    ModelResult& wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return ended_; });
        return result_;
    }
    double first() const { return first_; }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    double first_ = 0;
    bool ended_ = false;
    ModelResult result_;
};

class Plane {
  public:
    explicit Plane(uint32_t running_max = 0) : model_(make_model(running_max)), system_(config_) {
        TokenSchedulerConfig config;
        config.model = model_;
        config.load = [model = model_] { return load_model(*model, folder); };
        config.open = [model = model_](const LoadedModel& loaded, uint32_t index) {
            return open_device(*model, loaded, index);
        };
        config.kv_directory = folder / "kv";
        config.clock = &clock_;
        config.metrics = &metrics_;
        own_.emplace(system_, std::move(config));
    }
    ~Plane() {
        own_->stop();
        system_.await_all_actors_done();
    }
    std::shared_ptr<Waiting> submit(const SessionKey& session, const PromptItems& prompt, uint32_t new_tokens) {
        ModelRequest request;
        request.request_id = ++requests_;
        request.model = model_;
        request.session = request.root = session;
        request.prompt = prompt;
        request.options = "{}";
        request.max_output_tokens = new_tokens;
        request.idempotency_key = std::to_string(requests_);
        request.stream = true;
        auto sink = std::make_shared<Waiting>();
        own_->submit(std::move(request), sink);
        return sink;
    }
    OwnModel& own() { return *own_; }
    ModelInfo info() {
        std::mutex mutex;
        std::condition_variable changed;
        std::optional<ModelInfo> got;
        own_->read(ReplyTo<ModelInfo>([&](Result<ModelInfo> info) {
            std::lock_guard lock(mutex);
            got = std::move(*info);
            changed.notify_all();
        }));
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return got.has_value(); });
        return std::move(*got);
    }
    /// Until nothing of a session is on its way to a tier: bounded, and said where the bound ended it.
    void rest() {
        uint64_t before = UINT64_MAX;
        for (int i = 0; i < 200; ++i) {
            const ModelInfo read = info();
            const auto& pool = read.scheduler.pool;
            const uint64_t moved = pool.saved + pool.disk_blocks + pool.loaded;
            if (moved == before && read.stores_pending == 0) return;
            before = moved;
            ::usleep(50'000);
        }
        std::fprintf(stderr, "bench_generation: the tiers did not come to rest\n");
    }

  private:
    ModelPtr model_;
    SystemClock clock_;
    Metrics metrics_;
    caf::actor_system_config config_;
    caf::actor_system system_;
    std::optional<OwnModel> own_;
    uint64_t requests_ = 0;
};

SessionKey session(uint64_t n) { return {TenantId{1}, SessionId{FamilyId{n}, n, n}}; }

ItemPtr message(Role role, std::string text, std::shared_ptr<const StepTokens> tokens = nullptr) {
    Item item;
    item.role = role;
    item.text = std::move(text);
    item.tokens = std::move(tokens);
    return std::make_shared<const Item>(std::move(item));
}

/// A session as its actor sees it: settled turns, shared and immutable.
class Conversation {
  public:
    explicit Conversation(uint64_t n) : key_(session(n)) {}
    struct Turn {
        double first_s = 0;
        Usage usage;
    };
    Turn turn(Plane& plane, const std::string& text) {
        PromptItems prompt;
        prompt.settled = TurnRun(turns_);
        prompt.open = {message(Role::user, text)};
        const double asked = now();
        const auto sink = plane.submit(key_, prompt, 10);
        ModelResult& result = sink->wait();
        auto items = std::make_shared<std::vector<ItemPtr>>(prompt.open);
        items->push_back(message(Role::assistant, result.text, result.tokens));
        turns_.push_back(std::move(items));
        return {sink->first() - asked, result.usage};
    }
    const SessionKey& key() const { return key_; }

  private:
    SessionKey key_;
    TurnRun::Turns turns_;
};

/// The raw device: seconds of a chunk of `chunk` tokens behind `resident` ones, the median of many.
double raw_chunk(uint32_t resident, uint32_t chunk) {
    auto loaded = load_model(*make_model(0), folder);
    auto device = open_device(*make_model(0), *loaded, 0);
    StepRow row;
    for (BlockId b = 1; uint32_t(b) <= (resident + chunk) / 16 + 1; ++b) row.block_table.push_back(b);
    const auto run = [&](uint32_t position, uint32_t count) {
        Step step;
        row.position = position;
        row.tokens.assign(count, 7);
        row.want_token = true;
        step.rows.push_back(row);
        const double start = now();
        if (auto done = (*device)->run(step); !done.ok()) {
            std::fprintf(stderr, "bench_generation: %s\n", done.error().message.c_str());
            std::_Exit(1);
        }
        return now() - start;
    };
    for (uint32_t at = 0; at < resident; at += 256) run(at, std::min(256u, resident - at));
    std::vector<double> all;
    for (int i = 0; i < 100; ++i) all.push_back(run(resident, chunk));
    return median(all);
}

/// Raw decode steps of 64 rows at the contexts that the batch part has: tokens per second.
double raw_rate(uint32_t rows, uint32_t prompt, uint32_t steps) {
    auto loaded = load_model(*make_model(0), folder);
    auto device = open_device(*make_model(0), *loaded, 0);
    const uint32_t blocks = (prompt + steps) / 16 + 1;
    const auto row = [&](uint32_t r, uint32_t position, uint32_t count) {
        StepRow out;
        out.sequence = r;
        out.position = position;
        out.tokens.assign(count, 7 + r);
        for (uint32_t b = 0; b < blocks; ++b) out.block_table.push_back(BlockId(1 + r * blocks + b));
        return out;
    };
    for (uint32_t r = 0; r < rows; ++r) {
        Step step;
        step.rows.push_back(row(r, 0, prompt));
        (void)(*device)->run(step).ok();
    }
    const double start = now();
    for (uint32_t s = 0; s < steps; ++s) {
        Step step;
        step.kind = StepKind::decode;
        for (uint32_t r = 0; r < rows; ++r) step.rows.push_back(row(r, prompt + s, 1));
        (void)(*device)->run(step).ok();
    }
    return double(rows) * steps / (now() - start);
}

json::object turns_part() {
    json::object out;
    Conversation conversation(1);
    std::vector<double> late;
    uint32_t worst_new = 0;
    Usage last;
    {
        Plane plane;
        for (int turn = 1; turn <= 205; ++turn) {
            const auto told = conversation.turn(plane, "0123456789");
            last = told.usage;
            if (turn >= 195) late.push_back(told.first_s);
            if (turn > 1) worst_new = std::max(worst_new, told.usage.input_tokens - told.usage.cached_tokens);
        }
        const uint32_t chunk = last.input_tokens - last.cached_tokens;
        const double raw = raw_chunk(last.cached_tokens, chunk);
        out["context"] = last.input_tokens;
        out["new_tokens_per_turn"] = chunk;
        out["new_tokens_worst"] = worst_new;
        out["raw_chunk_ms"] = raw * 1e3;
        out["first_token_ms"] = median(late) * 1e3;
        out["ratio"] = median(late) / raw;
        plane.own().session_idle(conversation.key());
        plane.rest();
        const auto woken = conversation.turn(plane, "0123456789");
        out["after_sleep_ms"] = woken.first_s * 1e3;
        out["after_sleep_ratio"] = woken.first_s / raw;
        out["after_sleep_new_tokens"] = woken.usage.input_tokens - woken.usage.cached_tokens;
        plane.own().session_idle(conversation.key());
        plane.rest();
    }
    // Opened anew, five times: what slept on disk has been brought back, and one turn is asked for.
    std::vector<double> restarted;
    uint32_t computed = 0;
    uint64_t brought_back = 0, loaded_then = 0;
    for (int i = 0; i < 5; ++i) {
        Plane again;
        Conversation warm(2);
        warm.turn(again, "0123456789");
        again.rest();
        const auto before = again.info().scheduler.pool;
        const auto first = conversation.turn(again, "0123456789");
        const auto after = again.info().scheduler.pool;
        brought_back = after.device_hit_blocks - before.device_hit_blocks;
        loaded_then = after.loaded - before.loaded;
        restarted.push_back(first.first_s);
        computed = std::max(computed, first.usage.input_tokens - first.usage.cached_tokens);
        again.own().session_idle(conversation.key());
        again.rest();
    }
    out["after_restart_ms"] = median(restarted) * 1e3;
    out["after_restart_ratio"] = median(restarted) * 1e3 / out["raw_chunk_ms"].as_double();
    out["after_restart_new_tokens"] = computed;
    out["after_restart_blocks_ready"] = brought_back;
    out["after_restart_blocks_loaded"] = loaded_then;
    return out;
}

/// Tokens per second of `sessions` answers of `answer` tokens that are asked for at once.
double rate_of(Plane& plane, uint32_t sessions, uint32_t answer, uint64_t first_session) {
    std::vector<std::shared_ptr<Waiting>> sinks;
    const double start = now();
    for (uint32_t s = 0; s < sessions; ++s) {
        PromptItems prompt;
        prompt.open = {message(Role::user, "question " + std::to_string(s))};
        sinks.push_back(plane.submit(session(first_session + s), prompt, answer));
    }
    uint64_t tokens = 0;
    for (const auto& sink : sinks) tokens += sink->wait().usage.output_tokens;
    return double(tokens) / (now() - start);
}

json::object batch_part(uint32_t sessions) {
    constexpr uint32_t answer = 128;
    std::vector<double> raw, ours;
    double one = 0;
    {
        Plane plane;
        rate_of(plane, 4, 8, 1);
        for (int round = 0; round < 3; ++round) {
            raw.push_back(raw_rate(sessions, 32, answer));
            ours.push_back(rate_of(plane, sessions, answer, 1000 * (round + 1)));
        }
    }
    {
        Plane plane(1);
        rate_of(plane, 4, 8, 1);
        one = rate_of(plane, 8, answer, 1000);
    }
    json::object out;
    out["sessions"] = sessions;
    out["raw_tokens_per_s"] = median(raw);
    out["tokens_per_s"] = median(ours);
    out["share"] = median(ours) / median(raw);
    out["one_by_one_tokens_per_s"] = one;
    out["gain_of_batching"] = median(ours) / one;
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Model steps through the inference plane"};
    std::string out_file, only;
    app.add_option("--json", out_file, "where the figures go");
    app.add_option("--only", only, "turns or batch");
    CLI11_PARSE(app, argc, argv);
    spdlog::set_level(spdlog::level::warn);
    LlamaConfig shape = llama_shape(288, 768, 6, 6, 6, vocabulary, true, context + 64);
    RandomLlama(shape, RandomLlama::Type::bf16, 1).write(folder);
    write_tokenizer();
    json::object out;
    if (only.empty() || only == "turns") out["turns"] = turns_part();
    if (only.empty() || only == "batch") out["batch"] = batch_part(64);
    std::filesystem::remove_all(folder);
    for (const auto& [part, figures] : out)
        for (const auto& [name, value] : figures.as_object())
            std::printf("%-8s %-28s %s\n", std::string(part).c_str(), std::string(name).c_str(),
                        json::serialize(value).c_str());
    if (!out_file.empty()) std::ofstream(out_file) << json::serialize(out) << "\n";
    return 0;
}
