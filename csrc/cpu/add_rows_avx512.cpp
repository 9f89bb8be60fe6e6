#include <cstdint>
#include <cstring>

#include "add_rows.h"

#if MEDSORA_X86_VARIANTS
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#define MEDSORA_ADD_ROWS add_rows_avx512
#include "add_rows.inc"
#endif
