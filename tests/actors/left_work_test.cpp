// Work that goes on where a session was led before: it stays with the actor that is told to go, and whoever leads the
// session next takes its outcome. One node that loses shards and leads them again asks itself, and, as another would,
// through bytes.
#include <doctest/doctest.h>

#include "actors/hand_over_wait.h"
#include "actors/left_claims.h"
#include "actors/left_work.h"
#include "tests/support/clustered_node.h"

using namespace mainstay;

namespace {

const NodeUuid here_uuid{1}, there_uuid{2};

/// A call that another node's answer comes back on, if it comes.
struct PeerCall : LinkCall, CallReply {
    std::function<void(std::string)> on_part;
    std::function<void(std::optional<Error>)> on_end;
    bool gone = false, over = false;
    void cancel() override { gone = true; }
    void part(std::string bytes) override {
        if (!gone && !over) on_part(std::move(bytes));
    }
    void end(std::optional<Error> failure = {}) override {
        if (!std::exchange(over, true)) on_end(std::move(failure));
    }
    bool cancelled() const override { return gone; }
};

/// A node whose peer is `peer`: nobody, one that says nothing, or whatever the test puts there.
struct WithLeftWork : Clustered {
    explicit WithLeftWork(bool has_peer = false) {
        LeftWorkConfig config;
        config.self = here_uuid;
        if (has_peer) peers.push_back(there_uuid);
        config.others = [this] { return peers; };
        config.call = [this](const NodeUuid& to, std::string request, std::function<void(std::string)> on_part,
                             std::function<void(std::optional<Error>)> on_end, uint32_t) {
            CHECK(to == there_uuid);
            requests.push_back(*decode_left_request(request));
            auto call = std::make_shared<PeerCall>();
            call->on_part = std::move(on_part);
            call->on_end = std::move(on_end);
            calls.push_back(call);
            return call;
        };
        config.supervisor = [this] { return node.supervisor(); };
        config.registry = &node.node().metrics.registry();
        work.emplace(std::move(config));
        node.node().left_work = &*work;
    }
    ~WithLeftWork() {
        node.stop();  // what is left behind uses it
    }
    /// A turn of an agent whose tool is under way.
    SessionKey call(EffectClass effect) {
        const SessionKey key = node.new_session();
        node.bank_agent("teller", "pay", effect);
        waiting = node.submit(key, {"pay", "teller", "key-1"});
        node.settle();
        REQUIRE(node.tools.calls.size() == 1);
        return key;
    }
    void move_away(const SessionKey& key) {
        lose(key);
        node.settle();
        CHECK(node.active() == 0);
    }
    /// Asks for the session's work as a peer that leads it in `epoch`.
    std::shared_ptr<Answered> ask(const SessionKey& key, Epoch epoch) {
        auto answered = std::make_shared<Answered>();
        work->serve(encode_left_request(ClaimLeftWork{key, epoch}), answered);
        node.settle();
        return answered;
    }
    static std::string names(const Answered& answered) {
        std::string out;
        for (const auto& bytes : answered.parts) {
            const auto part = decode_left_part(bytes);
            REQUIRE(part.ok());
            out += "hldmt"[part->index()];
        }
        return out + (answered.ended == 1 ? "." : "");
    }
    std::string status(const SessionKey& key) {
        const auto got = node.read(key, 1);
        REQUIRE(got->ok());
        return status_of(got->value());
    }
    std::string last_words(const SessionKey& key) { return said(node.read(key, 1)->value()); }

    std::optional<LeftWork> work;
    std::vector<NodeUuid> peers;
    std::vector<LeftRequest> requests;
    std::vector<std::shared_ptr<PeerCall>> calls;
    GotPtr<TurnAnswer> waiting;
};

}  // namespace

TEST_CASE("left work: a call stays where it is, and its result goes to who leads the session next") {
    for (const EffectClass effect : {EffectClass::once, EffectClass::idempotent, EffectClass::read}) {
        WithLeftWork here;
        const SessionKey key = here.call(effect);
        here.move_away(key);
        CHECK(here.node.tools.open() == 1);
        here.lead(key);
        here.node.settle();
        CHECK(here.status(key) == "in_progress");
        CHECK(here.node.tools.calls.size() == 1);
        here.node.tools.answer(0, "paid");
        here.node.settle();
        CHECK(here.status(key) == "completed");
        CHECK(here.last_words(key) == "The bank said: paid");
        CHECK(here.node.tools.calls.size() == 1);  // nothing was called twice
        const std::string names = here.node.event_names(key);
        CHECK(names.find("StepFailed") == std::string::npos);
        CHECK(names.find("Decision") != std::string::npos);  // that it went on elsewhere
    }
}

TEST_CASE("left work: a result that came while nobody led the session waits for who does") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    here.move_away(key);
    here.node.tools.answer(0, "paid");
    here.node.advance(10'000);
    here.lead(key);
    here.node.settle();
    CHECK(here.last_words(key) == "The bank said: paid");
}

TEST_CASE("left work: a session that moves again takes it from where it began") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    for (int moves = 0; moves < 3; ++moves) {
        here.move_away(key);
        here.lead(key);
        here.node.settle();
        CHECK(here.status(key) == "in_progress");
    }
    here.node.tools.answer(0, "paid");
    here.node.settle();
    CHECK(here.last_words(key) == "The bank said: paid");
    CHECK(here.node.tools.calls.size() == 1);
}

TEST_CASE("left work: a step of an upstream goes on, and says what it says") {
    WithLeftWork here;
    const SessionKey key = here.node.new_session();
    here.node.hold_models();
    auto waiting = here.node.submit(key, {"hello", "plain", "key-1"});
    here.node.settle();
    CHECK(here.node.node().models.waiting() == 1);
    here.move_away(key);
    here.lead(key);
    here.node.settle();
    CHECK(here.node.node().models.waiting() == 1);  // the same
    CHECK(here.status(key) == "in_progress");
    here.node.release_models();
    here.node.settle();
    CHECK(here.status(key) == "completed");
    CHECK(here.last_words(key) == "You said: hello");
    CHECK(here.node.event_names(key).find("StepFailed") == std::string::npos);
}

TEST_CASE("left work: what is not committed is not left behind") {
    WithLeftWork here;
    const SessionKey key = here.node.new_session();
    here.node.hold_models();
    here.node.hold_store = true;
    auto waiting = here.node.submit(key, {"hello"});
    here.node.run();
    here.lose(key);
    here.node.run();
    const auto answered = here.ask(key, Epoch{9});
    CHECK(here.names(*answered) == "l.");
    here.node.release_models();
    here.node.hold_store = false;
    here.node.settle();
}

TEST_CASE("left work: a peer is told of it, once an epoch, and the newest epoch counts") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    here.move_away(key);
    CHECK(here.names(*here.ask(here.node.new_session(), Epoch{5})) == "l.");  // of another session
    CHECK(here.names(*here.ask(key, Epoch{1})) == "l.");                      // the epoch that it began in
    const auto first = here.ask(key, Epoch{5});
    CHECK(here.names(*first) == "hl");
    CHECK(here.names(*here.ask(key, Epoch{4})) == "l.");
    const auto second = here.ask(key, Epoch{6});
    CHECK(here.names(*second) == "hl");
    CHECK(here.names(*first) == "hl.");
    here.node.tools.answer(0, "paid");
    here.node.settle();
    CHECK(here.names(*second) == "hlt.");
    CHECK(std::get<LeftToolEnded>(*decode_left_part(second->parts.back())).outcome.output == "paid");
    // Whoever took it may have died of it.
    CHECK(here.names(*here.ask(key, Epoch{7})) == "htl.");
    here.node.advance(limits::left_work_keep_ms + 2 * limits::left_work_look_ms);
    CHECK(here.names(*here.ask(key, Epoch{8})) == "l.");
}

TEST_CASE("left work: who asks in a later epoch is believed before this node has heard of it") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    const auto answered = here.ask(key, Epoch{5});
    CHECK(here.names(*answered) == "hl");
    CHECK(here.node.active() == 0);
    REQUIRE(here.waiting->answered());
    CHECK_FALSE(here.waiting->ok());
    here.node.tools.answer(0, "paid");
    here.node.settle();
    CHECK(here.names(*answered) == "hlt.");
}

TEST_CASE("left work: cancelled by who leads now, and by nobody else") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    here.move_away(key);
    const auto answered = here.ask(key, Epoch{5});
    const LeftName name = std::get<LeftHere>(*decode_left_part(answered->parts.front())).work;
    const auto cancel = [&](Epoch epoch) {
        auto reply = std::make_shared<Answered>();
        here.work->serve(encode_left_request(CancelLeftWork{key, epoch, name}), reply);
        here.node.settle();
        CHECK(reply->ended == 1);
    };
    cancel(Epoch{4});
    CHECK(here.node.tools.open() == 1);
    cancel(Epoch{5});
    CHECK(here.node.tools.calls.at(0).cancelled);
    CHECK(here.names(*answered) == "hlt.");
}

TEST_CASE("left work: a turn that is cancelled cancels it where it runs") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    here.move_away(key);
    here.lead(key);
    here.node.settle();
    CHECK(here.node.cancel(key, 1)->ok());
    here.node.settle();
    CHECK(here.node.tools.calls.at(0).cancelled);
    CHECK(here.status(key) == "cancelled");
}

TEST_CASE("left work: a peer's calls and steps are taken as if they had begun here") {
    WithLeftWork here(true);
    const SessionKey key = here.call(EffectClass::once);
    // The peer leads it for a while and loses it again; here nothing stays.
    here.lose(key);
    here.node.settle();
    here.node.tools.lose(0);
    here.node.advance(limits::left_work_keep_ms + 2 * limits::left_work_look_ms);
    here.lead(key);
    here.node.settle();
    REQUIRE(here.calls.size() == 1);
    const auto& claim = std::get<ClaimLeftWork>(here.requests.at(0));
    CHECK(claim.session == key);
    CHECK(claim.epoch == here.leads.epoch);
    const LeftName name{true, TurnNo{1}, 1, 0};
    SUBCASE("it answers with a result") {
        here.calls[0]->part(encode_left_part(LeftHere{name}));
        here.calls[0]->part(encode_left_part(LeftListed{}));
        here.node.settle();
        CHECK(here.status(key) == "in_progress");
        ToolOutcome outcome;
        outcome.output = "paid there";
        here.calls[0]->part(encode_left_part(LeftToolEnded{name, outcome}));
        here.calls[0]->end();
        here.node.settle();
        CHECK(here.last_words(key) == "The bank said: paid there");
    }
    const Error link_lost{ErrorCode::shard_unavailable, "the link was lost", {}};
    SUBCASE("its link is lost, and it is asked again") {
        here.calls[0]->part(encode_left_part(LeftHere{name}));
        here.calls[0]->part(encode_left_part(LeftListed{}));
        here.node.settle();
        here.calls[0]->end(link_lost);
        here.node.advance(limits::left_reclaim_ms + 100);
        REQUIRE(here.calls.size() == 2);
        here.calls[1]->end(link_lost);
        here.node.advance(limits::left_reclaim_ms + 100);
        REQUIRE(here.calls.size() == 3);
        CHECK(here.node.event_names(key).find("ToolReceipt") == std::string::npos);
        SUBCASE("it goes on there") {
            here.calls[2]->part(encode_left_part(LeftHere{name}));
            here.calls[2]->part(encode_left_part(LeftListed{}));
            here.node.settle();
            ToolOutcome outcome;
            outcome.output = "paid there";
            here.calls[2]->part(encode_left_part(LeftToolEnded{name, outcome}));
            here.calls[2]->end();
            here.node.settle();
            CHECK(here.last_words(key) == "The bank said: paid there");
        }
        SUBCASE("it has forgotten") {
            here.calls[2]->part(encode_left_part(LeftListed{}));
            here.node.settle();
            CHECK(here.node.event_names(key).find("ToolReceipt") != std::string::npos);
        }
    }
    SUBCASE("it dies: nobody knows what became of the call") {
        here.calls[0]->part(encode_left_part(LeftHere{name}));
        here.calls[0]->part(encode_left_part(LeftListed{}));
        here.node.settle();
        CHECK(here.node.event_names(key).find("ToolReceipt") == std::string::npos);
        here.peers.clear();
        here.calls[0]->end(link_lost);
        here.node.advance(limits::left_reclaim_ms + 100);
        CHECK(here.node.event_names(key).find("ToolReceipt") != std::string::npos);
        CHECK(here.calls.size() == 1);
        CHECK(here.status(key) == "in_progress");  // until a person says what happened
    }
    SUBCASE("its link stays lost: it is not asked for ever") {
        here.calls[0]->part(encode_left_part(LeftHere{name}));
        here.calls[0]->part(encode_left_part(LeftListed{}));
        for (size_t i = 0; i < here.calls.size(); ++i) {
            here.calls[i]->end(link_lost);
            here.node.advance(limits::left_reclaim_ms + 100);
        }
        CHECK(here.calls.size() == limits::left_reclaims_max + 1);
        CHECK(here.node.event_names(key).find("ToolReceipt") != std::string::npos);
    }
    SUBCASE("it has nothing") {
        here.calls[0]->part(encode_left_part(LeftListed{}));
        here.calls[0]->end();
        here.node.settle();
        CHECK(here.node.event_names(key).find("ToolReceipt") != std::string::npos);
        CHECK(here.node.tools.calls.size() == 1);
    }
    SUBCASE("it says nothing in time, and too late that it has something") {
        CHECK(here.node.event_names(key).find("ToolReceipt") == std::string::npos);
        here.node.advance(limits::left_claim_ms + 100);
        CHECK(here.node.event_names(key).find("ToolReceipt") != std::string::npos);
        here.calls[0]->part(encode_left_part(LeftHere{name}));
        here.node.settle();
        REQUIRE(here.requests.size() == 2);
        CHECK(std::get<CancelLeftWork>(here.requests[1]).work == name);
    }
    CHECK(here.node.tools.calls.size() == 1);
}

TEST_CASE("left work: what a session hears, and hears again") {
    LeftClaims claims(1, {{here_uuid, nullptr}, {there_uuid, std::make_shared<PeerCall>()}});
    const LeftName step{false, TurnNo{1}, 0, 0}, call{true, TurnNo{1}, 3, 0}, other{true, TurnNo{1}, 4, 0};
    const auto tell = [&](uint32_t source, LeftPart part) { return claims.came({1, source, std::move(part)}); };
    const auto end = [&](uint32_t source, bool failed) { return claims.came({1, source, {}, failed}); };
    tell(1, LeftHere{step});
    tell(1, LeftHere{call});
    tell(1, LeftDelta{step, "the "});
    CHECK_FALSE(claims.listed());
    tell(1, LeftListed{});
    tell(0, LeftListed{});
    CHECK(claims.listed());
    end(0, false);
    claims.close();
    CHECK(std::get<LeftClaims::Late>(tell(1, LeftHere{other})).name == other);
    CHECK(claims.find(other) == nullptr);
    LeftClaims::Work* taken = claims.find(step);
    REQUIRE(taken);
    CHECK(taken->said == "the ");
    taken->id = 7;
    CHECK(claims.find(step) == nullptr);
    claims.find(call)->id = 8;
    CHECK(std::get<LeftClaims::Said>(tell(1, LeftDelta{step, "first "})).text == "first ");
    CHECK(std::get<LeftClaims::Ended>(tell(1, LeftToolEnded{call, {}})).id == 8);
    claims.forget(8);
    // The link breaks: what it says again is not heard again.
    CHECK(std::holds_alternative<LeftClaims::Again>(end(1, true)));
    claims.asked_again(1, std::make_shared<PeerCall>());
    tell(1, LeftHere{step});
    CHECK(std::get<LeftClaims::Late>(tell(1, LeftHere{call})).name == call);
    CHECK(std::get<LeftClaims::Said>(tell(1, LeftDelta{step, "the fir"})).text.empty());
    CHECK(std::get<LeftClaims::Said>(tell(1, LeftDelta{step, "st second"})).text == "second");
    CHECK(std::get<LeftClaims::Missed>(tell(1, LeftListed{})).works.empty());
    CHECK(std::get<LeftClaims::Ended>(tell(1, LeftModelEnded{step, ModelResult{}})).id == 7);
    CHECK(std::get<LeftClaims::Missed>(end(1, true)).works.empty());
}

TEST_CASE("left work: a node keeps so many bytes of outcomes, and no more") {
    WithLeftWork here;
    const SessionKey key = here.call(EffectClass::once);
    here.move_away(key);
    REQUIRE(here.work->keep(limits::left_work_bytes_max - 3));
    here.node.tools.answer(0, "paid");
    here.node.settle();
    const auto answered = here.ask(key, Epoch{5});
    CHECK(here.names(*answered) == "htl.");
    const auto outcome = std::get<LeftToolEnded>(*decode_left_part(answered->parts.at(1))).outcome;
    CHECK(outcome.kind == ToolOutcome::Kind::lost);
    here.node.advance(limits::left_work_keep_ms + 2 * limits::left_work_look_ms);
    CHECK(here.work->keep(3));
    CHECK_FALSE(here.work->keep(1));
}

TEST_CASE("left work: nobody asked, so a model does not speak on for ever") {
    WithLeftWork here;
    const SessionKey key = here.node.new_session();
    here.node.hold_models();
    auto waiting = here.node.submit(key, {"hello", "plain", "key-1"});
    here.node.settle();
    here.move_away(key);
    here.node.advance(limits::left_work_keep_ms - 1'000, 1'000);
    CHECK(here.node.node().models.waiting() == 1);
    here.node.advance(2 * limits::left_work_look_ms, 1'000);
    CHECK(here.node.node().models.waiting() == 0);
    here.node.release_models();
}

TEST_CASE("left work: messages") {
    const SessionKey session{TenantId{7}, SessionId{FamilyId{8}, 9, 10}};
    const LeftName name{true, TurnNo{3}, 4, 5};
    const auto claim = decode_left_request(encode_left_request(ClaimLeftWork{session, Epoch{6}}));
    REQUIRE(claim.ok());
    CHECK(std::get<ClaimLeftWork>(*claim).session == session);
    CHECK(std::get<ClaimLeftWork>(*claim).epoch == Epoch{6});
    const auto cancel = decode_left_request(encode_left_request(CancelLeftWork{session, Epoch{6}, name}));
    REQUIRE(cancel.ok());
    CHECK(std::get<CancelLeftWork>(*cancel).work == name);

    ToolOutcome outcome;
    outcome.kind = ToolOutcome::Kind::failed;
    outcome.code = ErrorCode::tool_unavailable;
    outcome.message = "why";
    outcome.duration_micros = 11;
    ModelResult result;
    result.text = "said";
    result.calls.push_back({"id", "name", "{}"});
    const std::vector<LeftPart> parts = {LeftHere{name}, LeftListed{}, LeftDelta{name, "grüß"},
                                         LeftModelEnded{name, result}, LeftToolEnded{name, outcome}};
    for (const LeftPart& part : parts) {
        const std::string bytes = encode_left_part(part);
        const auto again = decode_left_part(bytes);
        REQUIRE(again.ok());
        CHECK(again->index() == part.index());
        CHECK(encode_left_part(*again) == bytes);
        for (const auto& bad : {bytes.substr(0, bytes.size() - 8), bytes + std::string(8, '\0'), std::string("x")}) {
            const auto refused = decode_left_part(bad);
            REQUIRE_FALSE(refused.ok());
            CHECK(refused.error().code == ErrorCode::peer_refused);
        }
    }
    CHECK_FALSE(decode_left_part(encode_left_part(LeftDelta{name, "\xff"})).ok());
    CHECK_FALSE(
        decode_left_part(encode_left_part(LeftDelta{name, std::string(limits::model_step_part_bytes_max + 1, 'x')}))
            .ok());
}

TEST_CASE("hand-over: what it waits for") {
    struct Row {
        bool calls, blocks, leaving, followed;
        TimeMs held_ms;
        bool waits;
    };
    const TimeMs setting = 2'000;
    const Row rows[] = {
        {false, false, false, true, 0, false},
        {true, false, false, true, 0, true},
        {true, false, false, true, 1'999, true},
        {true, false, false, true, 2'000, false},   // they stay, and their outcomes follow
        {true, false, false, false, 59'999, true},  // they would be lost
        {true, false, false, false, 60'000, false},
        {true, false, true, true, 9'999, true},  // they end with the process
        {true, false, true, true, 10'000, false},
        {false, true, false, true, 1'000'000, true},  // blocks have a bound of their own
    };
    for (const Row& row : rows) {
        CAPTURE(row.held_ms);
        CHECK(hand_over_waits({row.calls, row.blocks, row.leaving, row.followed, row.held_ms, setting}) == row.waits);
    }
    CHECK(hand_over_hold_ms(setting) == 62'000);
    CHECK(hand_over_hold_ms(600'000) == 602'000);
}
