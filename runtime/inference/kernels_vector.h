#pragma once
// The kernels' bodies, over a vector type that each instruction set's file defines as `Lanes` in its own unnamed
// namespace before it includes this. Everything here has internal linkage and calls nothing inline from a library:
// these files are compiled with flags of their own, and a weak symbol made here would be linked into code for every
// machine. Belongs to kernels_*.cpp only.
//
// `Lanes` gives: F (floats), I (int32), width (4, 8 or 16), load, store, all(float), fma(a, b, c) = a * b + c,
// widen(const uint16_t*) -> F, pairs(const uint16_t*, F& even, F& odd), narrow(uint16_t*, F), and rows (how many rows
// of 32, or 16, columns fit its registers).

#include "runtime/inference/kernels.h"

namespace mainstay {
namespace {

using F = Lanes::F;
using I = Lanes::I;
constexpr int W = Lanes::width;
constexpr int parts = 16 / W;  // vectors of 16 floats
static_assert(16 % W == 0);

inline uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline F zero() { return Lanes::all(0.0f); }
inline I first_lanes() {  // 0, 1, 2, ...
    I out = {};
    for (int i = 0; i < W; ++i) out[i] = i;
    return out;
}
inline F choose(I mask, F yes, F no) { return (F)(((I)yes & mask) | ((I)no & ~mask)); }
inline F larger(F a, F b) { return choose(a > b, a, b); }

/// The upper half of the first `Half * 2` lanes onto the lower; the others are of no interest.
template <int Half, int Width = W>  // Width: so that the branches of other widths are not looked at
inline F fold(F v) {
    if constexpr (Width == 16)
        return (F)__builtin_shufflevector(v, v, (Half + 0) % Width, (Half + 1) % Width, (Half + 2) % Width,
                                          (Half + 3) % Width, (Half + 4) % Width, (Half + 5) % Width,
                                          (Half + 6) % Width, (Half + 7) % Width, 8 % Width, 9 % Width, 10 % Width,
                                          11 % Width, 12 % Width, 13 % Width, 14 % Width, 15 % Width);
    else if constexpr (Width == 8)
        return (F)__builtin_shufflevector(v, v, (Half + 0) % Width, (Half + 1) % Width, (Half + 2) % Width,
                                          (Half + 3) % Width, 4 % Width, 5 % Width, 6 % Width, 7 % Width);
    else
        return (F)__builtin_shufflevector(v, v, (Half + 0) % Width, (Half + 1) % Width, 2 % Width, 3 % Width);
}

inline float sum_of(F v) {  // halves onto halves: the same tree for every row
    if constexpr (W == 16) v = v + fold<8>(v);
    if constexpr (W >= 8) v = v + fold<4>(v);
    v = v + fold<2>(v);
    v = v + fold<1>(v);
    return v[0];
}

inline float max_of(F v) {
    if constexpr (W == 16) v = larger(v, fold<8>(v));
    if constexpr (W >= 8) v = larger(v, fold<4>(v));
    v = larger(v, fold<2>(v));
    v = larger(v, fold<1>(v));
    return v[0];
}

/// e^x for x <= 88; below -87 it is 0 to within 1e-38. Cody-Waite reduction and a polynomial of degree 6 (Cephes expf),
/// relative error below 2e-7. Rounds to the nearest integer by adding 1.5 * 2^23, which leaves it in the low bits.
inline F exponential(F x) {
    const F magic = Lanes::all(12582912.0f);
    x = larger(x, Lanes::all(-87.0f));
    x = choose(x < Lanes::all(88.0f), x, Lanes::all(88.0f));
    const F shifted = Lanes::fma(x, Lanes::all(1.44269504088896341f), magic);
    const F n = shifted - magic;
    F r = Lanes::fma(n, Lanes::all(-0.693359375f), x);
    r = Lanes::fma(n, Lanes::all(2.12194440e-4f), r);
    F p = Lanes::all(1.9875691500e-4f);
    p = Lanes::fma(p, r, Lanes::all(1.3981999507e-3f));
    p = Lanes::fma(p, r, Lanes::all(8.3334519073e-3f));
    p = Lanes::fma(p, r, Lanes::all(4.1665795894e-2f));
    p = Lanes::fma(p, r, Lanes::all(1.6666665459e-1f));
    p = Lanes::fma(p, r, Lanes::all(5.0000001201e-1f));
    p = Lanes::fma(p, r * r, r) + Lanes::all(1.0f);
    return p * (F)(((I)shifted + 127) << 23);
}

// --- products -------------------------------------------------------------------------------------------------------

/// R rows by C groups of 16 columns, one accumulator chain per element by rising k.
template <int R, int C>
inline void product_f32_rows(const float* w, const float* x, size_t x_stride, float* y, size_t y_stride, uint32_t k,
                             bool accumulate) {
    F sum[R][C * parts];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C * parts; ++c) sum[r][c] = zero();
    for (uint32_t i = 0; i < k; ++i) {
        const float* at = w + size_t(panel_columns) * i;
        __builtin_prefetch(at + 1024);
        if constexpr (C > 1) __builtin_prefetch(at + 1040);
        F column[C * parts];
        for (int c = 0; c < C * parts; ++c) column[c] = Lanes::load(at + c * W);
        for (int r = 0; r < R; ++r) {
            const F value = Lanes::all(x[r * x_stride + i]);
            for (int c = 0; c < C * parts; ++c) sum[r][c] = Lanes::fma(column[c], value, sum[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C * parts; ++c) {
            float* to = y + r * y_stride + c * W;
            Lanes::store(to, accumulate ? Lanes::load(to) + sum[r][c] : sum[r][c]);
        }
}

/// The same for BF16 weights, widened, with rows of floats: even k, then odd k, of each pair.
template <int R, int C>
inline void product_wide_rows(const uint16_t* w, const float* x, size_t x_stride, float* y, size_t y_stride, uint32_t k,
                              bool accumulate) {
    F sum[R][C * parts];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C * parts; ++c) sum[r][c] = zero();
    for (uint32_t i = 0; i < k; i += 2) {
        const uint16_t* at = w + size_t(panel_columns) * i;
        __builtin_prefetch(at + 2048);
        if constexpr (C > 1) __builtin_prefetch(at + 2080);
        F even[C * parts], odd[C * parts];
        for (int c = 0; c < C * parts; ++c) Lanes::pairs(at + 2 * c * W, even[c], odd[c]);
        for (int r = 0; r < R; ++r) {
            const F first = Lanes::all(x[r * x_stride + i]), second = Lanes::all(x[r * x_stride + i + 1]);
            for (int c = 0; c < C * parts; ++c) {
                sum[r][c] = Lanes::fma(even[c], first, sum[r][c]);
                sum[r][c] = Lanes::fma(odd[c], second, sum[r][c]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C * parts; ++c) {
            float* to = y + r * y_stride + c * W;
            Lanes::store(to, accumulate ? Lanes::load(to) + sum[r][c] : sum[r][c]);
        }
}

/// Walks panels, then rows in registers' worth, largest first; `Rows<R>::run` does R rows of `C * 16` columns.
template <template <int> class Rows, int C, class Weight, class Input>
inline void walk(const Product& p) {
    for (uint32_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
        for (int part = 0; part < 2; part += C) {
            // Sixteen columns are 16 floats of each F32 row of a panel, and 32 BF16 of each pair of rows.
            const Weight* w = (const Weight*)p.weights + size_t(panel) * p.k * panel_columns +
                              size_t(part) * (sizeof(Weight) == 2 ? 32 : 16);
            for (uint32_t row = 0; row < p.rows;) {
                const Input* x = (const Input*)p.x + row * p.x_stride;
                float* y = p.y + row * p.y_stride + panel * panel_columns + part * 16;
                const uint32_t left = p.rows - row;
                if (Lanes::rows >= 8 && left >= 8) {
                    Rows<8>::run(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
                    row += 8;
                } else if (Lanes::rows >= 4 && left >= 4) {
                    Rows<4>::run(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
                    row += 4;
                } else if (left >= 2) {
                    Rows<2>::run(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
                    row += 2;
                } else {
                    Rows<1>::run(w, x, p.x_stride, y, p.y_stride, p.k, p.accumulate);
                    row += 1;
                }
            }
        }
    }
}

constexpr int product_parts = W == 16 ? 2 : 1;  // groups of 16 columns that fit the registers with the rows
template <int R>
struct RowsF32 {
    static void run(const float* w, const float* x, size_t xs, float* y, size_t ys, uint32_t k, bool accumulate) {
        product_f32_rows<R, product_parts>(w, x, xs, y, ys, k, accumulate);
    }
};
template <int R>
struct RowsWide {
    static void run(const uint16_t* w, const float* x, size_t xs, float* y, size_t ys, uint32_t k, bool accumulate) {
        product_wide_rows<R, product_parts>(w, x, xs, y, ys, k, accumulate);
    }
};
void product_f32(const Product& p) { walk<RowsF32, product_parts, float, float>(p); }
[[maybe_unused]] void product_wide(const Product& p) { walk<RowsWide, product_parts, uint16_t, float>(p); }

void to_bf16(const float* x, uint32_t n, uint16_t* out) {
    uint32_t i = 0;
    for (; i + W <= n; i += W) Lanes::narrow(out + i, Lanes::load(x + i));
    if (i == n) return;
    float rest[W] = {};
    uint16_t narrow[W];
    for (uint32_t j = i; j < n; ++j) rest[j - i] = x[j];
    Lanes::narrow(narrow, Lanes::load(rest));
    for (uint32_t j = i; j < n; ++j) out[j] = narrow[j - i];
}

// --- attention ------------------------------------------------------------------------------------------------------

/// Running state of one query: maximum, sum of exponentials and the weighted sum of values so far.
struct Online {
    float maximum;
    float sum;
};

constexpr int span_tiles = kv_span_tokens / kv_tile_tokens;
constexpr int span_vectors = kv_span_tokens / W;

/// Scores of Q queries against N tiles of 16 keys. Even dimensions and odd ones are two chains, added at the
/// end.
template <int Q, int N, class T>
inline void tile_scores(const float* const* q, const T* const* keys, const T* const* ahead, uint32_t head_dim,
                        float* scores) {
    F even[Q][N][parts], odd[Q][N][parts];
    for (int n = 0; n < Q; ++n)
        for (int t = 0; t < N; ++t)
            for (int c = 0; c < parts; ++c) even[n][t][c] = odd[n][t][c] = zero();
    for (uint32_t d = 0; d < head_dim; d += 2)
        for (int t = 0; t < N; ++t) {
            __builtin_prefetch(ahead[t] + d * 16);
            if constexpr (sizeof(T) == 4) __builtin_prefetch(ahead[t] + d * 16 + 16);
            for (int c = 0; c < parts; ++c) {
                F first, second;
                if constexpr (sizeof(T) == 2) {
                    Lanes::pairs(keys[t] + d * 16 + 2 * c * W, first, second);
                } else {
                    first = Lanes::load(keys[t] + d * 16 + c * W);
                    second = Lanes::load(keys[t] + d * 16 + 16 + c * W);
                }
                for (int n = 0; n < Q; ++n) {
                    even[n][t][c] = Lanes::fma(first, Lanes::all(q[n][d]), even[n][t][c]);
                    odd[n][t][c] = Lanes::fma(second, Lanes::all(q[n][d + 1]), odd[n][t][c]);
                }
            }
        }
    for (int n = 0; n < Q; ++n)
        for (int t = 0; t < N; ++t)
            for (int c = 0; c < parts; ++c)
                Lanes::store(scores + n * kv_span_tokens + t * kv_tile_tokens + c * W, even[n][t][c] + odd[n][t][c]);
}

/// As many tiles at once as hide the latency and fit the registers.
template <int Q, class T>
inline void span_scores(const float* const* q, const T* const* keys, const T* const* ahead, uint32_t tiles,
                        uint32_t head_dim, float* scores) {
    constexpr int together = W < 16 ? 1 : Q == 1 ? 4 : 2;
    uint32_t t = 0;
    for (; t + together <= tiles; t += together)
        tile_scores<Q, together>(q, keys + t, ahead + t, head_dim, scores + t * kv_tile_tokens);
    for (; t < tiles; ++t) tile_scores<Q, 1>(q, keys + t, ahead + t, head_dim, scores + t * kv_tile_tokens);
}

/// Turns the span's scores into weights; lanes from `valid` on count nothing. Returns by how much the sums so far
/// shrink.
inline float span_softmax(float* scores, uint32_t valid, float scale, Online& state) {
    F value[span_vectors];
    const F nothing_at_all = Lanes::all(-__builtin_inff());
    const I lane = first_lanes();
    F largest = nothing_at_all;
    for (int c = 0; c < span_vectors; ++c) {
        value[c] = Lanes::load(scores + c * W) * Lanes::all(scale);
        value[c] = choose(lane + c * W < int(valid), value[c], nothing_at_all);
        largest = larger(value[c], largest);
    }
    const float span_max = max_of(largest);
    const float maximum = span_max > state.maximum ? span_max : state.maximum;
    F total = zero();
    for (int c = 0; c < span_vectors; ++c) {
        // -87 stands for "nothing" in exponential(); what counts nothing must be exactly 0.
        const F weight = choose(value[c] > nothing_at_all, exponential(value[c] - Lanes::all(maximum)), zero());
        Lanes::store(scores + c * W, weight);
        total = total + weight;
    }
    float lanes[W];
    Lanes::store(lanes, exponential(Lanes::all(state.maximum - maximum)));
    const float shrink = state.sum == 0.0f ? 0.0f : lanes[0];
    state.sum = state.sum * shrink + sum_of(total);
    state.maximum = maximum;
    return shrink;
}

/// out[n] = out[n] * shrink[n] + the sum over keys of weight * value, D groups of 16 dimensions, in two chains: the
/// even keys, begun with what was there, and the odd ones, added at the end.
template <int Q, int D, class T>
inline void span_values(const float* weights, const T* const* tiles, const T* const* ahead, uint32_t valid,
                        uint32_t value_stride, uint32_t from, const float* shrink, float* const* out) {
    F one[Q][D * parts], other[Q][D * parts];
    for (int n = 0; n < Q; ++n)
        for (int c = 0; c < D * parts; ++c) {
            one[n][c] = Lanes::load(out[n] + from + c * W) * Lanes::all(shrink[n]);
            other[n][c] = zero();
        }
    // The rows of keys `key` and `key + 1`: BF16 has them side by side, dimension by dimension.
    const auto place = [&](uint32_t key) __attribute__((always_inline)) {
        const size_t at = size_t(key % kv_tile_tokens) * value_stride + (sizeof(T) == 2 ? 2 : 1) * from;
        const char* next = (const char*)(ahead[key / kv_tile_tokens] + at);
        for (size_t line = 0; line < D * 64; line += 64) {
            __builtin_prefetch(next + line);
            if constexpr (sizeof(T) == 4) __builtin_prefetch(next + line + 4 * value_stride);
        }
        return tiles[key / kv_tile_tokens] + at;
    };
    const auto add_two = [&](uint32_t key, bool both) __attribute__((always_inline)) {
        const T* row = place(key);
        for (int c = 0; c < D * parts; ++c) {
            F first, second;
            if constexpr (sizeof(T) == 2) {
                Lanes::pairs(row + 2 * c * W, first, second);
            } else {
                first = Lanes::load(row + c * W);
                if (both) second = Lanes::load(row + value_stride + c * W);
            }
            for (int n = 0; n < Q; ++n) {
                one[n][c] = Lanes::fma(Lanes::all(weights[n * kv_span_tokens + key]), first, one[n][c]);
                if (both)
                    other[n][c] = Lanes::fma(Lanes::all(weights[n * kv_span_tokens + key + 1]), second, other[n][c]);
            }
        }
    };
    uint32_t key = 0;
    for (; key + 2 <= valid; key += 2) add_two(key, true);
    if (key < valid) add_two(key, false);
    for (int n = 0; n < Q; ++n)
        for (int c = 0; c < D * parts; ++c) Lanes::store(out[n] + from + c * W, one[n][c] + other[n][c]);
}

/// As many dimensions at once as the registers hold for Q queries.
template <int Q, class T>
inline void all_values(const float* weights, const T* const* tiles, const T* const* ahead, uint32_t valid,
                       uint32_t padded, const float* shrink, float* const* out) {
    uint32_t from = 0;
    if constexpr (W == 16 && Q <= 2) {
        for (; from + 64 <= padded; from += 64)
            span_values<Q, 4>(weights, tiles, ahead, valid, padded, from, shrink, out);
        if (padded - from == 48) {
            span_values<Q, 3>(weights, tiles, ahead, valid, padded, from, shrink, out);
            return;
        }
    }
    if constexpr (W == 16 || (W == 8 && Q == 1))
        for (; from + 32 <= padded; from += 32)
            span_values<Q, 2>(weights, tiles, ahead, valid, padded, from, shrink, out);
    for (; from < padded; from += 16) span_values<Q, 1>(weights, tiles, ahead, valid, padded, from, shrink, out);
}

/// Q queries together; query n sees positions below `ends[n]`. Spans that not all of them see whole are taken one by
/// one, with the same arithmetic.
template <int Q, class T>
inline void attend_queries(const Attention& a, const float* const* q, const uint32_t* ends, float* const* result) {
    const uint32_t padded = (a.head_dim + 15) / 16 * 16;
    const uint32_t block_tiles = a.block_tokens / kv_tile_tokens;
    float* scores = a.scratch;
    float* sums = a.scratch + Q * kv_span_tokens;
    float* out[Q];
    Online state[Q];
    uint32_t first_end = ends[0], last_end = ends[0];
    for (int n = 0; n < Q; ++n) {
        out[n] = sums + n * padded;
        for (uint32_t d = 0; d < padded; ++d) out[n][d] = 0.0f;
        state[n] = {-__builtin_inff(), 0.0f};
        first_end = ends[n] < first_end ? ends[n] : first_end;
        last_end = ends[n] > last_end ? ends[n] : last_end;
    }
    const uint32_t tile_keys = kv_tile_tokens * a.head_dim, tile_values = kv_tile_tokens * padded;
    const T* keys[2][span_tiles] = {};
    const T* values[2][span_tiles] = {};
    // The tiles of the span at `begin`, of the head at `offset` bytes from this one; none beyond the context.
    const auto locate = [&](uint32_t begin, size_t offset, const T** keys_of, const T** values_of) {
        for (uint32_t t = 0; t < span_tiles; ++t) {
            const uint32_t tile = begin / kv_tile_tokens + t;
            if (tile * kv_tile_tokens >= last_end) {
                keys_of[t] = keys_of[0];
                values_of[t] = values_of[0];
                continue;
            }
            const uint8_t* page = a.pages + size_t(a.block_table[tile / block_tiles]) * a.page_stride + offset;
            keys_of[t] = (const T*)(page + a.key_offset) + size_t(tile % block_tiles) * tile_keys;
            values_of[t] = (const T*)(page + a.value_offset) + size_t(tile % block_tiles) * tile_values;
        }
    };
    locate(0, 0, keys[0], values[0]);
    int now = 0;
    for (uint32_t begin = 0; begin < last_end; begin += kv_span_tokens, now ^= 1) {
        const uint32_t seen = least(last_end - begin, kv_span_tokens);
        const uint32_t tiles = (seen + kv_tile_tokens - 1) / kv_tile_tokens;
        // What comes next is fetched meanwhile: pages lie anywhere, and the processor's own prefetch ends at each.
        // After the last span that is the next head's first, which the same thread mostly takes.
        if (begin + kv_span_tokens < last_end)
            locate(begin + kv_span_tokens, 0, keys[now ^ 1], values[now ^ 1]);
        else
            locate(0, a.next_head_offset, keys[now ^ 1], values[now ^ 1]);
        span_scores<Q>(q, keys[now], keys[now ^ 1], tiles, a.head_dim, scores);
        float shrink[Q] = {};
        for (int n = 0; n < Q; ++n)
            if (ends[n] > begin)
                shrink[n] = span_softmax(scores + n * kv_span_tokens, least(ends[n] - begin, kv_span_tokens), a.scale,
                                         state[n]);
        if (first_end >= begin + seen) {
            all_values<Q>(scores, values[now], values[now ^ 1], seen, padded, shrink, out);
        } else {
            for (int n = 0; n < Q; ++n)
                if (ends[n] > begin)
                    all_values<1>(scores + n * kv_span_tokens, values[now], values[now ^ 1],
                                  least(ends[n] - begin, kv_span_tokens), padded, shrink + n, out + n);
        }
    }
    for (int n = 0; n < Q; ++n) {
        const float inverse = 1.0f / state[n].sum;
        for (uint32_t d = 0; d < a.head_dim; ++d) result[n][d] = out[n][d] * inverse;
    }
}

template <class T>
void attend(const Attention& a) {
    const uint32_t total = a.tokens * a.group;
    for (uint32_t at = 0; at < total;) {
        const float* q[attention_queries_max];
        float* out[attention_queries_max];
        uint32_t ends[attention_queries_max];
        const uint32_t count = least(total - at, attention_queries_max);
        for (uint32_t n = 0; n < count; ++n) {
            const uint32_t token = (at + n) / a.group, head = (at + n) % a.group;
            q[n] = a.q + token * a.q_stride + head * a.head_dim;
            out[n] = a.out + token * a.out_stride + head * a.head_dim;
            ends[n] = a.position + token + 1;
        }
        uint32_t done = 1;
        if (count == 4) {
            attend_queries<4, T>(a, q, ends, out);
            done = 4;
        } else if (count >= 2) {
            attend_queries<2, T>(a, q, ends, out);
            done = 2;
        } else {
            attend_queries<1, T>(a, q, ends, out);
        }
        at += done;
    }
}

// --- rows -----------------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float eps, uint32_t n, float* out) {
    F total[4] = {zero(), zero(), zero(), zero()};
    uint32_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int c = 0; c < 4; ++c) {
            const F v = Lanes::load(x + i + c * W);
            total[c] = Lanes::fma(v, v, total[c]);
        }
    float sum = sum_of((total[0] + total[1]) + (total[2] + total[3]));
    for (; i < n; ++i) sum += x[i] * x[i];
    const float scale = 1.0f / __builtin_sqrtf(sum / float(n) + eps);
    for (i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void swiglu(const float* gate, const float* up, uint32_t n, float* out) {
    for (uint32_t i = 0; i < n; i += W) {
        const F g = Lanes::load(gate + i);
        Lanes::store(out + i, g / (Lanes::all(1.0f) + exponential(-g)) * Lanes::load(up + i));
    }
}

void rotate(float* x, const float* cosine, const float* sine, uint32_t half) {
    float* y = x + half;
    for (uint32_t i = 0; i < half; ++i) {
        const float a = x[i], b = y[i];
        x[i] = a * cosine[i] - b * sine[i];
        y[i] = b * cosine[i] + a * sine[i];
    }
}

LogitScan scan_logits(const float* logits, uint32_t n) {
    // x - x is 0 for what is finite and NaN otherwise.
    F best = Lanes::all(-__builtin_inff()), strange = zero();
    I where = {}, index = first_lanes();
    where = where - 1;
    uint32_t i = 0;
    for (; i + W <= n; i += W) {
        const F v = Lanes::load(logits + i);
        const I more = v > best;
        best = choose(more, v, best);
        where = (where & ~more) | (index & more);
        strange = strange + (v - v);
        index = index + W;
    }
    float values[W];
    int at[W];
    Lanes::store(values, best);
    __builtin_memcpy(at, &where, sizeof(where));
    float top = -__builtin_inff(), bad = sum_of(strange);
    uint32_t top_at = 0;
    for (int lane = 0; lane < W; ++lane)
        if (at[lane] >= 0 && (values[lane] > top || (values[lane] == top && uint32_t(at[lane]) < top_at))) {
            top = values[lane];
            top_at = uint32_t(at[lane]);
        }
    for (; i < n; ++i) {
        if (logits[i] > top) {
            top = logits[i];
            top_at = i;
        }
        bad += logits[i] - logits[i];
    }
    return {top_at, top, bad == 0.0f};
}

[[maybe_unused]] void nothing() {}

/// The integer way to round to the nearest BF16, ties to even; not-a-number stays one.
[[maybe_unused]] inline I bf16_bits(F value) {
    const I bits = (I)value;
    const I rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const I special = value != value;
    return (((rounded & ~special) | ((bits | 0x400000) & special)) >> 16) & 0xffff;
}

}  // namespace
}  // namespace mainstay
