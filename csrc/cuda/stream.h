// Where a launch goes, without CUDA's headers.
#pragma once

#include <string>

namespace medsora::cuda {

struct Stream {
    int device;    // the current one of torch
    void* stream;  // a cudaStream_t of that device
};

// Empty if this build of the CUDA runtime can use the driver that is here, else why not.
std::string unusable();

}  // namespace medsora::cuda
