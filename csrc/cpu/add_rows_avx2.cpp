#include <cstdint>
#include <cstring>

#include "add_rows.h"

#if MEDSORA_X86_VARIANTS
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx2,fma,bmi2")
#define MEDSORA_ADD_ROWS add_rows_avx2
#include "add_rows.inc"
#endif
