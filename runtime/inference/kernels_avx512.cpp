// AVX-512 without BF16 arithmetic: BF16 weights are widened in registers.
#if defined(__x86_64__)
#include "runtime/inference/kernels_lanes_avx512.h"
#include "runtime/inference/kernels_tables.h"

namespace mainstay {

const Kernels kernels_avx512 = {"avx512", false,  product_wide, product_f32, attend<uint16_t>, attend<float>, rms_norm,
                                swiglu,   rotate, to_bf16,      scan_logits, nothing,          nothing};

}  // namespace mainstay
#endif
