#include <doctest/doctest.h>

#include "gateway/door_fixture.h"

using namespace mainstay;

namespace {

ModelInfo model_of(const std::string& name, uint32_t workers) {
    ModelInfo model;
    model.model = name;
    model.state = ModelState::ready;
    model.context_max = 768;
    model.block_tokens = 16;
    model.block_bytes = 4096;
    model.host_blocks_max = 256;
    model.scheduler.waiting = 4;
    model.scheduler.pool.device_hit_blocks = 30;
    model.scheduler.pool.host_hit_blocks = 10;
    model.scheduler.pool.host_blocks = 8;
    for (uint32_t i = 0; i < workers; ++i) {
        WorkerInfo worker;
        worker.name = name + "/" + std::to_string(i);
        worker.index = i;
        worker.state = WorkerState::up;
        worker.kind = "neuron_core_sim";
        worker.hardware = "trn2";
        worker.device.steps = 10;
        worker.device.device_s = 1.25;
        worker.device.joules = 300.5;
        worker.device.blocks_total = 64;
        worker.device.blocks_free = 20;
        model.workers.push_back(worker);
    }
    for (uint64_t i = 0; i < 150; ++i) {
        ModelInfo::DecisionEntry entry;
        entry.at = TimeMs(1000 + i);
        entry.kind = "placed";
        if (i % 3 != 2) entry.worker = name + "/" + std::to_string(i % 3);  // the third kind concerns no worker
        entry.reason = "decision " + std::to_string(i);
        model.decisions.push_back(entry);
    }
    return model;
}

}  // namespace

TEST_CASE("workers: all are listed, and what a simulated device tells is labelled") {
    RunningDoor running;
    CHECK(running.ask("GET", "/v1/workers").json().at("data").as_array().empty());
    running.bridge.workers = {model_of("tiny", 2), model_of("org/other", 1)};
    running.bridge.workers[1].workers[0].simulated = false;
    running.bridge.workers[1].workers[0].state = WorkerState::down;
    running.bridge.workers[1].workers[0].problem = "its \"device\" is gone";
    const auto list = running.ask("GET", "/v1/workers").json();
    CHECK(list.at("object") == "list");
    const auto& data = list.at("data").as_array();
    REQUIRE(data.size() == 3);
    CHECK(data[0].at("name") == "tiny/0");
    CHECK(data[0].at("device").at("simulated") == true);
    CHECK(data[0].at("accelerator").at("seconds") == 1.25);
    CHECK(data[0].at("accelerator").at("joules") == 300.5);
    CHECK(data[0].at("accelerator").at("simulated") == true);
    CHECK(data[0].at("accelerator").at("power") == "assumed");
    CHECK(data[0].at("problem").is_null());
    CHECK(data[2].at("state") == "down");
    CHECK(data[2].at("problem") == "its \"device\" is gone");
    CHECK(data[2].at("accelerator").at("simulated") == false);
}

TEST_CASE("workers: one is shown with its model's figures, its KV tiers and the newest decisions") {
    RunningDoor running;
    running.bridge.workers = {model_of("tiny", 2), model_of("org/other", 1)};
    const auto shown = running.ask("GET", "/v1/workers/tiny/1").json();
    CHECK(shown.at("index") == 1);
    CHECK(shown.at("model_figures").at("sequences").at("waiting") == 4);
    const auto& tiers = shown.at("model_figures").at("kv").at("tiers").as_array();
    REQUIRE(tiers.size() == 3);
    CHECK(tiers[0].at("tier") == "device");
    CHECK(tiers[0].at("blocks") == 88);  // of both workers
    CHECK(tiers[0].at("blocks_max") == 128);
    CHECK(tiers[0].at("hit_blocks") == 30);
    CHECK(tiers[1].at("tier") == "host");
    CHECK(tiers[1].at("blocks") == 8);
    CHECK(tiers[1].at("blocks_max") == 256);
    CHECK(tiers[2].at("blocks_max") == 0);
    const auto& decisions = shown.at("decisions").as_array();
    CHECK(decisions.size() == 100);
    CHECK(decisions.back().at("reason") == "decision 149");
    for (size_t i = 0; i < decisions.size(); ++i) {
        CHECK((decisions[i].at("worker").is_null() || decisions[i].at("worker") == "tiny/1"));
        if (i > 0) CHECK(decisions[i - 1].at("at_ms").to_number<int>() < decisions[i].at("at_ms").to_number<int>());
    }
    CHECK(running.ask("GET", "/v1/workers/org%2Fother/0").json().at("name") == "org/other/0");
    for (const auto* path : {"/v1/workers/tiny/2", "/v1/workers/tiny/01", "/v1/workers/tiny/x", "/v1/workers/none/0"}) {
        CAPTURE(path);
        const auto missing = running.ask("GET", path);
        CHECK(missing.status == 404);
        CHECK(missing.code() == "not_found");
        CHECK(missing.body.find("tiny/0, tiny/1, org/other/0") != std::string::npos);
    }
}

TEST_CASE("workers: one is drained, and works again after") {
    RunningDoor running;
    running.bridge.workers = {model_of("tiny", 2)};
    CHECK(running.ask("POST", "/v1/workers/tiny/1/drain").json().at("state") == "drained");
    CHECK(running.ask("GET", "/v1/workers/tiny/1").json().at("state") == "drained");
    CHECK(running.ask("GET", "/v1/workers/tiny/0").json().at("state") == "up");
    CHECK(running.ask("POST", "/v1/workers/tiny/1/drain", R"({"undo":true})").json().at("state") == "up");
    CHECK(running.ask("POST", "/v1/workers/tiny/1/drain", R"({"undo":false})").json().at("state") == "drained");
    CHECK(running.ask("POST", "/v1/workers/tiny/1/drain", R"({"undo":1})").code() == "invalid_request");
    CHECK(running.ask("POST", "/v1/workers/tiny/1/drain", R"({"undoo":true})").code() == "unknown_field");
    CHECK(running.ask("POST", "/v1/workers/tiny/7/drain").code() == "not_found");
    CHECK(running.ask("POST", "/v1/workers/tiny/-1/drain").body.find("tiny/0, tiny/1") != std::string::npos);
    CHECK(running.ask("GET", "/v1/workers/tiny/1/drain").code() == "method_not_allowed");
}
