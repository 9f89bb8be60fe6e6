// gather and merge on a CPU: rows of channels between grid order and scan order.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/path.h"
#include "../common/reorder_strides.h"
#include "isa.h"

namespace medsora {

// x (videos, tokens, channels) -> y (videos, 2, sequences, length, channels), y contiguous: the forward walk and the
// same walk from its end. Copies bytes, so every element type is served.
void gather(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
            std::int64_t row_bytes, Isa isa, int threads);

// y (videos, 2, sequences, length, channels) -> x (videos, tokens, channels), x contiguous: the two directions added
// back in grid order; half types in float32, rounded once. Each output row is one sum of two terms, so the thread count
// cannot change a bit.
void merge(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
           std::int64_t channels, Element element, Isa isa, int threads);

}  // namespace medsora
