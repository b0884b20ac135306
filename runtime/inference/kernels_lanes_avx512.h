#pragma once
// Sixteen floats in one register, for the files whose flags include AVX-512 (F, BW, DQ, VL). Belongs to kernels_*.cpp
// only, and is included before kernels_vector.h, which says why all is internal.

#include <immintrin.h>

#include "runtime/inference/kernels.h"

namespace mainstay {
namespace {

struct Lanes {
    using F = float __attribute__((vector_size(64)));
    using I = int __attribute__((vector_size(64)));
    static constexpr int width = 16;
    static constexpr int rows = 8;

    static F load(const float* p) { return (F)_mm512_loadu_ps(p); }
    static void store(float* p, F v) { _mm512_storeu_ps(p, (__m512)v); }
    static F all(float v) { return (F)_mm512_set1_ps(v); }
    static F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
    static F widen(const uint16_t* p) {
        return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
    }
    static void pairs(const uint16_t* p, F& even, F& odd) {
        const __m512i both = _mm512_loadu_si512(p);
        even = (F)_mm512_slli_epi32(both, 16);
        odd = (F)_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000u)));
    }
    static void narrow(uint16_t* p, F v);
};

}  // namespace
}  // namespace mainstay

#include "runtime/inference/kernels_vector.h"

namespace mainstay {
namespace {

inline void Lanes::narrow(uint16_t* p, F v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)bf16_bits(v)));
}

}  // namespace
}  // namespace mainstay
