// The inner loops of gather and merge, one version an instruction set.
#pragma once

#include <cstdint>

#include "isa.h"
#include "reorder.h"

namespace medsora {

struct GatherJob {
    const char* x;
    GridStrides x_strides;
    char* y;
    Path path;
    std::int64_t row_bytes;
};

struct MergeJob {
    const char* y;
    ScanStrides y_strides;
    char* x;
    Path path;
    std::int64_t channels;
};

// Steps are numbered through all sequences of all videos; these do the steps from `begin` up to `end`.
using GatherSteps = void (*)(const GatherJob& job, std::int64_t begin, std::int64_t end);
using MergeSteps = void (*)(const MergeJob& job, std::int64_t begin, std::int64_t end);

// past_cache: results go to memory without staying in the caches, and reads are asked for ahead of time. Worth it for
// results that the caches could not keep.
GatherSteps gather_steps_baseline(bool past_cache);
MergeSteps merge_steps_baseline(Element element, bool past_cache);
#if MEDSORA_X86_VARIANTS
GatherSteps gather_steps_avx2(bool past_cache);
MergeSteps merge_steps_avx2(Element element, bool past_cache);
GatherSteps gather_steps_avx512(bool past_cache);
MergeSteps merge_steps_avx512(Element element, bool past_cache);
#endif

inline GatherSteps gather_steps(bool past_cache, Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return gather_steps_avx512(past_cache);
    if (isa == Isa::avx2) return gather_steps_avx2(past_cache);
#endif
    (void)isa;
    return gather_steps_baseline(past_cache);
}

inline MergeSteps merge_steps(Element element, bool past_cache, Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return merge_steps_avx512(element, past_cache);
    if (isa == Isa::avx2) return merge_steps_avx2(element, past_cache);
#endif
    (void)isa;
    return merge_steps_baseline(element, past_cache);
}

}  // namespace medsora
