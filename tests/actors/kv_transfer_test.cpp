// KV blocks between two nodes: real token schedulers with the shipped small model and real transfers, on one thread
// with virtual time; what is between the nodes is a queue that the test empties, so that each race is driven by hand.
#include "actors/kv_transfer.h"

#include <doctest/doctest.h>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <deque>

#include "actors/kv_message.h"
#include "actors/own_model.h"
#include "runtime/base/digest.h"
#include "support/model_sink.h"
#include "support/scratch_directory.h"
#include "support/tiny_model.h"

using namespace mainstay;

namespace {

constexpr uint16_t shards = 4;
ModelSpec tiny() {
    ModelSpec model = tiny_model();
    model.version = 1;
    return model;
}

/// Of the one shard that is moved, or not.
SessionKey session_of(uint64_t n, ShardId shard = ShardId{1}) {
    for (uint64_t family = n << 16;; ++family) {
        const SessionKey key{TenantId{1}, SessionId{FamilyId{family}, n, n}};
        if (shard_of(key, shards) == shard) return key;
    }
}

struct Config : caf::actor_system_config {
    Config() {
        set("scheduler.policy", caf::atom("testing"));
        set("logger.verbosity", caf::atom("quiet"));
    }
};

class Reply final : public CallReply {
  public:
    explicit Reply(std::function<void(Result<std::string>)> done) : done_(std::move(done)) {}
    void part(std::string bytes) override { bytes_ += bytes; }
    void end(std::optional<Error> failure) override {
        const auto done = std::exchange(done_, nullptr);
        REQUIRE(done);
        if (failure)
            done(std::move(*failure));
        else
            done(std::move(bytes_));
    }
    bool cancelled() const override { return false; }

  private:
    std::string bytes_;
    std::function<void(Result<std::string>)> done_;
};

/// A request between nodes that was not delivered yet.
struct Asked {
    NodeUuid to{};
    std::string request;
    std::function<void(Result<std::string>)> done;
};

struct Two;

struct Node {
    Node(Two& two, uint8_t number);
    std::shared_ptr<RecordingSink> ask(const SessionKey& session, const std::string& text);
    Usage usage(const SessionKey& session, const std::string& text);
    ModelInfo info();
    double metric(const std::string& series);

    Two& two;
    const NodeUuid uuid;
    ScratchDirectory folder;  // of its KV tier
    Metrics metrics;
    ModelScheduler models{metrics, 8};
    ModelPtr model;
    std::optional<KvTransfer> transfer;
    size_t moved = 0;
};

struct Two {
    /// Of the second node; the first has what `tiny` says.
    explicit Two(ModelSpec there = tiny(), ModelSpec here = tiny())
        : system(config), first(*this, 1), second(*this, 2) {
        first.model = std::make_shared<const ModelSpec>(std::move(here));
        second.model = std::make_shared<const ModelSpec>(std::move(there));
        for (Node* node : {&first, &second}) node->models.load(node->model);
        settle();
    }
    ~Two() {
        for (Node* node : {&first, &second}) {
            node->transfer->stop();
            node->models.stop();
        }
        settle();
        system.await_all_actors_done();
    }
    caf::scheduler::test_coordinator& coordinator() {
        return dynamic_cast<caf::scheduler::test_coordinator&>(system.scheduler());
    }
    void settle() { coordinator().run(); }
    /// One request goes over the wire and is answered; `change` may do anything to its bytes.
    void deliver(const std::function<void(std::string&)>& change = {}) {
        Asked one = std::move(wire.front());
        wire.pop_front();
        if (change) change(one.request);
        log.push_back(one.request);
        Node& node = one.to == first.uuid ? first : second;
        auto done = [this, done = std::move(one.done)](Result<std::string> answer) {
            if (answered) answered();
            done(std::move(answer));
        };
        node.transfer->serve(std::move(one.request), std::make_shared<Reply>(std::move(done)));
        settle();
    }
    void deliver_all(const std::function<void(std::string&)>& change = {}) {
        settle();
        while (!wire.empty()) deliver(change);
    }
    void advance(TimeMs by) {
        clock.advance(by);
        coordinator().advance_time(std::chrono::milliseconds(by));
        settle();
    }
    /// The whole move of shard 1 to the second node.
    void move(const std::function<void(std::string&)>& change = {}) {
        CHECK(first.transfer->busy(ShardId{1}, second.uuid));
        deliver_all(change);
        CHECK_FALSE(first.transfer->busy(ShardId{1}, second.uuid));
    }
    /// Blocks that were on the wire, by session.
    std::vector<BlockName> sent() const {
        std::vector<BlockName> out;
        for (const std::string& bytes : log) {
            const auto request = decode_kv_request(bytes);
            if (!request) continue;
            if (const auto* blocks = std::get_if<KvBlocks>(&*request))
                out.insert(out.end(), blocks->blocks.begin(), blocks->blocks.end());
        }
        return out;
    }

    ManualClock clock;
    Config config;
    caf::actor_system system;
    std::deque<Asked> wire;
    std::vector<std::string> log;
    uint64_t requests = 0;
    bool cut = false;                // nothing arrives
    std::function<void()> answered;  // at the moment of an answer
    Node first, second;
};

Node::Node(Two& both, uint8_t number) : two(both), uuid{number} {
    models.attach(two.system, {models_directory, folder / "", &two.clock, false});
    KvTransferConfig of;
    of.models = &models;
    of.clock = &two.clock;
    of.shards = shards;
    of.ask = [this](const NodeUuid& to, std::string request, uint32_t, std::function<void(Result<std::string>)> done) {
        if (two.cut) return done(Error{ErrorCode::misdirected, "no link", {}});
        two.wire.push_back({to, std::move(request), std::move(done)});
    };
    of.any_model = [] { return true; };
    of.others = [this] { return std::vector{uuid == two.first.uuid ? two.second.uuid : two.first.uuid}; };
    of.moved = [this] { ++moved; };
    transfer.emplace(two.system, std::move(of));
    models.on_deleted([this](const SessionKey& session) { transfer->session_deleted(session); });
}

std::shared_ptr<RecordingSink> Node::ask(const SessionKey& session, const std::string& text) {
    Item item;
    item.role = Role::user;
    item.text = text;
    ModelRequest request;
    request.request_id = ++two.requests;
    request.model = model;
    request.session = request.root = session;
    request.prompt.open = {std::make_shared<const Item>(std::move(item))};
    request.options = R"({"temperature":0})";
    request.max_output_tokens = 40;
    request.idempotency_key = "step " + std::to_string(two.requests);
    auto sink = std::make_shared<RecordingSink>();
    models.own_model_named(model->name)->submit(std::move(request), sink);
    two.settle();
    if (const auto error = sink->error()) FAIL(error->message);
    REQUIRE(sink->ends() == 1);
    return sink;
}

Usage Node::usage(const SessionKey& session, const std::string& text) { return ask(session, text)->result()->usage; }

ModelInfo Node::info() {
    std::optional<ModelInfo> got;
    models.read_models([&](std::vector<ModelInfo> infos) { got = infos.at(0); });
    two.settle();
    REQUIRE(got.has_value());
    return *got;
}

double Node::metric(const std::string& series) {
    two.advance(1000);
    const std::string text = metrics.expose();
    const size_t at = text.find("\n" + series + " ");
    INFO(series);
    REQUIRE(at != std::string::npos);
    return std::stod(text.substr(at + series.size() + 2));
}

uint64_t outcome(Node& node, KvOutcome which) { return node.info().transfer.blocks[size_t(which)]; }

const std::string long_text =
    "tell me a joke about a very long question, which has so many words that its tokens fill a few blocks of the cache";

}  // namespace

TEST_CASE("kv transfer: a warm session computes on the next node what it would have computed here, and says the same") {
    Two two;
    const auto mine = session_of(1);
    const auto said = two.first.ask(mine, long_text)->result()->text;
    const auto stays = two.first.usage(mine, long_text);
    CHECK(stays.cached_tokens >= 32);
    two.move();
    CHECK(two.first.moved == 1);
    const auto result = *two.second.ask(mine, long_text)->result();
    CHECK(result.text == said);
    CHECK(result.usage.cached_tokens == stays.cached_tokens);
    CHECK(two.second.info().scheduler.pool.load_failed == 0);
    const auto sent = outcome(two.first, KvOutcome::taken);
    CHECK(sent > 2);
    CHECK(two.second.info().transfer.received_blocks == sent);
    CHECK(two.second.info().transfer.received_bytes == two.first.info().transfer.sent_bytes);
    const std::string of = "{model=\"mainstay_tiny\"";
    CHECK(two.first.metric("mainstay_model_kv_transfer_blocks_total" + of + ",outcome=\"taken\"}") == double(sent));
    CHECK(two.second.metric("mainstay_model_kv_received_blocks_total" + of + "}") == double(sent));
    const auto bytes = [&](Node& node, const std::string& direction) {
        return node.metric("mainstay_model_kv_transfer_bytes_total{direction=\"" + direction +
                           "\",model=\"mainstay_tiny\"}");
    };
    CHECK(bytes(two.second, "received") == bytes(two.first, "sent"));
    CHECK(bytes(two.first, "sent") > 0);
}

TEST_CASE("kv transfer: without one the next node computes everything") {
    Two two;
    const auto first = two.first.usage(session_of(1), long_text);
    CHECK(two.second.usage(session_of(1), long_text).cached_tokens == first.cached_tokens);
    CHECK(first.cached_tokens == 0);
}

TEST_CASE("kv transfer: only the shard's sessions go, and what is there is not sent twice") {
    Two two;
    const auto mine = session_of(1), other = session_of(2, ShardId{2});
    two.first.ask(mine, long_text);
    two.first.ask(other, "another question, which has nothing in common with the first one but the first few words");
    two.move();
    const auto once = two.sent();
    CHECK_FALSE(once.empty());
    std::set<KvHash> names;
    for (const BlockName& name : once) {
        CHECK(name.owner == mine);
        CHECK(names.insert(name.hash).second);
    }
    two.advance(5000);  // another hand-over
    two.move();
    CHECK(two.sent().size() == once.size());
    CHECK(outcome(two.first, KvOutcome::known) == once.size());
}

TEST_CASE("kv transfer: a block that sessions share is sent once, and stays as long as one of them is there") {
    Two two;
    const auto mine = session_of(1), also = session_of(2);
    two.first.ask(mine, long_text);
    two.first.ask(also, long_text);
    two.move();
    std::set<KvHash> names;
    for (const BlockName& name : two.sent()) CHECK(names.insert(name.hash).second);
    two.second.models.forget_session(also);  // who was served last, with whom the blocks came
    two.settle();
    CHECK(two.second.usage(mine, long_text).cached_tokens >= 32);
    two.second.models.forget_session(mine);
    two.settle();
    CHECK(two.second.usage(session_of(3), long_text).cached_tokens == 0);
}

TEST_CASE(
    "kv transfer: a deleted session's blocks go from the node that it left and from the one that it was to go to") {
    Two two;
    const auto mine = session_of(1);
    two.first.ask(mine, long_text);
    two.move();
    two.second.ask(mine, long_text);
    two.second.models.session_deleted(mine);
    two.deliver_all();
    CHECK(two.first.usage(session_of(2), long_text).cached_tokens == 0);
    CHECK(two.second.usage(session_of(2), long_text).cached_tokens == 0);

    // While its blocks are on their way.
    const auto late = session_of(3);
    const std::string text = "what else is there to say about all those " + long_text;
    two.first.ask(late, text);
    two.advance(5000);
    CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    two.settle();
    two.deliver();  // the question; the blocks are on the wire
    REQUIRE(two.wire.size() == 1);
    two.first.models.session_deleted(late);
    two.settle();
    REQUIRE(two.wire.size() == 2);
    std::swap(two.wire[0], two.wire[1]);  // the news overtakes them
    two.deliver_all();
    CHECK(two.second.usage(session_of(4), text).cached_tokens < 16);
    CHECK(two.second.info().transfer.received_blocks > 0);
}

TEST_CASE("kv transfer: bytes that are damaged on the way are refused and computed again") {
    Two two;
    const auto mine = session_of(1);
    const auto said = two.first.ask(mine, long_text)->result()->text;
    size_t damaged = 0;
    two.move([&](std::string& bytes) {
        const auto request = decode_kv_request(bytes);
        REQUIRE(request.ok());
        if (!std::holds_alternative<KvBlocks>(*request)) return;
        bytes[bytes.size() - 100] ^= 1;
        ++damaged;
    });
    REQUIRE(damaged > 0);
    CHECK(outcome(two.first, KvOutcome::damaged) == 1);  // of a message only the one
    const auto result = *two.second.ask(mine, long_text)->result();
    CHECK(result.text == said);
    CHECK(two.second.info().scheduler.pool.load_failed == 0);
}

TEST_CASE("kv transfer: what is no block of this model is refused, whatever the message's checksum says") {
    Two two;
    const auto mine = session_of(1);
    two.first.ask(mine, long_text);
    // Sealed anew by somebody who has it wrong: a flipped bit, a block too short, another one's tokens.
    size_t turned = 0;
    two.move([&](std::string& bytes) {
        const auto request = decode_kv_request(bytes);
        REQUIRE(request.ok());
        if (!std::holds_alternative<KvBlocks>(*request)) return;
        KvBlocks blocks = std::get<KvBlocks>(*request);
        REQUIRE(blocks.blocks.size() > 3);
        blocks.bytes[0][200] ^= 1;
        blocks.bytes[1].pop_back();
        blocks.blocks[2].tokens -= 1;
        turned += 3;
        bytes = encode_kv_blocks(blocks.of, blocks.blocks, {blocks.bytes.begin(), blocks.bytes.end()});
    });
    REQUIRE(turned > 0);
    CHECK(outcome(two.first, KvOutcome::damaged) == turned);
    CHECK(two.second.usage(mine, long_text).cached_tokens == 0);  // without the first block there is no prefix
}

TEST_CASE("kv transfer: a model that is not there, or of another kernel, takes nothing, and is counted") {
    SUBCASE("not there") {
        ModelSpec there = tiny();
        there.name = "another";
        Two two(there);
        two.first.ask(session_of(1), long_text);
        two.move();
        CHECK(outcome(two.first, KvOutcome::no_model) > 2);
        CHECK(two.sent().empty());
    }
    SUBCASE("not loaded") {
        ModelSpec there = tiny();
        there.own.path = "no_such_folder";
        Two two(there);
        two.first.ask(session_of(1), long_text);
        two.move();
        CHECK(outcome(two.first, KvOutcome::no_model) > 2);
    }
    SUBCASE("another precision") {
        ModelSpec there = tiny();
        there.own.precision = "f32";
        Two two(there);
        two.first.ask(session_of(1), long_text);
        two.move();
        CHECK(outcome(two.first, KvOutcome::other_kernel) > 2);
        CHECK(two.sent().empty());
        CHECK(two.second.usage(session_of(1), long_text).cached_tokens == 0);
    }
    SUBCASE("another size of blocks") {
        ModelSpec there = tiny();
        there.own.block_tokens = 32;
        Two two(there);
        two.first.ask(session_of(1), long_text);
        two.move();
        CHECK(outcome(two.first, KvOutcome::other_kernel) > 2);
    }
}

TEST_CASE("kv transfer: a target without tiers has no room; a source without them sends what is on its device") {
    ModelSpec bare = tiny();
    bare.own.kv_host_bytes = 0;
    SUBCASE("target") {
        Two two(bare);
        two.first.ask(session_of(1), long_text);
        two.move();
        CHECK(outcome(two.first, KvOutcome::no_room) > 2);
        CHECK(two.sent().empty());
    }
    SUBCASE("source") {
        Two two(tiny(), bare);
        const auto said = two.first.ask(session_of(1), long_text)->result()->text;
        CHECK(two.first.info().scheduler.pool.host_blocks == 0);
        const auto stays = two.first.usage(session_of(1), long_text);
        two.move();
        const auto result = *two.second.ask(session_of(1), long_text)->result();
        CHECK(result.text == said);
        CHECK(result.usage.cached_tokens == stays.cached_tokens);
    }
}

TEST_CASE("kv transfer: where the host's memory is full blocks go to the disk, and from the disk they are sent on") {
    ModelSpec there = tiny();
    const uint64_t block = Two().first.info().block_bytes;
    there.own.kv_host_bytes = 2 * block;
    there.own.kv_disk_bytes = 64 << 20;
    Two two(there);
    const auto mine = session_of(1);
    const auto said = two.first.ask(mine, long_text)->result()->text;
    const auto stays = two.first.usage(mine, long_text);
    size_t answers = 0, pending = 0;
    two.answered = [&] {
        two.second.models.read_models([&](const std::vector<ModelInfo>& infos) {
            ++answers;
            pending += infos.at(0).stores_pending;
        });
    };
    two.move();
    two.answered = {};
    CHECK(answers > 1);
    CHECK(pending == 0);  // no answer before what went to the disk is there: so nothing piles up
    const auto sent = outcome(two.first, KvOutcome::taken);
    CHECK(sent > 4);
    CHECK(two.second.info().scheduler.pool.host_blocks == 2);
    CHECK(two.second.info().scheduler.pool.disk_blocks == sent - 2);
    CHECK(two.second.info().stores_pending == 0);
    CHECK(two.second.info().scheduler.pool.evicted_host == 0);

    // Back, to a node that lost its own.
    two.first.models.forget_session(mine);
    two.settle();
    CHECK(two.second.transfer->busy(ShardId{1}, two.first.uuid));
    two.deliver_all();
    CHECK(outcome(two.second, KvOutcome::taken) == sent);
    const auto result = *two.first.ask(mine, long_text)->result();
    CHECK(result.text == said);
    CHECK(result.usage.cached_tokens == stays.cached_tokens);
}

TEST_CASE("kv transfer: one message is on its way at a time, and turns are answered meanwhile") {
    Two two;
    for (uint64_t s = 1; s <= 3; ++s) two.first.ask(session_of(s), std::to_string(s) + long_text);
    CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    two.settle();
    size_t messages = 0;
    while (!two.wire.empty()) {
        CHECK(two.wire.size() == 1);
        CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
        if (messages++ == 1) {
            two.first.ask(session_of(4), "4" + long_text);
            CHECK(two.wire.size() == 1);
        }
        two.deliver();
    }
    CHECK(messages > 3);
    CHECK_FALSE(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    // What was computed meanwhile went after the rest.
    CHECK(two.second.usage(session_of(4), "4" + long_text).cached_tokens >= 32);
}

TEST_CASE("kv transfer: a target that does not answer costs its time and no more, and one that is cut off none") {
    Two two;
    two.first.ask(session_of(1), long_text);
    CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    two.settle();
    REQUIRE(two.wire.size() == 1);
    for (int i = 0; i < 3; ++i) {
        CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
        two.advance(limits::kv_move_ms_max / 4);
    }
    two.advance(limits::kv_move_ms_max / 4);
    CHECK_FALSE(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    CHECK(two.first.moved == 0);
    two.deliver_all();  // too late: what is wanted is not sent any more
    CHECK(two.first.moved == 1);
    CHECK(two.sent().empty());
    CHECK(outcome(two.first, KvOutcome::beyond_bounds) > 2);

    two.advance(5000);
    two.cut = true;
    CHECK(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    two.settle();
    CHECK_FALSE(two.first.transfer->busy(ShardId{1}, two.second.uuid));
    CHECK(outcome(two.first, KvOutcome::unreachable) > 2);
}

TEST_CASE("kv transfer: few shards at a time, the others after them") {
    Two two;
    for (uint16_t s = 0; s < shards; ++s) two.first.ask(session_of(s + 1u, ShardId{s}), std::to_string(s) + long_text);
    static_assert(limits::kv_moves_max >= shards);
    for (uint16_t s = 0; s < shards; ++s) CHECK(two.first.transfer->busy(ShardId{s}, two.second.uuid));
    CHECK(two.first.transfer->busy(ShardId{shards}, two.second.uuid));  // of which nobody has anything
    two.settle();
    CHECK(two.wire.size() == shards);
    CHECK(two.first.transfer->busy(ShardId{shards}, two.second.uuid));
    two.deliver_all();
    for (uint16_t s = 0; s <= shards; ++s) CHECK_FALSE(two.first.transfer->busy(ShardId{s}, two.second.uuid));
    for (uint16_t s = 0; s < shards; ++s)
        CHECK(two.second.usage(session_of(s + 1u, ShardId{s}), std::to_string(s) + long_text).cached_tokens >= 32);
}

TEST_CASE("kv message: what is written is read, and garbage is refused") {
    const KvOf of{"a model", "hash", "format", 16};
    std::vector<BlockName> names;
    std::vector<std::string> bytes;
    for (uint8_t i = 0; i < 5; ++i) {
        KvHash hash{};
        for (size_t at = 0; at < hash.size(); ++at) hash[at] = uint8_t(31 * i + 7 * at);
        names.push_back({hash, 1u + 3u * i, session_of(i + 1u)});
        bytes.push_back(std::string(100u + i, char('a' + i)));
    }
    names[1].owner.session = {};
    const auto wanted = decode_kv_request(encode_kv_wanted({of, names}));
    REQUIRE(wanted.ok());
    CHECK(std::get<KvWanted>(*wanted).of == of);
    CHECK(std::get<KvWanted>(*wanted).blocks == names);

    const std::string whole = encode_kv_blocks(of, names, {bytes.begin(), bytes.end()});
    const auto blocks = decode_kv_request(whole);
    REQUIRE(blocks.ok());
    CHECK(std::get<KvBlocks>(*blocks).of == of);
    CHECK(std::get<KvBlocks>(*blocks).blocks == names);
    CHECK(std::get<KvBlocks>(*blocks).bytes == bytes);
    CHECK(std::get<KvBlocks>(*blocks).whole == std::vector<bool>(5, true));

    const KvForget gone{{session_of(1), session_of(2)}};
    const auto forget = decode_kv_request(encode_kv_forget(gone));
    REQUIRE(forget.ok());
    CHECK(std::get<KvForget>(*forget).sessions == gone.sessions);

    std::vector<KvOutcome> outcomes;
    for (size_t i = 0; i < kv_outcomes; ++i) outcomes.push_back(KvOutcome(i));
    std::string answer = encode_kv_answer(outcomes);
    const auto read = decode_kv_answer(answer);
    REQUIRE(read.ok());
    CHECK(*read == outcomes);
    answer[answer.rfind(char(kv_outcomes - 1))] = char(kv_outcomes);
    CHECK_FALSE(decode_kv_answer(answer).ok());

    // Any bit of a block's name or bytes is damage, and any other refused or without effect on them.
    size_t refused = 0, damaged = 0;
    for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
        std::string torn = whole;
        torn[bit / 8] ^= char(1 << bit % 8);
        const auto got = decode_kv_request(torn);
        if (!got) {
            ++refused;
            continue;
        }
        const auto* one = std::get_if<KvBlocks>(&*got);
        if (!one) continue;
        for (size_t i = 0; i < one->blocks.size(); ++i) {
            if (!one->whole[i]) {
                ++damaged;
            } else if (i < names.size()) {
                // Whole as far as the message says: name, tokens and bytes are some block's as it was sent.
                bool sent = false;
                for (size_t k = 0; k < names.size(); ++k)
                    sent |= one->blocks[i].hash == names[k].hash && one->blocks[i].tokens == names[k].tokens &&
                            one->bytes[i] == bytes[k];
                CHECK(sent);
            }
        }
    }
    CHECK(refused > 100);
    CHECK(damaged > 5 * 100 * 8 / 2);
    for (size_t size = 0; size < whole.size(); ++size) CHECK_FALSE(decode_kv_request(whole.substr(0, size)).ok());
    CHECK_FALSE(decode_kv_request(whole + std::string(8, '\0')).ok());
    CHECK_FALSE(decode_kv_request(std::string(64, '\xff')).ok());

    // More than a message may have, blocks of no size, of no model.
    CHECK_FALSE(
        decode_kv_request(encode_kv_wanted({of, std::vector<BlockName>(limits::kv_message_blocks_max + 1, names[0])}))
            .ok());
    names[2].tokens = 17;
    CHECK_FALSE(decode_kv_request(encode_kv_wanted({of, names})).ok());
    names[2].tokens = 0;
    CHECK_FALSE(decode_kv_request(encode_kv_wanted({of, names})).ok());
    CHECK_FALSE(decode_kv_request(encode_kv_wanted({{"", "hash", "format", 16}, {}})).ok());
}
