#include <capnp/message.h>
#include <capnp/serialize-packed.h>
#include <kj/io.h>

#include <set>

#include "runtime/base/limits.h"
#include "runtime/session/event_json.h"
#include "runtime/session/every_event.h"
#include "runtime/session/packing.h"
#include "schema/session.capnp.h"

using namespace mainstay;
using namespace mainstay::test;

TEST_CASE("event codec: every field of every kind of event comes back") {
    const EventBatch batch = every_event();
    CHECK(batch.events.size() == std::variant_size_v<Event>);
    std::set<size_t> kinds;
    for (const Event& event : batch.events) kinds.insert(event.index());
    CHECK(kinds.size() == std::variant_size_v<Event>);

    const std::string bytes = encode(batch);
    auto again = decode_batch(bytes);
    REQUIRE_MESSAGE(again.ok(), (again.ok() ? "" : again.error().message));
    CHECK(batch_json(*again, Sequence{1}) == batch_json(batch, Sequence{1}));
    CHECK(encode(*again) == bytes);
}

TEST_CASE("event codec: an event whose fields have their defaults comes back and costs a few bytes") {
    EventBatch batch;
    batch.events = {InputAccepted{}, ModelStepSettled{}, ToolIntent{},    ToolReceipt{},  StepFailed{},
                    TurnSettled{},   CancelRequested{},  WaitOpened{},    WaitResolved{}, Decision{},
                    MemorySet{},     UnknownResolved{},  ItemsAdded{},    MetadataSet{},  SessionDeleted{},
                    Compacted{},     RetryScheduled{},   SessionCreated{}};
    const std::string bytes = encode(batch);
    CHECK(bytes.size() < batch.events.size() * 12);
    auto again = decode_batch(bytes);
    REQUIRE(again.ok());
    CHECK(batch_json(*again, Sequence{1}) == batch_json(batch, Sequence{1}));
}

TEST_CASE("event codec: the bytes are what any Cap'n Proto reader calls packed") {
    const std::string bytes = encode(every_event());
    kj::ArrayInputStream in(kj::arrayPtr(reinterpret_cast<const kj::byte*>(bytes.data()), bytes.size()));
    capnp::PackedMessageReader message(in);
    auto root = message.getRoot<wire::EventBatch>();
    CHECK(root.getTurn() == 9);
    CHECK(root.getEvents().size() == std::variant_size_v<Event>);
    CHECK(root.getEvents()[2].getModelStepSettled().getModel() == "tiny");
}

TEST_CASE("event codec: a batch as large as a step may be comes back") {
    EventBatch batch;
    batch.turn = TurnNo{1};
    ModelStepSettled settled;
    for (int i = 0; i < 32; ++i) {
        auto item = std::make_shared<Item>();
        item->arguments = std::string(180 * 1024, static_cast<char>('a' + i % 26));
        settled.items.push_back(item);
    }
    batch.events.emplace_back(settled);
    const std::string bytes = encode(batch);
    CHECK(bytes.size() < limits::record_bytes_max);
    auto again = decode_batch(bytes);
    REQUIRE(again.ok());
    CHECK(*std::get<ModelStepSettled>(again->events[0]).items[31] == *settled.items[31]);
}

TEST_CASE("event codec: a cut or changed batch is refused or read, and never thrown about") {
    const std::string bytes = encode(every_event());
    for (size_t size = 0; size < bytes.size(); ++size) {
        auto cut = decode_batch(std::string_view(bytes).substr(0, size));
        if (!cut) CHECK(cut.error().code == ErrorCode::journal_damaged);
    }
    CHECK_FALSE(decode_batch("").ok());
    SeededRandom random(42);
    size_t refused = 0;
    for (int i = 0; i < 5000; ++i) {
        std::string changed = bytes;
        for (uint64_t n = random.below(4) + 1; n > 0; --n)
            changed[random.below(changed.size())] = static_cast<char>(random.next());
        refused += !decode_batch(changed).ok();
    }
    CHECK(refused > 100);
}

TEST_CASE("event codec: an enumerator out of range is refused") {
    EventBatch batch;
    batch.events = {TurnSettled{static_cast<TurnStatus>(200), {}, {}}};
    auto again = decode_batch(encode(batch));
    REQUIRE_FALSE(again.ok());
    CHECK(again.error().message.find("enumerator") != std::string::npos);
}

TEST_CASE("event codec: a few bytes that unpack to a great many are refused") {
    std::string bomb;
    for (int i = 0; i < 100'000; ++i) bomb.append(std::string("\0\xff", 2));
    auto batch = decode_batch(bomb);
    REQUIRE_FALSE(batch.ok());
    CHECK(batch.error().message.find("unpacks to more") != std::string::npos);
}

TEST_CASE("event codec: a text of nothing but NUL comes back, though it packs to nearly nothing") {
    for (size_t size : {size_t{1000}, size_t{70'000}, limits::input_bytes_max, limits::model_step_bytes_max}) {
        EventBatch batch;
        batch.turn = TurnNo{1};
        auto item = std::make_shared<Item>();
        item->text = std::string(size, '\0');
        batch.events = {InputAccepted{}};
        std::get<InputAccepted>(batch.events[0]).items = {item};
        const std::string bytes = encode(batch);
        CHECK(bytes.size() < size / 8);
        auto again = decode_batch(bytes);
        REQUIRE_MESSAGE(again.ok(), (again.ok() ? "" : again.error().message));
        CHECK(std::get<InputAccepted>(again->events[0]).items[0]->text == item->text);
    }
}

TEST_CASE("event codec: elements that cost no bytes are counted") {
    EventBatch batch;
    batch.turn = TurnNo{1};
    auto item = std::make_shared<Item>();
    item->more_parts.resize(limits::input_parts_max);
    batch.events = {ItemsAdded{std::vector<ItemPtr>(3, item), "ann"}};
    CHECK(decode_batch(encode(batch)).ok());
    batch.events = {ItemsAdded{std::vector<ItemPtr>(5, item), "ann"}};
    CHECK_FALSE(decode_batch(encode(batch)).ok());
    batch.events.assign(limits::batch_elements_max, Decision{});
    CHECK(decode_batch(encode(batch)).ok());
    batch.events.emplace_back(Decision{});
    CHECK_FALSE(decode_batch(encode(batch)).ok());

    // A list of a million structs of no size, in a message of five words.
    const uint64_t table = 5ull << 32;
    const uint64_t words[] = {2ull << 32 | 1ull << 48, 1, 1, 1 | 7ull << 32, (1ull << 20) << 2};
    std::string hollow(packed_size_max(6), '\0');
    size_t size = pack_words(&table, 1, hollow.data());
    size += pack_words(words, 5, hollow.data() + size);
    hollow.resize(size);
    auto refused = decode_batch(hollow);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.find("more elements") != std::string::npos);
}

TEST_CASE("packing: words come back, whatever their zeros") {
    SeededRandom random(7);
    for (int round = 0; round < 300; ++round) {
        std::vector<uint64_t> words(random.below(700));
        for (uint64_t& word : words) {
            word = random.next();
            if (round % 3 == 0) word &= random.next() & random.next() & 0x00ff00ffff000000;
            if (random.below(4) == 0) word = 0;
            if (round % 5 == 0) word |= 0x0101010101010101;
        }
        if (round % 7 == 0) std::fill(words.begin(), words.end(), 0);
        std::string packed(packed_size_max(words.size()), '\0');
        packed.resize(pack_words(words.data(), words.size(), packed.data()));
        REQUIRE(unpacked_words(packed) == words.size());
        std::vector<uint64_t> again(words.size());
        unpack_words(packed, again.data());
        REQUIRE(again == words);
    }
}
