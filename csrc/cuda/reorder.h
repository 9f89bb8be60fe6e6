// gather and merge on a GPU; what they do is what csrc/cpu/reorder.h says.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/path.h"
#include "../common/reorder_strides.h"
#include "stream.h"

namespace medsora::cuda {

// One launch each; path.offsets is in the GPU's memory and trusted. Throw std::runtime_error if the launch fails.
void gather(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
            std::int64_t row_bytes, Stream stream);
void merge(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
           std::int64_t channels, Element element, Stream stream);

}  // namespace medsora::cuda
