#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "reorder_steps.h"

#if MEDSORA_X86_VARIANTS
#include <immintrin.h>
#endif
#define MEDSORA_GATHER_STEPS gather_steps_baseline
#define MEDSORA_MERGE_STEPS merge_steps_baseline
#include "reorder_steps.inc"
