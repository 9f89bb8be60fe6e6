#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "spectral_kernels.h"

#if MEDSORA_X86_VARIANTS
#include <immintrin.h>
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#define MEDSORA_LANES 16
#define MEDSORA_SPECTRAL_KERNELS spectral_kernels_avx512
#include "spectral.inc"
#endif
