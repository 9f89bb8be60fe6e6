// out[i] = a[i] + b[i] over one row of channels: the inner loop of merge, one version an instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace medsora {

enum class Element { float32, float64, bfloat16, float16 };

// Rows hold `count` elements and do not overlap. Half types are added in float32 and rounded once.
using AddRows = void (*)(const void* a, const void* b, void* out, std::int64_t count);

AddRows add_rows_baseline(Element element);
#if MEDSORA_X86_VARIANTS
AddRows add_rows_avx2(Element element);
AddRows add_rows_avx512(Element element);
#endif

inline AddRows add_rows(Element element, Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return add_rows_avx512(element);
    if (isa == Isa::avx2) return add_rows_avx2(element);
#endif
    (void)isa;
    return add_rows_baseline(element);
}

}  // namespace medsora
