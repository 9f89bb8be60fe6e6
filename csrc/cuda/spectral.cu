#include "spectral.h"

#include "launch.cuh"

namespace medsora::cuda {
namespace {

constexpr int sum_threads = 256;

extern __shared__ __align__(16) char shared_memory[];

// One block of that many at least: without the 1 the compiler aims at 64 registers and spills.
__global__ void __launch_bounds__(most_block_threads, 1) spectral_filter_kernel(const __grid_constant__ FilterJob job) {
    filter_block(GpuTeam{}, job, blockIdx.x, shared_memory);
}

__global__ void __launch_bounds__(most_block_threads, 1) focal_kernel(const __grid_constant__ FocalJob job) {
    focal_block(GpuTeam{}, job, blockIdx.x, shared_memory);
}

__global__ void __launch_bounds__(sum_threads) weight_sum_kernel(const __grid_constant__ WeightSumJob job) {
    weight_sum_thread(job, static_cast<std::int64_t>(blockIdx.x) * sum_threads + threadIdx.x);
}

__global__ void __launch_bounds__(mean_threads) focal_mean_kernel(const __grid_constant__ FocalMeanJob job) {
    __shared__ double cells[mean_threads];
    focal_mean_block(GpuTeam{}, job, cells);
}

}  // namespace

Chip chip(int device) {
    Chip found{};
    check(cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "chip");
    check(cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device), "chip");
    return found;
}

void spectral_filter(const FilterCall& call, Stream stream) {
    const FilterJob job = filter_in_blocks(call, false);
    launch("spectral_filter", spectral_filter_kernel, job, job.blocks, job.cut.threads, stream, job.shared_bytes(),
           call.chip.shared_bytes);
}

void spectral_filter_backward(const FilterCall& call, float* grad_weight, Stream stream) {
    const FilterJob job = filter_in_blocks(call, true);
    const WeightSumJob sum = weight_sum_of(job, call, grad_weight);
    launch("spectral_filter_backward", spectral_filter_kernel, job, job.blocks, job.cut.threads, stream,
           job.shared_bytes(), call.chip.shared_bytes);
    launch("spectral_filter_backward", weight_sum_kernel, sum, (sum.numbers + sum_threads - 1) / sum_threads,
           sum_threads, stream);
}

void focal(const FocalCallInBlocks& call, FocalTask task, Stream stream) {
    const FocalJob job = focal_in_blocks(call, task);
    launch("focal_frequency_loss", focal_kernel, job, job.blocks, job.cut.threads, stream, job.shared_bytes(),
           call.chip.shared_bytes);
}

void focal_mean(const FocalMeanJob& job, Stream stream) {
    launch("focal_frequency_loss", focal_mean_kernel, job, 1, mean_threads, stream);
}

}  // namespace medsora::cuda
