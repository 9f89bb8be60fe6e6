// Where the rows of gather and merge lie.
#pragma once

#include <cstdint>

namespace medsora {

// Distances in bytes between neighbours of each axis; channels of one token are contiguous.
struct GridStrides {
    std::int64_t video, token;
};
struct ScanStrides {
    std::int64_t video, direction, sequence, step;
};

}  // namespace medsora
