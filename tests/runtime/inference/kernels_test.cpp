#include "runtime/inference/kernels.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace mainstay;

namespace {

/// Aligned memory for what kernels read and write.
template <class T>
struct Aligned {
    explicit Aligned(size_t n)
        : size(n), data(static_cast<T*>(std::aligned_alloc(64, round_up(n * sizeof(T) + 64, 64)))) {
        std::memset(static_cast<void*>(data), 0, n * sizeof(T));
    }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    ~Aligned() { std::free(data); }
    T& operator[](size_t i) { return data[i]; }
    size_t size;
    T* data;
};

/// Products of one random matrix with random rows.
struct ProductCase {
    uint32_t n, k, rows;
    size_t k_padded, n_padded, rows_padded;
    std::vector<float> weights, x;
    Aligned<float> panels_f32, x_f32;
    Aligned<uint16_t> panels_bf16, x_bf16;

    ProductCase(uint32_t n_, uint32_t k_, uint32_t rows_, std::mt19937& random)
        : n(n_),
          k(k_),
          rows(rows_),
          k_padded(round_up(k, k_granule)),
          n_padded(round_up(n, panel_columns)),
          rows_padded(round_up(rows, 2 * row_granule)),
          weights(size_t(n) * k),
          x(size_t(rows) * k),
          panels_f32(packed_elements(n, k)),
          x_f32(rows_padded * k_padded),
          panels_bf16(packed_elements(n, k)),
          x_bf16(rows_padded * k_padded) {
        std::uniform_real_distribution<float> uniform(-1, 1);
        for (float& value : weights) value = uniform(random);
        for (float& value : x) value = uniform(random);
        for (uint32_t c = 0; c < n; ++c) {
            pack_column_f32(panels_f32.data, k_padded, c, weights.data() + size_t(c) * k, k);
            pack_column_bf16(panels_bf16.data, k_padded, c, weights.data() + size_t(c) * k, k);
        }
        for (uint32_t r = 0; r < rows; ++r)
            for (uint32_t i = 0; i < k; ++i) {
                x_f32[r * k_padded + i] = x[size_t(r) * k + i];
                x_bf16[r * k_padded + i] = bf16_of(x[size_t(r) * k + i]);
            }
    }

    /// Rows [first, first + count) with all panels, in two ranges that meet at `split`.
    std::vector<float> run(const Kernels& kernels, bool bf16, uint32_t first, uint32_t count, uint32_t split,
                           bool accumulate) {
        Aligned<float> y(round_up(count, 2 * row_granule) * n_padded);
        if (accumulate)
            for (size_t i = 0; i < y.size; ++i) y[i] = float(i % 7) - 3;
        const bool narrow = bf16 && kernels.bf16_rows;
        // Rows of their own memory, so that nothing beyond them is real.
        Aligned<float> rows_f32(round_up(count, 2 * row_granule) * k_padded);
        Aligned<uint16_t> rows_bf16(rows_f32.size);
        std::memcpy(rows_f32.data, x_f32.data + first * k_padded, count * k_padded * 4);
        std::memcpy(rows_bf16.data, x_bf16.data + first * k_padded, count * k_padded * 2);
        Product p;
        p.weights = bf16 ? static_cast<const void*>(panels_bf16.data) : panels_f32.data;
        p.x = narrow ? static_cast<const void*>(rows_bf16.data) : rows_f32.data;
        p.x_stride = k_padded;
        p.y = y.data;
        p.y_stride = n_padded;
        p.rows = count;
        p.k = uint32_t(k_padded);
        p.accumulate = accumulate;
        kernels.begin();
        for (const auto& [begin, end] : {std::pair(0u, split), std::pair(split, uint32_t(n_padded / panel_columns))}) {
            p.panel_begin = begin;
            p.panel_end = end;
            bf16 ? kernels.product_bf16(p) : kernels.product_f32(p);
        }
        kernels.end();
        std::vector<float> out;
        for (uint32_t r = 0; r < count; ++r) out.insert(out.end(), y.data + r * n_padded, y.data + r * n_padded + n);
        return out;
    }
};

bool same_bits(const std::vector<float>& a, const float* b) { return std::memcmp(a.data(), b, a.size() * 4) == 0; }

}  // namespace

TEST_CASE("kernels: the machine runs at least the portable table, and names are found again") {
    CHECK(std::string(runnable_kernels().back()->name) == "portable");
    for (const Kernels* kernels : runnable_kernels()) CHECK(find_kernels(kernels->name) == kernels);
    CHECK(find_kernels("abacus") == nullptr);
}

TEST_CASE("kernels: products agree with a plain sum, in every table and precision") {
    std::mt19937 random(1);
    for (const Kernels* kernels : runnable_kernels())
        for (const auto& [n, k] : {std::pair(1u, 1u), std::pair(33u, 40u), std::pair(64u, 288u), std::pair(100u, 70u)})
            for (const bool bf16 : {false, true}) {
                ProductCase c(n, k, 37, random);
                const std::vector<float> y = c.run(*kernels, bf16, 0, c.rows, 1, false);
                double worst = 0;
                for (uint32_t r = 0; r < c.rows; ++r)
                    for (uint32_t column = 0; column < n; ++column) {
                        double sum = 0;
                        for (uint32_t i = 0; i < k; ++i) {
                            const float w = c.weights[size_t(column) * k + i], x = c.x[size_t(r) * k + i];
                            const float wide = bf16 ? float_of_bf16(bf16_of(w)) : w;
                            sum += double(wide) * (bf16 && kernels->bf16_rows ? float_of_bf16(bf16_of(x)) : x);
                        }
                        worst = std::max(worst, std::abs(sum - y[size_t(r) * n + column]));
                    }
                INFO(std::string(kernels->name), " n ", n, " k ", k, " bf16 ", bf16);
                CHECK(worst < 2e-5);
            }
}

TEST_CASE("kernels: a row's products have the same bits alone, in any batch and over any split of panels") {
    std::mt19937 random(2);
    for (const Kernels* kernels : runnable_kernels())
        for (const bool bf16 : {false, true})
            for (const bool accumulate : {false, true}) {
                ProductCase c(160, 96, 50, random);
                const std::vector<float> all = c.run(*kernels, bf16, 0, c.rows, 2, accumulate);
                for (int round = 0; round < 40; ++round) {
                    const uint32_t first = random() % c.rows, count = 1 + random() % (c.rows - first);
                    // With accumulation the sums start from y, which here depends on the place in the batch.
                    if (accumulate && first != 0) continue;
                    const std::vector<float> some = c.run(*kernels, bf16, first, count, random() % 6, accumulate);
                    INFO(std::string(kernels->name), " bf16 ", bf16, " rows ", first, " + ", count);
                    REQUIRE(same_bits(some, all.data() + size_t(first) * c.n));
                }
            }
}

namespace {

/// Keys and values of one head in pages, and queries.
struct AttentionCase {
    uint32_t dim, group, context, block_tokens;
    std::vector<float> q, k, v;  // [token][group or 1][dim]
    std::vector<int32_t> table;
    size_t padded, page_bytes, value_offset;
    std::unique_ptr<Aligned<uint8_t>> pages;
    bool bf16;

    AttentionCase(uint32_t dim_, uint32_t group_, uint32_t context_, uint32_t block_tokens_, bool bf16_,
                  std::mt19937& random)
        : dim(dim_),
          group(group_),
          context(context_),
          block_tokens(block_tokens_),
          padded(round_up(dim, 16)),
          bf16(bf16_) {
        const size_t element = bf16 ? 2 : 4, blocks = (context + block_tokens - 1) / block_tokens;
        value_offset = block_tokens * dim * element;
        page_bytes = value_offset + block_tokens * padded * element;
        pages = std::make_unique<Aligned<uint8_t>>((2 * blocks + 1) * page_bytes);
        std::memset(pages->data, 0xff, pages->size);  // what is not written is not a number
        std::vector<int32_t> free;
        for (size_t b = 1; b <= 2 * blocks; ++b) free.push_back(int32_t(b));
        std::shuffle(free.begin(), free.end(),
                     std::mt19937(context));  // its own: values do not depend on the block size
        table.assign(free.begin(), free.begin() + long(blocks));
        std::normal_distribution<float> normal;
        for (std::vector<float>* values : {&q, &k, &v}) {
            values->resize(size_t(context) * dim * (values == &q ? group : 1));
            for (float& value : *values) value = values == &q ? 3 * normal(random) : normal(random);
            if (bf16 && values != &q)
                for (float& value : *values) value = float_of_bf16(bf16_of(value));
        }
        for (uint32_t t = 0; t < context; ++t) {
            uint8_t* page = pages->data + size_t(table[t / block_tokens]) * page_bytes;
            const uint32_t index = t % block_tokens, tile = index / 16, lane = index % 16;
            for (uint32_t d = 0; d < padded; ++d) {
                const float value = d < dim ? v[t * dim + d] : 0;
                const size_t at = bf16 ? index / 2 * 2 * padded + 2 * d + index % 2 : index * padded + d;
                if (bf16)
                    reinterpret_cast<uint16_t*>(page + value_offset)[at] = bf16_of(value);
                else
                    reinterpret_cast<float*>(page + value_offset)[at] = value;
                if (d >= dim) continue;
                if (bf16)
                    reinterpret_cast<uint16_t*>(page)[tile * 16 * dim + d / 2 * 32 + lane * 2 + d % 2] =
                        bf16_of(k[t * dim + d]);
                else
                    reinterpret_cast<float*>(page)[tile * 16 * dim + d * 16 + lane] = k[t * dim + d];
            }
        }
    }

    /// Query tokens [from, from + count) as one call.
    std::vector<float> run(const Kernels& kernels, uint32_t from, uint32_t count) {
        std::vector<float> out(size_t(count) * group * dim);
        std::vector<float> scratch(attention_scratch_floats(dim));
        Attention a;
        a.q = q.data() + size_t(from) * group * dim;
        a.q_stride = a.out_stride = group * dim;
        a.out = out.data();
        a.pages = pages->data;
        a.page_stride = page_bytes;
        a.value_offset = value_offset;
        a.block_table = table.data();
        a.block_tokens = block_tokens;
        a.position = from;
        a.tokens = count;
        a.group = group;
        a.head_dim = dim;
        a.scale = 1 / std::sqrt(float(dim));
        a.scratch = scratch.data();
        bf16 ? kernels.attend_bf16(a) : kernels.attend_f32(a);
        return out;
    }

    double error(const std::vector<float>& out) const {
        double worst = 0;
        for (uint32_t t = 0; t < context; ++t)
            for (uint32_t g = 0; g < group; ++g) {
                const float* query = q.data() + (size_t(t) * group + g) * dim;
                std::vector<double> weight(t + 1);
                double largest = -1e300, sum = 0;
                for (uint32_t key = 0; key <= t; ++key) {
                    for (uint32_t d = 0; d < dim; ++d) weight[key] += double(query[d]) * k[key * dim + d];
                    weight[key] /= std::sqrt(double(dim));
                    largest = std::max(largest, weight[key]);
                }
                for (double& value : weight) sum += value = std::exp(value - largest);
                for (uint32_t d = 0; d < dim; ++d) {
                    double expected = 0;
                    for (uint32_t key = 0; key <= t; ++key) expected += weight[key] / sum * v[key * dim + d];
                    worst = std::max(worst, std::abs(expected - out[(size_t(t) * group + g) * dim + d]));
                }
            }
        return worst;
    }
};

}  // namespace

TEST_CASE("kernels: attention agrees with softmax written out, in every table and precision") {
    std::mt19937 random(3);
    for (const Kernels* kernels : runnable_kernels())
        for (const bool bf16 : {false, true})
            for (const uint32_t dim : {2u, 22u, 32u, 48u, 64u, 80u, 128u}) {
                AttentionCase c(dim, 1 + dim % 3, 150, dim == 64 ? 32 : 16, bf16, random);
                INFO(std::string(kernels->name), " bf16 ", bf16, " head_dim ", dim);
                CHECK(c.error(c.run(*kernels, 0, c.context)) < 5e-6);
            }
}

TEST_CASE("kernels: attention has the same bits whatever the chunks, and whatever block size") {
    std::mt19937 random(4);
    for (const Kernels* kernels : runnable_kernels())
        for (const bool bf16 : {false, true})
            for (const uint32_t dim : {22u, 48u, 64u}) {
                AttentionCase c(dim, 1 + dim % 3, 200, 16, bf16, random);
                const std::vector<float> whole = c.run(*kernels, 0, c.context);
                for (int round = 0; round < 10; ++round)
                    for (uint32_t from = 0; from < c.context;) {
                        const uint32_t count = std::min<uint32_t>(round == 0 ? 1 : 1 + random() % 40, c.context - from);
                        const std::vector<float> part = c.run(*kernels, from, count);
                        INFO(std::string(kernels->name), " bf16 ", bf16, " tokens ", from, " + ", count);
                        REQUIRE(same_bits(part, whole.data() + size_t(from) * c.group * dim));
                        from += count;
                    }
                std::mt19937 again(5), and_again(5);
                AttentionCase small(dim, 2, 130, 16, bf16, again), large(dim, 2, 130, 64, bf16, and_again);
                REQUIRE(small.v == large.v);
                CHECK(same_bits(small.run(*kernels, 0, 130), large.run(*kernels, 0, 130).data()));
            }
}

TEST_CASE("kernels: norms, activations, rotations and conversions are what they are called") {
    std::mt19937 random(6);
    std::normal_distribution<float> normal;
    for (const Kernels* kernels : runnable_kernels()) {
        INFO(std::string(kernels->name));
        for (const uint32_t n : {1u, 36u, 288u, 1000u}) {
            std::vector<float> x(n), weight(n), out(n);
            double squares = 0;
            for (uint32_t i = 0; i < n; ++i) {
                x[i] = normal(random);
                weight[i] = normal(random);
                squares += double(x[i]) * x[i];
            }
            kernels->rms_norm(x.data(), weight.data(), 1e-5f, n, out.data());
            for (uint32_t i = 0; i < n; ++i)
                REQUIRE(out[i] == doctest::Approx(x[i] / std::sqrt(squares / n + 1e-5) * weight[i]).epsilon(1e-5));
            std::vector<uint16_t> narrow(n);
            x[0] = 0x1.01p0f;  // half way between two: to even
            kernels->to_bf16(x.data(), n, narrow.data());
            CHECK(narrow[0] == 0x3f80);
            for (uint32_t i = 0; i < n; ++i) REQUIRE(narrow[i] == bf16_of(x[i]));
        }
        std::vector<float> gate(128), up(128), out(128);
        for (int i = 0; i < 128; ++i) {
            gate[size_t(i)] = float(i - 64) * 1.7f;
            up[size_t(i)] = normal(random);
        }
        kernels->swiglu(gate.data(), up.data(), 128, out.data());
        for (size_t i = 0; i < 128; ++i)
            REQUIRE(out[i] ==
                    doctest::Approx(gate[i] / (1 + std::exp(-double(gate[i]))) * up[i]).epsilon(1e-5).scale(1e-4));
        std::vector<float> pair = {1, 2, 3, 4}, cosine = {0, 0.5f}, sine = {1, 0.25f};
        kernels->rotate(pair.data(), cosine.data(), sine.data(), 2);
        CHECK(pair == std::vector<float>{-3, 0, 1, 2.5f});
    }
}

TEST_CASE("kernels: the scan of logits finds the first of the largest, and what is no number") {
    for (const Kernels* kernels : runnable_kernels())
        for (const uint32_t n : {1u, 7u, 16u, 100u, 1000u}) {
            INFO(std::string(kernels->name), " n ", n);
            std::vector<float> logits(n, -2);
            for (const uint32_t at : {0u, n / 3, n / 2, n - 1}) {
                std::fill(logits.begin() + at, logits.end(), -1.0f);
                const LogitScan scan = kernels->scan_logits(logits.data(), n);
                CHECK(scan.best == at);
                CHECK(scan.finite);
                std::fill(logits.begin(), logits.end(), -2.0f);
            }
            logits[n / 2] = NAN;
            CHECK(!kernels->scan_logits(logits.data(), n).finite);
            logits[n / 2] = -INFINITY;  // a masked one
            const LogitScan scan = kernels->scan_logits(logits.data(), n);
            CHECK(!scan.finite);
            CHECK(scan.best == (n / 2 == 0 && n > 1 ? 1 : 0));
        }
}

TEST_CASE("kernels: half floats are read as IEEE 754 defines them") {
    CHECK(float_of_f16(0x3c00) == 1.0f);
    CHECK(float_of_f16(0xc500) == -5.0f);
    CHECK(float_of_f16(0x7bff) == 65504.0f);
    CHECK(float_of_f16(0x0001) == 0x1p-24f);
    CHECK(float_of_f16(0x83ff) == -1023 * 0x1p-24f);
    CHECK(float_of_f16(0x7c00) == INFINITY);
    CHECK(std::isnan(float_of_f16(0x7e00)));
    CHECK(std::isnan(float_of_bf16(bf16_of(NAN))));
    CHECK(bf16_of(0x1.ffp127f) == 0x7f80);  // rounds up to infinity, as the nearest does
}
