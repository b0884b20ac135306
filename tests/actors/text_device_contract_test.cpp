// What every device promises that answers whole steps as text, whatever computes them: the contract of text_device.h on
// the scripted device, on an upstream over HTTP, and on the small model behind a token scheduler.
#include <doctest/doctest.h>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <condition_variable>

#include "actors/own_model.h"
#include "runtime/inference/openai_device.h"
#include "runtime/inference/scripted_device.h"
#include "support/fake_upstream.h"
#include "support/model_sink.h"

using namespace mainstay;

namespace {

ModelRequest request_of(ModelPtr model, std::string text) {
    static uint64_t requests = 0;
    ModelRequest request;
    request.request_id = ++requests;
    request.model = std::move(model);
    request.session = request.root = {TenantId{1}, SessionId{FamilyId{7}, 7, 7}};
    Item item;
    item.text = std::move(text);
    request.prompt.open.push_back(std::make_shared<const Item>(item));
    request.options = "{}";
    request.max_output_tokens = 100;
    request.idempotency_key = "contract";
    request.stream = true;
    return request;
}

/// A device, a step that ends at once, and one that does not end by itself before the subject does.
class Subject {
  public:
    virtual ~Subject() = default;
    virtual TextDevice& device() = 0;
    virtual ModelRequest quick() = 0;
    virtual ModelRequest slow() = 0;
    virtual void began(RecordingSink&) {}  // returns when the slow step is under way
    virtual void let_go() {}

    std::shared_ptr<RecordingSink> submit(ModelRequest request) {
        auto sink = std::make_shared<RecordingSink>();
        device().submit(std::move(request), sink);
        return sink;
    }
};

class Scripted final : public Subject {
  public:
    TextDevice& device() override { return device_; }
    ModelRequest quick() override { return request_of(model(0), "hello"); }
    ModelRequest slow() override { return request_of(model(600'000), "hello"); }

  private:
    static ModelPtr model(uint32_t delay_ms) {
        ModelSpec spec;
        spec.name = "script";
        spec.device = "scripted";
        ScriptStep step;
        step.text = "hello to you";
        step.delay_ms = delay_ms;
        spec.script.push_back(step);
        return std::make_shared<const ModelSpec>(spec);
    }
    ScriptedDevice device_;
};

class Upstream final : public Subject {
  public:
    Upstream() : device_(std::make_shared<HttpClient>()) {
        ModelSpec spec;
        spec.name = "upstream";
        spec.base_url = {upstream_.url("/v1")};
        model_ = std::make_shared<const ModelSpec>(spec);
    }
    TextDevice& device() override { return device_; }
    ModelRequest quick() override {
        upstream_.answer(
            fake_stream({said("hello "), said("to you"),
                         "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
                         "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n",
                         "data: [DONE]\n\n"}));
        return request_of(model_, "hello");
    }
    ModelRequest slow() override {
        upstream_.answer(fake_stream({said("hello ")}, false, FakeAnswer::End::stall));
        return request_of(model_, "hello");
    }
    void began(RecordingSink& sink) override { REQUIRE(sink.wait_delta()); }

  private:
    static std::string said(const std::string& text) {
        return R"(data: {"model":"m","choices":[{"index":0,"delta":{"content":")" + text + "\"}}]}\n\n";
    }
    FakeUpstream upstream_;
    ModelPtr model_;
    OpenAiDevice device_;
};

/// Its device stands still while the gate is closed: from the second step of a slow answer on.
class Own final : public Subject {
  public:
    Own() : system_(config_) {
        ModelSpec spec;
        spec.name = "mainstay_tiny";
        spec.device = "neuron_core_sim";
        spec.context_window = 768;
        spec.own.path = "mainstay_tiny";
        spec.own.threads = 1;
        spec.own.block_tokens = 16;
        spec.own.kv_device_bytes = 8 << 20;
        model_ = std::make_shared<const ModelSpec>(spec);
        TokenSchedulerConfig config;
        config.model = model_;
        config.load = [model = model_] { return load_model(*model, MAINSTAY_SOURCE_DIR "/config/models"); };
        config.open = [this](const LoadedModel& loaded, uint32_t index) -> Result<std::unique_ptr<Device>> {
            auto device = open_device(*model_, loaded, index);
            if (!device.ok()) return device;
            return std::unique_ptr<Device>(std::make_unique<Gated>(std::move(*device), *this));
        };
        config.clock = &clock_;
        own_.emplace(system_, std::move(config));
    }
    ~Own() override {
        let_go();
        own_->stop();
        system_.await_all_actors_done();
    }
    TextDevice& device() override { return *own_; }
    ModelRequest quick() override { return request_of(model_, "hello"); }
    ModelRequest slow() override {
        std::lock_guard lock(mutex_);
        steps_left_ = 1;
        return request_of(model_, "hello");
    }
    void let_go() override {
        std::lock_guard lock(mutex_);
        steps_left_ = UINT64_MAX;
        changed_.notify_all();
    }

  private:
    class Gated final : public Device {
      public:
        Gated(std::unique_ptr<Device> device, Own& own) : device_(std::move(device)), own_(own) {}
        const DeviceCaps& caps() const override { return device_->caps(); }
        DeviceResult<StepResult> run(const Step& step) override {
            std::unique_lock lock(own_.mutex_);
            own_.changed_.wait(lock, [this] { return own_.steps_left_ > 0; });
            if (own_.steps_left_ != UINT64_MAX) --own_.steps_left_;
            lock.unlock();
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
        Own& own_;
    };

    std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t steps_left_ = UINT64_MAX;
    SystemClock clock_;
    ModelPtr model_;
    caf::actor_system_config config_;
    caf::actor_system system_;
    std::optional<OwnModel> own_;
};

std::unique_ptr<Subject> make_subject(const std::string& kind) {
    if (kind == "scripted") return std::make_unique<Scripted>();
    if (kind == "openai") return std::make_unique<Upstream>();
    return std::make_unique<Own>();
}
const std::vector<std::string> kinds = {"scripted", "openai", "neuron_core_sim"};

}  // namespace

TEST_CASE("text devices: a step ends once, and its deltas joined are its text") {
    for (const std::string& kind : kinds) {
        CAPTURE(kind);
        const auto subject = make_subject(kind);
        const auto sink = subject->submit(subject->quick());
        REQUIRE(sink->wait());
        REQUIRE(sink->result());
        CHECK(sink->ends() == 1);
        CHECK(sink->joined() == sink->result()->text);
        CHECK_FALSE(sink->result()->text.empty());
        CHECK(sink->result()->finish_reason == "stop");
        CHECK(sink->result()->usage.output_tokens > 0);
        CHECK_FALSE(sink->result()->model.empty());

        auto quiet = subject->quick();
        quiet.stream = false;
        const auto silent = subject->submit(std::move(quiet));
        REQUIRE(silent->wait());
        CHECK(silent->deltas().empty());
        CHECK(silent->result()->text == sink->result()->text);  // for one key, the same
    }
}

TEST_CASE("text devices: after a cancellation nothing is heard, and others are served") {
    for (const std::string& kind : kinds) {
        CAPTURE(kind);
        const auto subject = make_subject(kind);
        auto request = subject->slow();
        const uint64_t id = request.request_id;
        const auto sink = subject->submit(std::move(request));
        subject->began(*sink);
        subject->device().cancel(id);
        subject->device().cancel(id);  // harmless
        subject->device().cancel(id + 1'000'000);
        const size_t heard = sink->deltas().size();
        subject->let_go();
        const auto other = subject->submit(subject->quick());
        REQUIRE(other->wait());
        CHECK(other->result());
        CHECK(sink->ends() == 0);
        CHECK(sink->deltas().size() <= heard + 1);  // one call may have been under way
    }
}

TEST_CASE("text devices: a step whose deadline has passed fails as timed out, once") {
    for (const std::string& kind : kinds) {
        if (kind == "scripted") continue;  // its script has times of its own
        CAPTURE(kind);
        const auto subject = make_subject(kind);
        auto request = subject->quick();
        request.deadline = SystemClock().now_ms() - 1000;
        const auto sink = subject->submit(std::move(request));
        REQUIRE(sink->wait());
        REQUIRE(sink->error());
        CHECK(sink->error()->error_class == ErrorClass::timeout);
        CHECK(sink->ends() == 1);
    }
}
