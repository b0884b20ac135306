// For every machine: four floats at a time in the compiler's own vectors, a product and a sum where others fuse them.
#include "runtime/inference/kernels.h"
#include "runtime/inference/kernels_tables.h"

namespace mainstay {
namespace {

struct Lanes {
    using F = float __attribute__((vector_size(16)));
    using I = int __attribute__((vector_size(16)));
    static constexpr int width = 4;
    static constexpr int rows = 2;

    static F load(const float* p) {
        F v;
        __builtin_memcpy(&v, p, sizeof(v));
        return v;
    }
    static void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof(v)); }
    static F all(float v) { return F{v, v, v, v}; }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F widen(const uint16_t* p) {
        return (F)(I{int(uint32_t(p[0]) << 16), int(uint32_t(p[1]) << 16), int(uint32_t(p[2]) << 16),
                     int(uint32_t(p[3]) << 16)});
    }
    static void pairs(const uint16_t* p, F& even, F& odd) {
        I both;
        __builtin_memcpy(&both, p, sizeof(both));
        even = (F)(both << 16);
        odd = (F)(both & int(0xffff0000u));
    }
    static void narrow(uint16_t* p, F v);
};

}  // namespace
}  // namespace mainstay

#include "runtime/inference/kernels_vector.h"

namespace mainstay {
namespace {

inline void Lanes::narrow(uint16_t* p, F v) {
    const I bits = bf16_bits(v);
    for (int i = 0; i < width; ++i) p[i] = uint16_t(bits[i]);
}

}  // namespace

const Kernels kernels_portable = {"portable",    false,    product_wide, product_f32, attend<uint16_t>,
                                  attend<float>, rms_norm, swiglu,       rotate,      to_bf16,
                                  scan_logits,   nothing,  nothing};

}  // namespace mainstay
