// The pieces of work that spectral.cpp shares out over threads, one version an instruction set.
#pragma once

#include "spectral.h"

namespace medsora {

// Images first .. last - 1 of `channels` channels from `channel` on, no more channels than are worked on together.
// weight: of the first channel; those of the others follow. images: of one channel. past_cache: whether results are
// written past the caches.
struct FilterTask {
    const SpectralPlan* plan;
    Element element;
    const Images *x, *y;
    const float* weight;
    std::int64_t channel;
    int channels;
    std::int64_t images, first, last;
    bool past_cache;
};

struct FilterBackwardTask {
    const SpectralPlan* plan;
    Element element;
    const Images *grad, *x, *grad_x;
    const float* weight;
    float* grad_weight;  // overwritten
    std::int64_t grad_weight_apart;  // floats from one channel to the next
    std::int64_t channel;
    int channels;
    std::int64_t images, first, last;
    bool past_cache;
};

struct FocalTask {
    const SpectralPlan* plan;
    Element element;
    const Images *pred, *target;
    FocalWeight weight;
    const float* largest;  // of all images, or null
    std::int64_t first, last;
};

// Each piece of work gets scratch memory of so many floats, aligned to 64 bytes.
struct SpectralKernels {
    int (*channels_together)(const SpectralPlan& plan);
    std::int64_t (*scratch)(const SpectralPlan& plan);
    void (*filter)(const FilterTask& task, float* scratch);
    void (*filter_backward)(const FilterBackwardTask& task, float* scratch);
    void (*largest)(const FocalTask& task, float* largest, float* scratch);
    void (*losses)(const FocalTask& task, double* losses, float* scratch);
    void (*gradient)(const FocalTask& task, double scale, const Images& grad_pred, float* scratch);
};

SpectralKernels spectral_kernels_baseline();
#if MEDSORA_X86_VARIANTS
SpectralKernels spectral_kernels_avx2();
SpectralKernels spectral_kernels_avx512();
#endif

inline SpectralKernels spectral_kernels(Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return spectral_kernels_avx512();
    if (isa == Isa::avx2) return spectral_kernels_avx2();
#endif
    (void)isa;
    return spectral_kernels_baseline();
}

}  // namespace medsora
