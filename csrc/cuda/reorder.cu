#include "reorder.h"

#include "../common/reorder_blocks.h"
#include "launch.cuh"

namespace medsora::cuda {
namespace {

template <int width>
__global__ void __launch_bounds__(block_threads) gather_kernel(const __grid_constant__ GatherBlocks job) {
    gather_thread<width>(job, blockIdx.x, threadIdx.x);
}

template <typename T, int width>
__global__ void __launch_bounds__(block_threads) merge_kernel(const __grid_constant__ MergeBlocks job) {
    merge_thread<T, width>(job, blockIdx.x, threadIdx.x);
}

}  // namespace

void gather(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
            std::int64_t row_bytes, Stream stream) {
    const GatherBlocks job = gather_in_blocks(x, x_strides, y, path, videos, row_bytes);
    with_width<2>(job.width, [&](auto width) {
        launch("gather", gather_kernel<decltype(width)::value>, job, job.walk.blocks, block_threads, stream);
    });
}

void merge(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
           std::int64_t channels, Element element, Stream stream) {
    const MergeBlocks job = merge_in_blocks(y, y_strides, x, path, videos, channels * size_of(element));
    with_element_and_width(element, job.width, [&](auto type, auto width) {
        launch("merge", merge_kernel<decltype(type), decltype(width)::value>, job, job.walk.blocks, block_threads,
               stream);
    });
}

std::string unusable() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return cudaGetErrorString(error);
}

}  // namespace medsora::cuda
