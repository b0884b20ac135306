#pragma once
// Choosing a token from logits, as sampling_params.h promises: a pure function of its arguments. The random number
// of a position is the output of Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as
// 1, 2, 3; SC 2011) with the seed as its key and the position as its counter, so nothing is kept between tokens and
// any position can be chosen again. Exponentials are computed here, not by the C library, whose last bit depends on the
// machine.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.h"
#include "runtime/inference/sampling_params.h"

namespace mainstay {

/// Greedy: the largest logit, among equals the lowest id. Otherwise softmax of logits / temperature over the top_k
/// largest (ties: lower ids first), cut to the fewest of these whose share reaches top_p, at least one; then the token
/// in which the position's random number falls, from the most probable on. Logits of -infinity and NaN are never
/// chosen; token 0 where there is no other. `logits` is not empty. Cost: O(n), and O(n log n) in the worst case of
/// top_p.
TokenId sample(std::span<const float> logits, const SamplingParams& params, uint64_t seed, uint64_t position);

/// Philox4x32-10 of the counter {position, 0} and the key `seed`.
std::array<uint32_t, 4> philox(uint64_t seed, uint64_t position);
/// Of the first two words: uniform in [0, 1), a multiple of 2^-53.
double uniform(uint64_t seed, uint64_t position);

/// Texts at which generation ends. A text that is found, and what follows it, is not shown; what could be the beginning
/// of one is held back until it is decided. One owner.
class StopSequences {
  public:
    /// Empty texts, and more or longer ones than the bounds, are invalid_request.
    static Result<StopSequences> make(std::vector<std::string> texts);

    /// What may be shown now. Nothing after found().
    std::string push(std::string_view text);
    bool found() const { return found_; }
    /// What was held back where none was found.
    std::string finish();

  private:
    std::vector<std::string> texts_;
    std::string held_;
    bool found_ = false;
};

}  // namespace mainstay
