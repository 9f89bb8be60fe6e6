#include "reorder_in_blocks.h"

#include "../common/reorder_blocks.h"

namespace medsora {
namespace {

template <typename Run>
void for_each_thread(std::int64_t blocks, const Run& run) {
    for (std::int64_t block = 0; block < blocks; ++block) {
        for (int thread = 0; thread < block_threads; ++thread) run(block, thread);
    }
}

}  // namespace

int gather_in_blocks_on_cpu(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
                            std::int64_t row_bytes) {
    const GatherBlocks job = gather_in_blocks(x, x_strides, y, path, videos, row_bytes);
    with_width<2>(job.width, [&](auto width) {
        for_each_thread(job.walk.blocks, [&](auto block, auto thread) { gather_thread<width>(job, block, thread); });
    });
    return job.width;
}

int merge_in_blocks_on_cpu(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
                           std::int64_t channels, Element element) {
    const MergeBlocks job = merge_in_blocks(y, y_strides, x, path, videos, channels * size_of(element));
    with_element_and_width(element, job.width, [&](auto type, auto width) {
        for_each_thread(job.walk.blocks,
                        [&](auto block, auto thread) { merge_thread<decltype(type), width>(job, block, thread); });
    });
    return job.width;
}

}  // namespace medsora
