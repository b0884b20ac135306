// Recovery has no path of its own, and these tests hold it to that: a head, a head and a tail, and the whole journal
// all lead to the state that the live session has.

#include <map>

#include "runtime/session/random_history.h"
#include "runtime/session/wire.h"

using namespace mainstay;
using namespace mainstay::test;

namespace {

void same(const Session& a, const Session& b, const std::string& what) {
    INFO(what);
    REQUIRE(describe(a) == describe(b));
    REQUIRE(a.encode_head() == b.encode_head());
    for (TurnNo no : a.open_turns()) {
        REQUIRE(b.turn(no));
        REQUIRE(describe(*a.turn(no)) == describe(*b.turn(no)));
    }
    REQUIRE(a.memory() == b.memory());
}

EventBatch decoded(const std::string& bytes) {
    auto batch = decode_batch(bytes);
    REQUIRE(batch.ok());
    return std::move(*batch);
}

}  // namespace

TEST_CASE("session: after every batch, head and tail make the session that the live one is") {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed);
        Rig rig;
        Session whole(test_key()), from_old_head(test_key());
        size_t applied = 0;
        for (int i = 0; i < 150; ++i) {
            INFO("command ", i);
            history.step(rig);
            for (; applied < rig.journal.size(); ++applied) {
                const auto& [first, bytes] = rig.journal[applied];
                whole.apply(decoded(bytes), first);
                from_old_head.apply(decoded(bytes), first);
            }
            same(rig.session, whole, "the whole journal");
            same(rig.session, from_old_head, "an old head and its tail");
            same(rig.session, rig.restarted(), "a head of now");
            if (history.random().below(7) == 0) from_old_head = rig.restarted();
        }
    }
}

TEST_CASE("session: a restart at any moment changes nothing about what happens next") {
    for (uint64_t seed = 100; seed < 140; ++seed) {
        INFO("seed ", seed);
        RandomHistory history(seed), again(seed);
        Rig steady, shaken;
        for (int i = 0; i < 120; ++i) {
            history.step(steady);
            again.step(shaken);
            shaken.session = shaken.restarted();
            // Keys that a restart forgets are in the store; here the live session's part of them is not compared.
            steady.session.forget_keys(steady.session.tip());
            shaken.session.forget_keys(shaken.session.tip());
        }
        REQUIRE(steady.journal == shaken.journal);
        REQUIRE(steady.session.encode_head() == shaken.session.encode_head());
    }
}

TEST_CASE("session: a head costs the same at any turn") {
    Rig rig;
    size_t at_ten = 0;
    for (int i = 1; i <= 3000; ++i) {
        rig.submit();
        rig.model("answer");
        if (i == 10) at_ten = rig.session.encode_head().size();
    }
    CHECK(rig.session.encode_head().size() <= at_ten + 8);
}

TEST_CASE("session: a damaged head is refused or read, and never thrown about") {
    Rig rig;
    RandomHistory history(3);
    for (int i = 0; i < 40; ++i) history.step(rig);
    rig.submit("open");
    const std::string head = rig.session.encode_head();
    SeededRandom random(9);
    size_t refused = 0;
    for (int i = 0; i < 3000; ++i) {
        std::string changed = head;
        for (uint64_t n = random.below(3) + 1; n > 0; --n)
            changed[random.below(changed.size())] = static_cast<char>(random.next());
        auto session = Session::decode_head(test_key(), changed);
        refused += !session.ok();
        if (session) CHECK(session->pending().tools.size() < 100);
    }
    CHECK(refused > 100);
    CHECK(Session::decode_head(SessionKey{TenantId{8}, test_key().session}, head).error().code ==
          ErrorCode::state_damaged);
}

TEST_CASE("session: a head that no session writes is refused, or read as the one that it would write") {
    struct Case {
        const char* name;
        void (*change)(wire::Head::Builder);
        bool accepted;
    };
    const Case cases[] = {
        {"as it is", [](wire::Head::Builder) {}, true},
        {"nothing has happened", [](wire::Head::Builder head) { head.setSequence(0); }, true},
        {"a tombstone that says too much", [](wire::Head::Builder head) { head.setDeleted(true); }, true},
        {"a tombstone with a parent and no fork",
         [](wire::Head::Builder head) {
             head.setDeleted(true);
             head.setParentFamily(5);
             head.setParentSession(wire::as_data("0123456789abcdef"));
             head.setParentTurn(3);
             head.setTurnBase(3);
         },
         true},
        {"a parent's turn without a parent", [](wire::Head::Builder head) { head.setParentTurn(3); }, true},
        {"a beginning without a parent", [](wire::Head::Builder head) { head.setTurnBase(3); }, false},
        {"a beginning elsewhere than the parent's end",
         [](wire::Head::Builder head) {
             head.setParentFamily(5);
             head.setParentSession(wire::as_data("0123456789abcdef"));
             head.setParentTurn(3);
         },
         false},
        {"batches out of order",
         [](wire::Head::Builder head) {
             const auto first = head.getOpenBatches()[0].getFirstSequence();
             head.getOpenBatches()[0].setFirstSequence(head.getOpenBatches()[1].getFirstSequence());
             head.getOpenBatches()[1].setFirstSequence(first);
         },
         false},
        {"a batch twice",
         [](wire::Head::Builder head) {
             head.getOpenBatches()[1].setFirstSequence(head.getOpenBatches()[0].getFirstSequence());
         },
         false},
        {"a batch of later", [](wire::Head::Builder head) { head.setUpdatedAt(1); }, false},
        {"a batch behind the head", [](wire::Head::Builder head) { head.setSequence(head.getSequence() - 1); }, false},
    };
    Rig rig;
    rig.submit("one");
    rig.model("done");
    rig.submit("two");
    rig.model("", {run_call()});
    const std::string head = rig.session.encode_head();
    for (const Case& each : cases) {
        CAPTURE(each.name);
        capnp::MallocMessageBuilder message;
        REQUIRE_FALSE(
            wire::unpack_message(head, [&](capnp::MessageReader& in) { message.setRoot(in.getRoot<wire::Head>()); }));
        each.change(message.getRoot<wire::Head>());
        const std::string bytes = wire::pack_message(
            [&](capnp::MessageBuilder& out) { out.setRoot(message.getRoot<wire::Head>().asReader()); });
        auto session = Session::decode_head(test_key(), bytes);
        REQUIRE(session.ok() == each.accepted);
        if (!session) continue;
        const std::string again = session->encode_head();
        auto second = Session::decode_head(test_key(), again);
        REQUIRE_MESSAGE(second.ok(), (second.ok() ? "" : second.error().message));
        CHECK(second->encode_head() == again);
        CHECK(second->exists() == session->exists());
    }
}
