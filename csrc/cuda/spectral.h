// The spectral filter and the focal frequency loss on a GPU; what they do is what csrc/common/spectral_jobs.h says.
#pragma once

#include "../common/spectral_jobs.h"
#include "stream.h"

namespace medsora::cuda {

// What blocks may use on a device. Throws std::runtime_error if that is not to be had.
Chip chip(int device);

// One launch; with gradients two. Throw std::invalid_argument for sizes that do not fit the chip, std::runtime_error if
// a launch fails.
void spectral_filter(const FilterCall& call, Stream stream);
void spectral_filter_backward(const FilterCall& call, float* grad_weight, Stream stream);

// One launch each. A largest weight or a sum of losses for each block, to call.found; or gradients, to call.out.
void focal(const FocalCallInBlocks& call, FocalTask task, Stream stream);

// The loss out of the sums of blocks, times `scale`.
void focal_mean(const FocalMeanJob& job, Stream stream);

}  // namespace medsora::cuda
