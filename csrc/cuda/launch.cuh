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
template <typename Job>
void launch(const char* name, void (*kernel)(Job), const Job& job, std::int64_t blocks, int threads, Stream stream) {
    if (blocks == 0) return;
    check(cudaSetDevice(stream.device), name);
    kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream.stream)>>>(job);
    check(cudaGetLastError(), name);
}

}  // namespace medsora::cuda
