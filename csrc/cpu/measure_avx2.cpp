#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "measure.h"

#if MEDSORA_X86_VARIANTS
#include <immintrin.h>
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx2,fma,bmi2")
#define MEDSORA_LANES 8
#define MEDSORA_LIMIT_KERNELS limit_kernels_avx2
#include "measure.inc"
#endif
