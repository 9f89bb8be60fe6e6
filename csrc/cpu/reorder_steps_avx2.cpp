#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "reorder_steps.h"

#if MEDSORA_X86_VARIANTS
#include <immintrin.h>
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx2,fma,bmi2")
#define MEDSORA_GATHER_STEPS gather_steps_avx2
#define MEDSORA_MERGE_STEPS merge_steps_avx2
#include "reorder_steps.inc"
#endif
