#pragma once
// How the next token is chosen from logits. The choice is a pure function of (logits, parameters, seed, position), so a
// step that is run again, in another batch, after a restore or on another worker with the same kernel, chooses the same
// token. No state is kept between tokens: the position is the counter of the generator.

#include <cstdint>
#include <span>

namespace mainstay {

/// An index into the model's vocabulary.
using TokenId = uint32_t;

struct SamplingParams {
    float temperature =
        0.0f;            // 0: greedy, the largest logit and among equals the lowest id; top_k and top_p are unused
    uint32_t top_k = 0;  // 0: all
    float top_p = 1.0f;  // 1: all

    bool greedy() const { return temperature <= 0.0f; }
    friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

/// `position` is the index in the sequence that the chosen token will have. Logits that a mask forbids are -infinity;
/// at least one is finite. Pure, deterministic and callable from any thread. runtime/inference/sampler.h has ours.
using SampleFunction = TokenId (*)(std::span<const float> logits, const SamplingParams& params, uint64_t seed,
                                   uint64_t position);

}  // namespace mainstay
