#include "runtime/inference/nrt_protocol.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

std::string body_of(const std::string& frame) {
    REQUIRE(frame.size() > nrt_frame_header_bytes);
    const auto bytes = nrt_frame_bytes(frame.substr(0, nrt_frame_header_bytes));
    REQUIRE(bytes.ok());
    REQUIRE(*bytes == frame.size() - nrt_frame_header_bytes);
    return frame.substr(nrt_frame_header_bytes);
}

Step full_step() {
    Step step;
    step.id = 77;
    step.kind = StepKind::prefill;
    step.token_bucket = 128;
    step.row_bucket = 4;
    step.context_bucket = 2048;
    StepRow row;
    row.sequence = ~0ull;
    row.epoch = 3;
    row.tokens = {1, 2, 0xffffffff};
    row.position = 99;
    row.block_table = {5, block_none, 7};
    row.want_token = false;
    row.want_logits = true;
    row.sampling = {0.7f, 40, 0.95f};
    row.seed = 1ull << 63;
    row.allowed = {~0ull, 0, 1};
    step.rows = {row, {}};
    return step;
}

std::vector<std::string> every_request() {
    return {encode_nrt_request({1, full_step()}), encode_nrt_request({2, std::vector<BlockCopy>{{1, 2}, {3, 4}}}),
            encode_nrt_request({3, NrtExportBlock{9, 16}}), encode_nrt_request({4, NrtImportBlock{8, "block"}})};
}

std::vector<std::string> every_reply() {
    DeviceCaps caps;
    caps.kind = "nrt";
    caps.simulated = false;
    caps.vocabulary = 150;
    caps.prefill_buckets = {16, 32};
    caps.block_bytes = 1ull << 33;
    NrtStepped stepped;
    stepped.logits = {1.0f, -INFINITY, 3.0f};
    stepped.result.rows.resize(2);
    stepped.result.rows[0].token = 2;
    stepped.result.rows[1].logits = stepped.logits;
    stepped.result.cost.padded_tokens = 5;
    return {encode_nrt_reply({0, NrtReady{"1.2.3", caps}}),
            encode_nrt_reply({0, Error{ErrorCode::device_absent, "no core", "device"}}),
            encode_nrt_reply({5, DeviceError{DeviceAction::retry, DeviceFault::queue_full, "full", 3, 7}}),
            encode_nrt_reply({6, std::move(stepped)}),
            encode_nrt_reply({7, NrtDone{}}),
            encode_nrt_reply({8, NrtExported{std::string(1000, 'x')}}),
            encode_nrt_reply({9, NrtImported{16}})};
}

}  // namespace

TEST_CASE("nrt protocol: what is written is read") {
    const std::vector<std::string> requests = every_request(), replies = every_reply();
    auto request = decode_nrt_request(body_of(requests[0]));
    REQUIRE(request.ok());
    const Step& step = std::get<Step>(request->what);
    const Step sent = full_step();
    CHECK(request->call == 1);
    CHECK(step.id == 77);
    CHECK(step.kind == StepKind::prefill);
    CHECK(step.token_bucket == 128);
    CHECK(step.row_bucket == 4);
    CHECK(step.context_bucket == 2048);
    REQUIRE(step.rows.size() == 2);
    const StepRow &row = step.rows[0], &was = sent.rows[0];
    CHECK(row.sequence == was.sequence);
    CHECK(row.epoch == was.epoch);
    CHECK(row.tokens == was.tokens);
    CHECK(row.position == was.position);
    CHECK(row.block_table == was.block_table);
    CHECK(!row.want_token);
    CHECK(row.want_logits);
    CHECK(row.sampling == was.sampling);
    CHECK(row.seed == was.seed);
    CHECK(row.allowed == was.allowed);
    CHECK(step.rows[1].want_token);
    const auto copies = decode_nrt_request(body_of(requests[1]));
    CHECK(std::get<std::vector<BlockCopy>>((*copies).what)[1].to == 4);
    CHECK(std::get<NrtExportBlock>((*decode_nrt_request(body_of(requests[2]))).what).tokens == 16);
    CHECK(std::get<NrtImportBlock>((*decode_nrt_request(body_of(requests[3]))).what).bytes == "block");

    auto ready = decode_nrt_reply(body_of(replies[0]));
    CHECK(std::get<NrtReady>(ready->what).version == "1.2.3");
    CHECK(std::get<NrtReady>(ready->what).caps.prefill_buckets == std::vector<uint32_t>{16, 32});
    CHECK(std::get<NrtReady>(ready->what).caps.block_bytes == 1ull << 33);
    auto refused = decode_nrt_reply(body_of(replies[1]));
    CHECK(std::get<Error>(refused->what).code == ErrorCode::device_absent);
    CHECK(std::get<Error>(refused->what).message == "no core");
    auto failed = decode_nrt_reply(body_of(replies[2]));
    CHECK(std::get<DeviceError>(failed->what).action == DeviceAction::retry);
    CHECK(std::get<DeviceError>(failed->what).fault == DeviceFault::queue_full);
    CHECK(std::get<DeviceError>(failed->what).row == 3);
    CHECK(std::get<DeviceError>(failed->what).status == 7);
    auto stepped = decode_nrt_reply(body_of(replies[3]));
    const StepResult& result = std::get<NrtStepped>(stepped->what).result;
    CHECK(result.rows[0].token == 2);
    CHECK(!result.rows[1].token);
    REQUIRE(result.rows[1].logits.size() == 3);
    CHECK(result.rows[1].logits[1] == -INFINITY);
    CHECK(result.rows[1].logits[2] == 3.0f);
    CHECK(result.cost.padded_tokens == 5);
    CHECK(std::get<NrtExported>((*decode_nrt_reply(body_of(replies[5]))).what).bytes.size() == 1000);
    CHECK(std::get<NrtImported>((*decode_nrt_reply(body_of(replies[6]))).what).tokens == 16);
}

TEST_CASE("nrt protocol: frames are bounded, and bytes that are no message are an answer") {
    const std::string frame = every_request()[0];
    const auto header = [&](size_t at, char value) {
        std::string bytes = frame.substr(0, nrt_frame_header_bytes);
        bytes[at] = value;
        return nrt_frame_bytes(bytes);
    };
    CHECK(!header(0, 'X').ok());
    CHECK(!header(7, 0x7f).ok());
    CHECK(!header(4, 3).ok());
    CHECK(!nrt_frame_bytes("").ok());
    CHECK(encode_nrt_request({1, NrtImportBlock{1, std::string(limits::nrt_frame_bytes_max, 'x')}}).empty());
    CHECK(encode_nrt_reply({1, NrtExported{std::string(limits::nrt_frame_bytes_max + 1, 'x')}}).empty());

    std::mt19937 random(1);
    for (const std::string& whole : every_request()) {
        const std::string body = body_of(whole);
        for (size_t size = 0; size < body.size(); ++size) (void)decode_nrt_request(body.substr(0, size)).ok();
        for (int round = 0; round < 2000; ++round) {
            std::string bytes = body;
            for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = char(random());
            (void)decode_nrt_request(bytes).ok();
        }
        CHECK(!decode_nrt_request(body.substr(0, 8)).ok());
    }
    for (const std::string& whole : every_reply()) {
        const std::string body = body_of(whole);
        for (int round = 0; round < 2000; ++round) {
            std::string bytes = body;
            for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] = char(random());
            (void)decode_nrt_reply(bytes).ok();
        }
    }
    CHECK(!decode_nrt_request("").ok());
    CHECK(!decode_nrt_request("1234567").ok());
    // A list of a million rows of no bytes, wherever a word can be such a list's tag.
    Step none = full_step();
    none.rows.clear();
    const std::string small = body_of(encode_nrt_request({1, none}));
    size_t refused = 0;
    for (size_t at = 8; at < small.size(); at += 8) {
        std::string bytes = small;
        const uint64_t tag = uint64_t(1 << 20) << 2;
        std::memcpy(bytes.data() + at, &tag, sizeof tag);
        const auto read = decode_nrt_request(bytes);
        refused += !read.ok() && read.error().message.find("too long") != std::string::npos;
    }
    CHECK(refused == 1);
    // Enumerators beyond their lists.
    Step step = full_step();
    step.kind = StepKind(3);
    CHECK(!decode_nrt_request(body_of(encode_nrt_request({1, step}))).ok());
    const DeviceError bad_action{DeviceAction(3), DeviceFault::hardware, "", std::nullopt, 0};
    CHECK(!decode_nrt_reply(body_of(encode_nrt_reply({1, bad_action}))).ok());
    const DeviceError bad_fault{DeviceAction::retry, DeviceFault(11), "", std::nullopt, 0};
    CHECK(!decode_nrt_reply(body_of(encode_nrt_reply({1, bad_fault}))).ok());
}
