#include "runtime/inference/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

constexpr double smallest = -700.0;  // e to this is a normal number yet

/// e^x for x <= 0, to about 1e-15, from additions and multiplications alone.
double exponential(double x) {
    if (!(x > smallest)) return 0.0;
    constexpr double log2_e = 1.4426950408889634074, ln2_high = 0.69314718036912381649,
                     ln2_low = 1.9082149292705877e-10;
    const double n = static_cast<double>(static_cast<int64_t>(x * log2_e - 0.5));
    const double r = x - n * ln2_high - n * ln2_low;  // within half of ln 2
    double sum = 1.0;
    for (int k = 13; k > 0; --k) sum = 1.0 + sum * r / k;
    const uint64_t power = static_cast<uint64_t>(1023 + static_cast<int64_t>(n)) << 52;
    return sum * std::bit_cast<double>(power);
}

struct Candidate {
    float logit;
    TokenId token;
    /// More probable first; among equals the lower id.
    bool operator<(const Candidate& other) const {
        return logit != other.logit ? logit > other.logit : token < other.token;
    }
};

TokenId largest(std::span<const float> logits) {
    TokenId best = 0;
    float value = -INFINITY;
    for (size_t i = 0; i < logits.size(); ++i) {
        if (!(logits[i] > value)) continue;
        value = logits[i];
        best = static_cast<TokenId>(i);
    }
    return best;
}

}  // namespace

std::array<uint32_t, 4> philox(uint64_t seed, uint64_t position) {
    auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    std::array<uint32_t, 4> x{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * x[0], b = uint64_t{0xCD9E8D57} * x[2];
        x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ key0, static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ x[3] ^ key1, static_cast<uint32_t>(a)};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return x;
}

double uniform(uint64_t seed, uint64_t position) {
    const auto words = philox(seed, position);
    const uint64_t bits = uint64_t{words[0]} << 32 | words[1];
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

TokenId sample(std::span<const float> logits, const SamplingParams& params, uint64_t seed, uint64_t position) {
    if (params.greedy() || params.top_k == 1) return largest(logits);
    std::vector<Candidate> candidates;
    candidates.reserve(logits.size());
    for (size_t i = 0; i < logits.size(); ++i)
        if (logits[i] > -INFINITY) candidates.push_back({logits[i], static_cast<TokenId>(i)});
    if (candidates.empty()) return 0;

    if (params.top_k > 0 && params.top_k < candidates.size()) {
        std::nth_element(candidates.begin(), candidates.begin() + params.top_k, candidates.end());
        candidates.resize(params.top_k);
    }
    const double top = std::min_element(candidates.begin(), candidates.end())->logit;
    // A logit of +infinity would make the others' shares NaN: it is simply chosen.
    if (std::isinf(top)) return std::min_element(candidates.begin(), candidates.end())->token;
    const double temperature = params.temperature;
    const auto weight = [&](const Candidate& c) { return exponential((c.logit - top) / temperature); };

    double total = 0;
    for (const auto& candidate : candidates) total += weight(candidate);
    size_t count = candidates.size();
    double kept = total;
    if (params.top_p < 1) {
        // All that are below this together hold less than what top_p cuts off: they need no sorting.
        const double least = total * (1.0 - std::max(0.0f, params.top_p)) / static_cast<double>(candidates.size());
        std::erase_if(candidates, [&](const Candidate& c) { return weight(c) < least && c.logit < top; });
        std::sort(candidates.begin(), candidates.end());
        kept = 0;
        for (count = 0; count < candidates.size() && (count == 0 || kept < total * params.top_p); ++count)
            kept += weight(candidates[count]);
    }

    const double point = uniform(seed, position) * kept;
    double sum = 0;
    for (size_t i = 0; i < count; ++i) {
        sum += weight(candidates[i]);
        if (point < sum) return candidates[i].token;
    }
    return candidates[count - 1].token;
}

Result<StopSequences> StopSequences::make(std::vector<std::string> texts) {
    if (texts.size() > limits::stop_sequences_max)
        return Error{ErrorCode::invalid_request,
                     "stop has " + std::to_string(texts.size()) + " texts; stop_sequences_max is " +
                         std::to_string(limits::stop_sequences_max),
                     "stop"};
    for (const auto& text : texts) {
        if (text.empty()) return Error{ErrorCode::invalid_request, "stop holds an empty text", "stop"};
        if (text.size() > limits::stop_sequence_bytes_max)
            return Error{ErrorCode::invalid_request,
                         "a text of stop is longer than stop_sequence_bytes_max = " +
                             std::to_string(limits::stop_sequence_bytes_max),
                         "stop"};
    }
    StopSequences made;
    made.texts_ = std::move(texts);
    return made;
}

std::string StopSequences::push(std::string_view text) {
    if (found_) return {};
    if (texts_.empty()) return std::string(text);
    held_ += text;
    size_t at = std::string::npos;
    for (const auto& stop : texts_) at = std::min(at, held_.find(stop));
    if (at != std::string::npos) {
        found_ = true;
        std::string shown = held_.substr(0, at);
        held_.clear();
        return shown;
    }
    // The longest end of what is held that begins a stop text.
    size_t keep = 0;
    for (const auto& stop : texts_) {
        for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
            if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) keep = n;
        }
    }
    std::string shown = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    return shown;
}

std::string StopSequences::finish() {
    std::string rest = std::move(held_);
    held_.clear();
    return rest;
}

}  // namespace mainstay
