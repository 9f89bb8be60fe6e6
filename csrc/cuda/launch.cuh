// Launching a kernel, with its failures as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "stream.h"

namespace medsora::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // told once: the next call is not blamed for it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// A job is passed by value, so that nothing is copied to the GPU first. No blocks, no launch. The device stays the
// current one: this runtime is not torch's, and does not know which that has chosen. The caller has asked torch for it.
// shared_bytes: what a block takes beside the shared memory that its kernel names. A device must be asked for much, and
// is asked for the most: it is a property of the kernel, which another thread may be about to launch with more.
template <typename Job>
void launch(const char* name, void (*kernel)(Job), const Job& job, std::int64_t blocks, int threads, Stream stream,
            std::int64_t shared_bytes = 0, int most_shared_bytes = 0) {
    if (blocks == 0) return;
    check(cudaSetDevice(stream.device), name);
    const int bytes = static_cast<int>(shared_bytes);
    if (bytes > 48 << 10) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes), name);
    }
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, static_cast<cudaStream_t>(stream.stream)>>>(job);
    check(cudaGetLastError(), name);
}

}  // namespace medsora::cuda
