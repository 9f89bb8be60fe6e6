#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "measure.h"

#if MEDSORA_X86_VARIANTS
#include <immintrin.h>
#endif

#define MEDSORA_LANES 4
#define MEDSORA_LIMIT_KERNELS limit_kernels_baseline
#include "measure.inc"
