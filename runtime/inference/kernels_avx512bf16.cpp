// AVX-512 with BF16 dot products: rows and weights are BF16, each pair of k is one multiply-add into a float.
#if defined(__x86_64__)
#include "runtime/inference/kernels_lanes_avx512.h"
#include "runtime/inference/kernels_tables.h"

namespace mainstay {
namespace {

template <int R>
struct RowsPaired {
    static void run(const uint16_t* w, const uint16_t* x, size_t x_stride, float* y, size_t y_stride, uint32_t k,
                    bool accumulate) {
        __m512 sum[R][2];
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        for (uint32_t i = 0; i < k; i += 2) {
            const uint16_t* at = w + size_t(panel_columns) * i;
            __builtin_prefetch(at + 2048);
            __builtin_prefetch(at + 2080);
            const __m512i left = _mm512_loadu_si512(at), right = _mm512_loadu_si512(at + 32);
            for (int r = 0; r < R; ++r) {
                int pair;
                __builtin_memcpy(&pair, x + r * x_stride + i, sizeof(pair));
                const __m512i value = _mm512_set1_epi32(pair);
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)left, (__m512bh)value);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)right, (__m512bh)value);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < 2; ++c) {
                float* to = y + r * y_stride + c * 16;
                _mm512_storeu_ps(to, accumulate ? _mm512_add_ps(_mm512_loadu_ps(to), sum[r][c]) : sum[r][c]);
            }
    }
};

void product_paired(const Product& p) { walk<RowsPaired, 2, uint16_t, uint16_t>(p); }

}  // namespace

const Kernels kernels_avx512bf16 = {"avx512bf16",  true,     product_paired, product_f32, attend<uint16_t>,
                                    attend<float>, rms_norm, swiglu,         rotate,      to_bf16,
                                    scan_logits,   nothing,  nothing};

}  // namespace mainstay
#endif
