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
#endif

#define MEDSORA_LANES 4
#define MEDSORA_SPECTRAL_KERNELS spectral_kernels_baseline
#include "spectral.inc"
