// What the kernels of csrc/cuda/reorder.cu do, block by block and thread by thread on a CPU: for tests, where there is
// no GPU.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/path.h"
#include "../common/reorder_strides.h"

namespace medsora {

// Both return how many bytes an access moved.
int gather_in_blocks_on_cpu(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
                            std::int64_t row_bytes);
int merge_in_blocks_on_cpu(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
                           std::int64_t channels, Element element);

}  // namespace medsora
