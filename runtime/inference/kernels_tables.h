#pragma once
// The tables that kernels_*.cpp define, for kernels.cpp, which chooses. Those of x86 exist there only; whether one may
// run is asked of the processor first.

#include "runtime/inference/kernels.h"

namespace mainstay {

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
extern const Kernels kernels_amx;

}  // namespace mainstay
