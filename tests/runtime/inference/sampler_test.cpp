#include "runtime/inference/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

SamplingParams params(float temperature, uint32_t top_k = 0, float top_p = 1.0f) {
    SamplingParams made;
    made.temperature = temperature;
    made.top_k = top_k;
    made.top_p = top_p;
    return made;
}

/// Shares of the tokens over `count` positions.
std::map<TokenId, double> shares(std::span<const float> logits, const SamplingParams& how, uint64_t seed, int count) {
    std::map<TokenId, double> found;
    for (int i = 0; i < count; ++i) found[sample(logits, how, seed, static_cast<uint64_t>(i))] += 1.0 / count;
    return found;
}

}  // namespace

TEST_CASE("sampler: random numbers are those of the published generator") {
    // Known answers of Random123 1.14 (kat_vectors, philox 4x32 with 10 rounds), as far as our counters reach.
    CHECK(philox(0, 0) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    for (uint64_t position = 0; position < 1000; ++position) {
        CHECK(uniform(7, position) >= 0.0);
        CHECK(uniform(7, position) < 1.0);
    }
    CHECK(uniform(7, 1) != uniform(7, 2));
    CHECK(uniform(7, 1) != uniform(8, 1));
    CHECK(uniform(uint64_t{7} << 32, 1) != uniform(7, 1));
    CHECK(uniform(7, uint64_t{1} << 32) != uniform(7, 0));
}

TEST_CASE("sampler: greedy takes the largest logit, among equals the lowest id") {
    const std::vector<float> logits{1, 5, 5, -2};
    CHECK(sample(logits, params(0), 1, 1) == 1);
    CHECK(sample(logits, params(0, 1, 0.1f), 9, 9) == 1);
    CHECK(sample(logits, params(0.8f, 1), 9, 9) == 1);
    const std::vector<float> masked{-INFINITY, -INFINITY, -300.0f, NAN};
    CHECK(sample(masked, params(0), 1, 1) == 2);
    CHECK(sample(masked, params(1), 1, 1) == 2);
    const std::vector<float> infinite{1, INFINITY, 2};
    CHECK(sample(infinite, params(1), 1, 1) == 1);
    const std::vector<float> none{-INFINITY, -INFINITY};
    CHECK(sample(none, params(0), 1, 1) == 0);
    CHECK(sample(none, params(1), 1, 1) == 0);
}

TEST_CASE("sampler: the same arguments choose the same token, other positions and seeds other ones") {
    std::vector<float> logits(300);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
    int moved = 0;
    for (uint64_t position = 0; position < 200; ++position) {
        const TokenId first = sample(logits, params(1), 3, position);
        CHECK(sample(logits, params(1), 3, position) == first);
        moved += sample(logits, params(1), 4, position) != first;
    }
    CHECK(moved > 150);
    // Pinned, so that a change of the arithmetic is seen: a session that is resumed must go on with the same tokens.
    std::vector<TokenId> run;
    for (uint64_t position = 0; position < 8; ++position)
        run.push_back(sample(logits, params(0.7f, 40, 0.9f), 42, position));
    CHECK(run == std::vector<TokenId>{184, 203, 71, 272, 58, 253, 146, 297});
}

TEST_CASE("sampler: shares follow the softmax of logits over temperature") {
    const std::vector<float> logits{0.0f, std::log(2.0f), std::log(5.0f)};
    const auto plain = shares(logits, params(1), 5, 40'000);
    CHECK(plain.at(0) == doctest::Approx(1.0 / 8).epsilon(0.03));
    CHECK(plain.at(1) == doctest::Approx(2.0 / 8).epsilon(0.03));
    CHECK(plain.at(2) == doctest::Approx(5.0 / 8).epsilon(0.03));
    const auto cold = shares(logits, params(0.5f), 6, 40'000);  // squares: 1, 4, 25
    CHECK(cold.at(1) == doctest::Approx(4.0 / 30).epsilon(0.05));
    CHECK(cold.at(2) == doctest::Approx(25.0 / 30).epsilon(0.03));
}

TEST_CASE("sampler: top-k and top-p cut what is less probable, ties by id") {
    const std::vector<float> logits{0.0f, 3.0f, 1.0f, 3.0f, 1.0f};
    auto two = shares(logits, params(1, 2), 5, 2'000);
    CHECK(two.size() == 2);
    CHECK(two.contains(1));
    CHECK(two.contains(3));
    const auto three = shares(logits, params(1, 3), 5, 5'000);
    CHECK(three.size() == 3);
    CHECK(three.contains(2));
    CHECK_FALSE(three.contains(4));
    // 3 and 3 hold 86 % of all, one of them 43 %.
    CHECK(shares(logits, params(1, 0, 0.42f), 5, 500).size() == 1);
    CHECK(shares(logits, params(1, 0, 0.44f), 5, 500).size() == 2);
    CHECK(shares(logits, params(1, 0, 0.88f), 5, 5'000).size() == 3);
    CHECK(shares(logits, params(1, 0, 0.0f), 5, 500).size() == 1);
    CHECK(shares(logits, params(1, 3, 0.45f), 5, 500).size() == 1);  // of the three that are left: 47 %
    CHECK(shares(logits, params(1, 3, 0.50f), 5, 500).size() == 2);
    CHECK(shares(logits, params(1, 99, 1.0f), 5, 5'000).size() == 5);
    // A low temperature is nearly greedy and divides by no zero.
    CHECK(shares({logits.data(), 3}, params(1e-30f), 5, 100).size() == 1);
}

TEST_CASE("stop sequences: what is found is not shown, what could begin one is held back") {
    auto stops = StopSequences::make({"STOP", "\n\n"});
    REQUIRE(stops.ok());
    CHECK(stops->push("a ST") == "a ");
    CHECK(stops->push("R") == "STR");
    CHECK(stops->push("\n") == "");
    CHECK(stops->push("b\nS") == "\nb\n");
    CHECK(stops->push("T") == "");
    CHECK_FALSE(stops->found());
    CHECK(stops->push("OP here") == "");
    CHECK(stops->found());
    CHECK(stops->push("more") == "");
    CHECK(stops->finish() == "");

    auto open = StopSequences::make({"STOP"});
    CHECK(open->push("end STO") == "end ");
    CHECK(open->finish() == "STO");
    auto both = StopSequences::make({"bc", "abcd"});
    CHECK(both->push("xabc") == "xa");
    CHECK(both->found());
    CHECK(StopSequences::make({})->push("as it is") == "as it is");

    CHECK(StopSequences::make({""}).error().code == ErrorCode::invalid_request);
    CHECK(StopSequences::make(std::vector<std::string>(limits::stop_sequences_max + 1, "x")).error().param == "stop");
    CHECK_FALSE(StopSequences::make({std::string(limits::stop_sequence_bytes_max + 1, 'x')}).ok());
}
