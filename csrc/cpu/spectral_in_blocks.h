// What the kernels of csrc/cuda/spectral.cu do, block by block and step by step on a CPU: for tests, where there is no
// GPU. The calls are those of csrc/cuda/spectral.h.
#pragma once

#include "../common/spectral_jobs.h"

namespace medsora {

// Memory of a block holds NaN at first, so that what nobody wrote is seen. Return the bytes of it.
std::int64_t spectral_filter_in_blocks_on_cpu(const FilterCall& call);
std::int64_t spectral_filter_backward_in_blocks_on_cpu(const FilterCall& call, float* grad_weight);
std::int64_t focal_in_blocks_on_cpu(const FocalCallInBlocks& call, FocalTask task);
void focal_mean_on_cpu(const FocalMeanJob& job);

}  // namespace medsora
