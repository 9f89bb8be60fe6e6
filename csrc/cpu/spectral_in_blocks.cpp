#include "spectral_in_blocks.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace medsora {
namespace {

// Calls run(team, block, memory) for each block of a job.
template <typename Job, typename Run>
std::int64_t for_each_block(const Job& job, const Run& run) {
    const std::int64_t bytes = job.shared_bytes();
    std::vector<double> memory(static_cast<std::size_t>(bytes + 7) / 8);
    for (std::int64_t block = 0; block < job.blocks; ++block) {
        // The bits of a double that is NaN are those of two floats of which one is.
        std::fill_n(reinterpret_cast<float*>(memory.data()), 2 * memory.size(),
                    std::numeric_limits<float>::quiet_NaN());
        run(CpuTeam(job.cut.threads), static_cast<std::uint32_t>(block), reinterpret_cast<char*>(memory.data()));
    }
    return bytes;
}

std::int64_t run_filter(const FilterJob& job) {
    return for_each_block(job, [&](const CpuTeam& team, std::uint32_t block, char* memory) {
        filter_block(team, job, block, memory);
    });
}

}  // namespace

std::int64_t spectral_filter_in_blocks_on_cpu(const FilterCall& call) {
    return run_filter(filter_in_blocks(call, false));
}

std::int64_t spectral_filter_backward_in_blocks_on_cpu(const FilterCall& call, float* grad_weight) {
    const FilterJob job = filter_in_blocks(call, true);
    const WeightSumJob sum = weight_sum_of(job, call, grad_weight);
    const std::int64_t bytes = run_filter(job);
    for (std::int64_t i = 0; i < sum.numbers; ++i) weight_sum_thread(sum, i);
    return bytes;
}

std::int64_t focal_in_blocks_on_cpu(const FocalCallInBlocks& call, FocalTask task) {
    const FocalJob job = focal_in_blocks(call, task);
    return for_each_block(job, [&](const CpuTeam& team, std::uint32_t block, char* memory) {
        focal_block(team, job, block, memory);
    });
}

void focal_mean_on_cpu(const FocalMeanJob& job) {
    std::vector<double> cells(mean_threads);
    focal_mean_block(CpuTeam(mean_threads), job, cells.data());
}

}  // namespace medsora
