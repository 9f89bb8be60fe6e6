#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ssd_scan_kernels.h"

#if MEDSORA_X86_VARIANTS
// After every shared header: nothing another file also compiles may be compiled for this instruction set.
#pragma GCC target("avx2,fma,bmi2")
#define MEDSORA_LANES 8
#define MEDSORA_SSD_SCAN_KERNELS ssd_scan_kernels_avx2
#include "vector.inc"
// In this order: each builds on those before it.
#include "gemm.inc"
#include "scan_tile.inc"
#include "scan_tile_backward.inc"
#include "scan_states.inc"
#include "ssd_scan_rows.inc"
#include "ssd_scan.inc"
#endif
