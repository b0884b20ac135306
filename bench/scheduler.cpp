// What a decision of the batching scheduler costs: step() with many sessions waiting and many devices running full
// batches, on devices that compute nothing. Steps of one device (one completion, one new batch) and of all devices at
// once. Prints a table and one line of JSON; times are of the scheduler's thread alone.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/inference/scheduler.h"

using namespace mainstay;

namespace {

using SteadyClock = std::chrono::steady_clock;

double us_since(SteadyClock::time_point start) {
    return std::chrono::duration<double, std::micro>(SteadyClock::now() - start).count();
}

struct Figures {
    double median = 0, p99 = 0, worst = 0, mean = 0;
    explicit Figures(std::vector<double> values) {
        if (values.empty()) return;
        std::sort(values.begin(), values.end());
        median = values[values.size() / 2];
        p99 = values[values.size() * 99 / 100];
        worst = values.back();
        mean = std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
    }
};

class Load {
  public:
    Load(uint32_t sessions, uint32_t devices, uint32_t rows, uint32_t prompt, uint32_t tenants)
        : prompt_(prompt), tenants_(tenants), scheduler_(config()) {
        DeviceCaps caps;
        caps.kind = "none";
        caps.model_hash = "m";
        caps.kv_format = "f";
        caps.vocabulary = 32'000;
        caps.block_tokens = 16;
        caps.block_count = 1 + rows * (prompt + 128) / 16 * 2;
        caps.context_max = 8192;
        caps.rows_max = rows;
        caps.tokens_max = 512;
        caps.prefills_max = rows;
        caps.mixed_steps = true;
        for (uint32_t d = 0; d < devices; ++d) scheduler_.add_device(DeviceId{d}, caps, now_);
        // An agent's instructions, which all share, and a history of each session's own.
        for (uint32_t i = 0; i < prompt / 4; ++i) shared_.push_back(TokenId(random_.below(32'000)));
        histories_.resize(sessions + devices * rows);
        while (next_session_ < histories_.size()) submit();
    }

    /// Hands out until all devices have work and the queue holds what was asked for.
    void fill() {
        do {
            for (auto& work : scheduler_.step(now_)) under_way_.push_back(std::move(work));
            scheduler_.outputs();
        } while (scheduler_.wake_at() == 1);
        for (int i = 0; i < 100; ++i) all(nullptr);
    }

    /// All devices complete, then one decision for all of them.
    void all(std::vector<double>* times) {
        for (DeviceWork& work : std::exchange(under_way_, {})) answer(work);
        const auto start = SteadyClock::now();
        auto work = scheduler_.step(now_);
        if (times) times->push_back(us_since(start));
        rows_ = 0;
        for (auto& one : work) {
            rows_ += one.step ? one.step->rows.size() : 0;
            under_way_.push_back(std::move(one));
        }
        collect();
        // Admission is bounded for each call; what is left over follows at once, as the scheduler asks for.
        while (scheduler_.wake_at() == 1) {
            auto more = scheduler_.step(now_);
            for (auto& one : more) under_way_.push_back(std::move(one));
            collect();
        }
    }

    /// One device completes and gets its next batch: the result taken in, and the decision.
    void one(std::vector<double>& taken, std::vector<double>& decided) {
        if (under_way_.empty()) return all(nullptr);
        DeviceWork work = std::move(under_way_[turn_++ % under_way_.size()]);
        under_way_.erase(under_way_.begin() + ptrdiff_t((turn_ - 1) % under_way_.size()));
        const auto begun = SteadyClock::now();
        answer(work);
        taken.push_back(us_since(begun));
        const auto start = SteadyClock::now();
        auto next = scheduler_.step(now_);
        decided.push_back(us_since(start));
        for (auto& made : next) under_way_.push_back(std::move(made));
        collect();
    }

    SchedulerView view() const { return scheduler_.view(); }
    size_t rows() const { return rows_; }
    double submit_us() const { return submit_us_ / double(submits_); }

  private:
    static SchedulerConfig config() {
        SchedulerConfig config;
        config.host_blocks_max = 1 << 20;
        config.waiting_tenant_max = config.waiting_max;
        return config;
    }

    void submit() {
        const uint64_t n = next_session_++;
        auto& history = histories_[n % histories_.size()];
        if (history.empty()) {
            history = shared_;
            while (history.size() < prompt_) history.push_back(TokenId(random_.below(32'000)));
        }
        TokenRequest request;
        request.sequence = n + 1;
        const uint64_t session = n % histories_.size();
        request.session = request.root = {TenantId{uint32_t(session % tenants_)},
                                          SessionId{FamilyId{session + 1}, session, session * 0x9e3779b97f4a7c15ull}};
        request.tokens = history;
        request.definition_tokens = uint32_t(shared_.size());
        request.max_new_tokens = 16 + uint32_t(random_.below(96));
        request.priority = PriorityClass(random_.below(3));
        if (random_.below(10) == 0) request.deadline = now_ + 3600'000'000ull + random_.below(1'000'000);
        const auto start = SteadyClock::now();
        if (const auto refusal = scheduler_.submit(std::move(request), now_))
            std::fprintf(stderr, "refused: %s\n", refusal->reason.c_str());
        submit_us_ += us_since(start);
        ++submits_;
    }

    void answer(DeviceWork& work) {
        for (const auto& save : work.effects.saves) scheduler_.saved(work.device, save.hash, true);
        for (const auto& load : work.effects.loads)
            scheduler_.loaded(work.device, load.block, load.hash, load.from, true);
        now_ += 20;
        if (!work.step) return scheduler_.idle(work.device);
        StepResult result;
        result.step = work.step->id;
        for (const StepRow& row : work.step->rows) {
            RowResult& out = result.rows.emplace_back();
            out.sequence = row.sequence;
            out.epoch = row.epoch;
            if (row.want_token) out.token = TokenId(row.position % 32'000);
            result.cost.tokens += uint32_t(row.tokens.size());
        }
        result.cost.wall_s = 0.003;
        scheduler_.completed(work.device, result, now_);
    }

    void collect() {
        const auto out = scheduler_.outputs();
        for (size_t i = 0; i < out.ended.size(); ++i) submit();  // the backlog stays what it is
    }

    const uint32_t prompt_, tenants_;
    SeededRandom random_{1};
    Scheduler scheduler_;
    TimeUs now_ = 1'000'000;
    std::vector<TokenId> shared_;
    std::vector<std::vector<TokenId>> histories_;
    std::vector<DeviceWork> under_way_;
    uint64_t next_session_ = 0, turn_ = 0, submits_ = 0;
    double submit_us_ = 0;
    size_t rows_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    uint32_t sessions = 10'000, devices = 144, rows = 32, prompt = 512, tenants = 50, rounds = 200;
    CLI::App app{"Decision time of the batching scheduler, on devices that compute nothing"};
    app.add_option("--waiting", sessions, "sessions that wait");
    app.add_option("--devices", devices, "devices of the model");
    app.add_option("--rows", rows, "sequences of one device");
    app.add_option("--prompt", prompt, "tokens of a prompt");
    app.add_option("--tenants", tenants, "tenants");
    app.add_option("--rounds", rounds, "steps of all devices; twenty times as many of one device");
    CLI11_PARSE(app, argc, argv);

    Load load(sessions, devices, rows, prompt, tenants);
    load.fill();
    std::vector<double> taken, decided, all;
    for (uint32_t i = 0; i < rounds * 20; ++i) load.one(taken, decided);
    for (uint32_t i = 0; i < rounds; ++i) load.all(&all);
    const auto view = load.view();
    const Figures one(decided), take(taken), together(all);
    std::printf("%u sessions wait, %u devices of %u rows, prompts of %u tokens, %u tenants; %zu running\n",
                unsigned(view.waiting), devices, rows, prompt, tenants, view.running);
    std::printf("%-44s %10s %10s %10s %10s\n", "microseconds", "median", "mean", "p99", "worst");
    const auto line = [](const char* name, const Figures& f) {
        std::printf("%-44s %10.1f %10.1f %10.1f %10.1f\n", name, f.median, f.mean, f.p99, f.worst);
    };
    line("decision, one device's next batch", one);
    line("taking in one device's results", take);
    line("decision, batches of all devices at once", together);
    std::printf("%-44s %10.1f\n", "submit (hash the prompt, enter the queue)", load.submit_us());
    std::printf("placed %llu, ended %llu, preempted %llu, prefilled %llu tokens, cached %llu\n",
                (unsigned long long)view.placed, (unsigned long long)view.ended, (unsigned long long)view.preempted,
                (unsigned long long)view.prefilled_tokens, (unsigned long long)view.cached_tokens);
    std::printf(
        "{\"bench\":\"scheduler\",\"waiting\":%zu,\"devices\":%u,\"running\":%zu,\"step_us_median\":%.2f,"
        "\"step_us_p99\":%.2f,\"all_devices_us_median\":%.1f,\"results_us_median\":%.2f,\"submit_us\":%.2f}\n",
        view.waiting, devices, view.running, one.median, one.p99, together.median, take.median, load.submit_us());
    return 0;
}
