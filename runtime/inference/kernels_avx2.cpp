// AVX2 with FMA: eight floats in one register, sixteen columns at a time.
#if defined(__x86_64__)
#include <immintrin.h>

#include "runtime/inference/kernels.h"
#include "runtime/inference/kernels_tables.h"

namespace mainstay {
namespace {

struct Lanes {
    using F = float __attribute__((vector_size(32)));
    using I = int __attribute__((vector_size(32)));
    static constexpr int width = 8;
    static constexpr int rows = 4;

    static F load(const float* p) { return (F)_mm256_loadu_ps(p); }
    static void store(float* p, F v) { _mm256_storeu_ps(p, (__m256)v); }
    static F all(float v) { return (F)_mm256_set1_ps(v); }
    static F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
    static F widen(const uint16_t* p) {
        return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
    }
    static void pairs(const uint16_t* p, F& even, F& odd) {
        const __m256i both = _mm256_loadu_si256((const __m256i*)p);
        even = (F)_mm256_slli_epi32(both, 16);
        odd = (F)_mm256_and_si256(both, _mm256_set1_epi32(int(0xffff0000u)));
    }
    static void narrow(uint16_t* p, F v);
};

}  // namespace
}  // namespace mainstay

#include "runtime/inference/kernels_vector.h"

namespace mainstay {
namespace {

inline void Lanes::narrow(uint16_t* p, F v) {
    const __m256i bits = (__m256i)bf16_bits(v);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}

}  // namespace

const Kernels kernels_avx2 = {"avx2", false,  product_wide, product_f32, attend<uint16_t>, attend<float>, rms_norm,
                              swiglu, rotate, to_bf16,      scan_logits, nothing,          nothing};

}  // namespace mainstay
#endif
