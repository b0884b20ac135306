// The Neuron runtime over its stub, in this process: what the library, the folder and the graphs may get wrong. What
// every device promises is in device_contract_test.cpp; a worker that dies is in nrt_process_test.cpp.
#include "runtime/inference/nrt_device.h"

#include <doctest/doctest.h>

#include "runtime/inference/kernels.h"
#include "runtime/inference/nrt_model.h"
#include "tests/support/device_kinds.h"

using namespace mainstay;

namespace {

/// What the stub is told to do, as long as this exists.
class StubFault {
  public:
    explicit StubFault(const std::string& what = "") {
        set(what);
        ::setenv("NEURON_STUB_FAULTS", path().c_str(), 1);
    }
    ~StubFault() { ::unsetenv("NEURON_STUB_FAULTS"); }
    void set(const std::string& what) { std::ofstream(path()) << what << "\n"; }
    std::string path() const { return (folder_.path / "faults").string(); }

  private:
    TestFolder folder_;
};

/// The error of a folder that is wrong in one place.
template <class Change>
Error refused(Change change) {
    TestFolder folder;
    StubFolder graphs = contract_graphs();
    graphs.prefill_buckets = {16};
    graphs.decode_buckets = {2};
    graphs.context_buckets = {32};
    change(graphs);
    graphs.write(folder.path);
    auto device = make_nrt_device(stub_runtime(), folder.path.string());
    REQUIRE(!device.ok());
    return device.error();
}

}  // namespace

TEST_CASE("nrt: each status of the runtime has its action and its fault") {
    using enum DeviceAction;
    const auto check = [](std::initializer_list<int> codes, DeviceAction action, DeviceFault fault) {
        for (const int code : codes) {
            INFO("status ", code);
            const DeviceError error = nrt_error("execute", code);
            CHECK(error.action == action);
            CHECK(error.fault == fault);
            CHECK(error.status == code);
            CHECK(error.message.find("nrt_execute: NRT_") == 0);
            CHECK(error.message.find("(" + std::to_string(code) + ")") != std::string::npos);
        }
    };
    check({7, 15, 1005, 1100}, retry, DeviceFault::queue_full);
    check({4}, retry, DeviceFault::resource);
    check({2, 3, 1002}, fail_request, DeviceFault::bad_shape);
    check({1006}, fail_request, DeviceFault::bad_block_table);
    check({1003}, fail_request, DeviceFault::numeric);
    check({5}, restart_worker, DeviceFault::timeout);
    check({1, 6, 101, 1004, 1200, 1201, 1202, 1203, 1204, 1205, 1206}, restart_worker, DeviceFault::hardware);
    check({9, 10, 13, 14}, restart_worker, DeviceFault::unsupported);
    check({11}, restart_worker, DeviceFault::resource);
    // A code of a later version is not trusted.
    for (const int code : {8, 12, 999, 1207, -1}) {
        CHECK(nrt_error("execute", code).action == restart_worker);
        CHECK(nrt_error("execute", code).fault == DeviceFault::hardware);
    }
    CHECK(nrt_start_error("load", 9, "x").code == ErrorCode::device_absent);
    CHECK(nrt_start_error("load", 10, "x").code == ErrorCode::model_not_loadable);
    CHECK(nrt_start_error("load", 10, "x.neff").message == "x.neff: nrt_load: NRT_UNSUPPORTED_NEFF_VERSION (10)");
}

TEST_CASE("nrt: a library that is not there is absent, and the message says what was looked for") {
    const auto nowhere = NrtLibrary::open("/nonexistent/libnrt.so.1");
    REQUIRE(!nowhere.ok());
    CHECK(nowhere.error().code == ErrorCode::device_absent);
    CHECK(nowhere.error().message.find("/nonexistent/libnrt.so.1") != std::string::npos);
    const auto usual = NrtLibrary::open("");
    if (!usual.ok()) {  // where there is a real one, this is not the place to start it
        CHECK(usual.error().code == ErrorCode::device_absent);
        CHECK(usual.error().message.find("libnrt.so.1") != std::string::npos);
        CHECK(usual.error().message.find("/opt/aws/neuron/lib") != std::string::npos);
    }
    const auto old = NrtLibrary::open(stub_library("libnrt_stub_old.so"));
    REQUIRE(!old.ok());
    CHECK(old.error().code == ErrorCode::device_absent);
    CHECK(old.error().message.find("lacks nrt_execute") != std::string::npos);
    CHECK(old.error().message.find("nrt_load") == std::string::npos);
}

TEST_CASE("nrt: a machine without cores, or a runtime that does not start, is absent") {
    const auto library = NrtLibrary::open(stub_library());
    REQUIRE(library.ok());
    for (const char* fault : {"cores none", "get_total_vnc_count 1", "init 1", "init 5"}) {
        INFO(fault);
        const StubFault stub(fault);
        const auto runtime = NrtRuntime::start(*library);
        REQUIRE(!runtime.ok());
        CHECK(runtime.error().code == ErrorCode::device_absent);
        CHECK(runtime.error().message.find("libnrt_stub.so") != std::string::npos);
    }
    ::setenv("NEURON_RT_VISIBLE_CORES", "", 1);
    const auto runtime = NrtRuntime::start(*library);
    ::unsetenv("NEURON_RT_VISIBLE_CORES");
    REQUIRE(!runtime.ok());
    CHECK(runtime.error().message.find("none of 2 NeuronCores is visible") != std::string::npos);
}

TEST_CASE("nrt: a manifest that does not hold together is refused by key") {
    const auto param = [](const char* find, const char* put) {
        const Error error = refused([&](StubFolder& graphs) {
            graphs.find = find;
            graphs.put = put;
        });
        CHECK(error.code == ErrorCode::model_not_loadable);
        CHECK(error.message.find("nrt_model.json") == 0);
        return error.param;
    };
    CHECK(param("\"format\": 1", "\"format\": 2") == "format");
    CHECK(param("\"vocabulary\": 150", "\"vocabulary\": 0") == "vocabulary");
    CHECK(param("\"vocabulary\": 150, ", "") == "vocabulary");
    CHECK(param("\"block_tokens\": 16", "\"block_tokens\": \"16\"") == "block_tokens");
    CHECK(param("\"block_tokens\": 16", "\"block_tokens\": 12") == "graphs[0].context");
    CHECK(param("\"block_count\": 49", "\"block_count\": 2") == "block_count");
    CHECK(param("\"deterministic\": true", "\"deterministic\": 1") == "deterministic");
    CHECK(param("\"deterministic\"", "\"determined\"") == "determined");
    CHECK(param("\"positions\": \"position_ids\", ", "") == "inputs.positions");
    CHECK(param("\"position_ids\"", "\"input_ids\"") == "inputs");
    CHECK(param("\"logits\": \"logits\"", "\"token\": \"x\"") == "outputs.logits");
    CHECK(param("\"output\": \"v_cache.1.out\"", "\"output\": \"\"") == "kv[3].output");
    CHECK(param("\"kind\": \"prefill\"", "\"kind\": \"mixed\"") == "graphs[0].kind");
    CHECK(param("\"tokens\": 16, \"context\"", "\"rows\": 16, \"context\"") == "graphs[0].tokens");
    CHECK(param("\"file\": \"prefill", "\"file\": \"../prefill") == "graphs[0].file");
    CHECK(param("\"file\": \"decode", "\"core\": 1, \"file\": \"decode") == "graphs[1].core");
    CHECK(param("\"context\": 32", "\"context\": 64") == "graphs");  // a combination has no graph
    CHECK(param("\"kind\": \"decode\", \"rows\": 2", "\"kind\": \"prefill\", \"tokens\": 16") == "graphs");
    CHECK(param("{\"format\"", "{{") == "");
    CHECK(make_nrt_device(stub_runtime(), "/nonexistent").error().code == ErrorCode::model_not_loadable);
    CHECK(refused([](StubFolder& graphs) {
              graphs.find = "decode_2_32.neff";
              graphs.put = "gone.neff";
          }).param.find("gone.neff") != std::string::npos);
}

TEST_CASE("nrt: a graph whose tensors are not what the manifest says is refused by tensor") {
    const auto error = [](const char* line) {
        const Error got = refused([&](StubFolder& graphs) { graphs.more_lines = std::string(line) + "\n"; });
        CHECK(got.code == ErrorCode::model_not_loadable);
        CHECK(got.message.find("prefill_16_32.neff: tensor " + got.param) == 0);
        return got;
    };
    CHECK(error("drop 0 slot_mapping").param == "slot_mapping");
    CHECK(error("tensor 0 input_ids 12 16").message.find("int64[16], not int32[16]") != std::string::npos);
    CHECK(error("tensor 0 position_ids 8 32").message.find("int32[32], not int32[16]") != std::string::npos);
    CHECK(error("tensor 0 position_ids 8 16 1").param == "position_ids");
    CHECK(error("tensor 0 block_tables 8 1 4").message.find("int32[1,4], not int32[1,2]") != std::string::npos);
    CHECK(error("tensor 0 last_token 8 2").param == "last_token");
    CHECK(error("tensor 1 logits 10 1 151").message.find("float32[1,151]") != std::string::npos);
    CHECK(error("tensor 1 logits 8 1 150").param == "logits");
    CHECK(error("tensor 1 logits 14 1 150").message.find("type 14") != std::string::npos);
    CHECK(error("drop 1 k_cache.1.out").param == "k_cache.1.out");
    CHECK(error("tensor 1 v_cache.0.out 6 49 16 2 20").message.find("but its input v_cache.0 is") != std::string::npos);
    CHECK(error("tensor 0 k_cache.0 10 48 16 2 20\ntensor 1 k_cache.0.out 10 48 16 2 20").param == "k_cache.0");
    CHECK(error("tensor 0 weights 6 80 80").message.find("not named in nrt_model.json") != std::string::npos);
    CHECK(error("tensor 1 hidden 6 16 80").param == "hidden");
    // One graph alone has other blocks than the rest.
    TestFolder folder;
    contract_graphs().write(folder.path);
    std::ofstream(folder.path / "decode_2_64.neff", std::ios::app)
        << "tensor 0 k_cache.1 10 49 16 4 10\ntensor 1 k_cache.1.out 10 49 16 4 10\n";
    const auto mixed = make_nrt_device(stub_runtime(), folder.path.string());
    REQUIRE(!mixed.ok());
    CHECK(mixed.error().param == "k_cache.1");
    CHECK(mixed.error().message.find("decode_2_64.neff") == 0);
    CHECK(mixed.error().message.find("in another graph") != std::string::npos);
}

TEST_CASE("nrt: what fails while it loads is told apart: taken cores, old graphs, full memory") {
    TestFolder folder;
    contract_graphs().write(folder.path);
    StubFault stub;
    const auto error = [&](const char* fault) {
        stub.set(fault);
        const auto device = make_nrt_device(stub_runtime(), folder.path.string());
        REQUIRE(!device.ok());
        return device.error();
    };
    CHECK(error("load 9").code == ErrorCode::device_absent);
    CHECK(error("load 10").code == ErrorCode::model_not_loadable);
    CHECK(error("load 10").message.find("prefill_16_32.neff: nrt_load: NRT_UNSUPPORTED_NEFF_VERSION") !=
          std::string::npos);
    CHECK(error("get_model_tensor_info 2").code == ErrorCode::model_not_loadable);
    CHECK(error("tensor_allocate 4").message.find("NRT_RESOURCE") != std::string::npos);
    CHECK(error("allocate_tensor_set 1").code == ErrorCode::model_not_loadable);
    CHECK(error("add_tensor_to_tensor_set 2").code == ErrorCode::model_not_loadable);
    CHECK(error("tensor_memset 6").code == ErrorCode::device_absent);
    CHECK(error("memory full").param == "memory");
    std::ofstream(folder.path / "prefill_16_32.neff") << "no graph";
    CHECK(error("").message.find("NRT_UNSUPPORTED_NEFF_VERSION") != std::string::npos);
    std::ofstream(folder.path / "prefill_16_32.neff") << "";
    CHECK(error("").message.find("empty") != std::string::npos);
}

TEST_CASE("nrt: a step that failed may run again, with the bits that it would have had") {
    StubFault stub;
    const auto device = required(make_nrt_device(stub_runtime(), contract_graph_folder().string()));
    std::mt19937 random(9);
    const std::vector<TokenId> tokens = random_tokens(20, random);
    const std::vector<Logits> expected = run_alone(*device, tokens, {1, 2});
    const auto sound = required(make_nrt_device(stub_runtime(), contract_graph_folder().string()));
    run_alone(*sound, {tokens.begin(), tokens.begin() + 19}, {3, 4});
    const Step last = step_on(*sound, {row_of({tokens[19]}, 19, {3, 4})});
    for (const char* function : {"execute", "tensor_write", "tensor_read"})
        for (const int code : {2, 4, 7, 1002, 1005, 1006, 1100, 5, 6, 101, 1200, 1206}) {
            INFO(function, " ", code);
            stub.set(std::string(function) + " " + std::to_string(code));
            const auto failed = sound->run(last);
            REQUIRE(!failed.ok());
            CHECK(failed.error().status == code);
            CHECK(failed.error().action == nrt_status_meaning(code).action);
            CHECK(failed.error().message.find(std::string("nrt_") + function) == 0);
        }
    for (const char* function : {"tensor_write", "tensor_read", "tensor_copy"}) {
        stub.set("");
        const std::string block = *sound->export_block(3, 16);
        stub.set(std::string(function) + " 1203");
        const bool read = std::string(function) == "tensor_read", write = std::string(function) == "tensor_write";
        CHECK(sound->export_block(3, 16).ok() == !read);
        CHECK(sound->import_block(5, block).ok() == !write);
        CHECK(sound->copy_blocks(std::vector<BlockCopy>{{3, 6}}).ok() == (read || write));
    }
    stub.set("");
    auto done = sound->run(last);
    REQUIRE(done.ok());
    CHECK(same_bits(done->rows[0].logits, expected[19]));
}

TEST_CASE("nrt: numbers that are none name the row that has them") {
    StubFault stub;
    const auto device = required(make_nrt_device(stub_runtime(), contract_graph_folder().string()));
    std::vector<StepRow> rows;
    for (uint32_t r = 0; r < 3; ++r) rows.push_back(row_of({r}, 0, {BlockId(1 + r)}));
    for (const char* fault : {"execute nan:1", "execute nan_status:1"}) {
        INFO(fault);
        stub.set(fault);
        const auto failed = device->run(step_on(*device, rows));
        REQUIRE(!failed.ok());
        CHECK(failed.error().fault == DeviceFault::numeric);
        CHECK(failed.error().action == DeviceAction::fail_request);
        CHECK(failed.error().row == 1);
        CHECK(failed.error().status == (std::string(fault) == "execute nan:1" ? 0 : 1003));
        // Nobody looks at this row's logits; but where the core says that something was none, no row is trusted.
        std::vector<StepRow> blind = rows;
        blind[1].want_token = blind[1].want_logits = false;
        CHECK(device->run(step_on(*device, blind)).ok() == (std::string(fault) == "execute nan:1"));
        // Without the row the others go on.
        stub.set("");
        CHECK(device->run(step_on(*device, {rows[0], rows[2]})).ok());
    }
}

TEST_CASE("nrt: logits in half precision, of every token, and a runtime without what is optional") {
    TestFolder folder;
    StubFolder graphs = contract_graphs();
    graphs.logits_type = int(NrtType::bfloat16);
    graphs.last_token = false;
    graphs.write(folder.path);
    const auto device = required(make_nrt_device(stub_runtime(), folder.path.string()));
    const auto whole = device_kinds()[0].open();
    std::mt19937 random(12);
    const std::vector<StepRow> rows{row_of(random_tokens(21, random), 0, {3, 4}), row_of({5}, 0, {6})};
    const std::vector<RanRow> narrow = run_rows(*device, rows), wide = run_rows(*whole, rows);
    for (size_t r = 0; r < rows.size(); ++r)
        for (uint32_t i = 0; i < contract_vocabulary; ++i)
            REQUIRE(narrow[r].logits[i] == float_of_bf16(bf16_of(wide[r].logits[i])));

    const auto bare = required(make_nrt_device(stub_runtime("libnrt_stub_bare.so"), contract_graph_folder().string()));
    const std::vector<TokenId> tokens = random_tokens(20, random);
    const std::vector<Logits> expected = run_alone(*whole, tokens, {1, 2});
    run_alone(*bare, {tokens.begin(), tokens.begin() + 17}, {1, 2});
    REQUIRE(bare->copy_blocks(std::vector<BlockCopy>{{1, 7}, {2, 9}}).ok());
    const auto rest = row_of({tokens.begin() + 17, tokens.end()}, 17, {7, 9});
    CHECK(same_bits(run_rows(*bare, {rest})[0].logits, expected[19]));
}

TEST_CASE("nrt: blocks are empty before they are written to, whatever the device's memory had in it") {
    for (const char* library : {"libnrt_stub.so", "libnrt_stub_bare.so"}) {
        const auto device = required(make_nrt_device(stub_runtime(library), contract_graph_folder().string()));
        for (const BlockId block : {1, 17, int(contract_blocks) - 1}) {
            const std::string bytes = *device->export_block(block, 16);
            CHECK(bytes.find_first_not_of('\0', 64) == std::string::npos);
        }
    }
}

TEST_CASE("nrt: blocks belong to these graphs and this manifest") {
    TestFolder folder;
    StubFolder graphs = contract_graphs();
    graphs.more_lines = "# compiled anew\n";
    graphs.write(folder.path);
    const auto one = required(make_nrt_device(stub_runtime(), contract_graph_folder().string()));
    const auto two = required(make_nrt_device(stub_runtime(), folder.path.string()));
    CHECK(one->caps().model_hash != two->caps().model_hash);
    CHECK(one->caps().kernel_id != two->caps().kernel_id);
    run_alone(*one, {1, 2, 3}, {1});
    CHECK(two->import_block(1, *one->export_block(1, 3)).error().fault == DeviceFault::bad_bytes);
}
