#include "reorder.h"

#include "reorder_steps.h"
#include "threads.h"

namespace medsora {
namespace {

// Whether a call that reads and writes so many bytes leaves the caches behind. What the system tells of their sizes is
// of no use: some processors share a cache among few cores and report the sum of all. Measured on 32 MiB: where other
// data came between two calls, streaming takes two thirds of the time from 3 MiB on, and a quarter less with a reader of
// the results; where nothing did, it takes longer up to 9 MiB, but still no longer than memory would.
bool past_cache(std::int64_t bytes) { return bytes > 4 << 20; }

// Calls run(begin, end) on every thread with its share of `steps`; rows are copied alike, so the shares are even.
template <typename Run>
void share_out(std::int64_t steps, int threads, const Run& run) {
    if (threads <= 1) return run(0, steps);  // not even a region of one thread: after a fork the pool must stay untouched
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
    for (int i = 0; i < threads; ++i) run(steps * i / threads, steps * (i + 1) / threads);
}

}  // namespace

void gather(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
            std::int64_t row_bytes, Isa isa, int threads) {
    const std::int64_t steps = videos * path.tokens(), bytes = 3 * steps * row_bytes;
    const GatherSteps run = gather_steps(past_cache(bytes), isa);
    const GatherJob job{x, x_strides, y, path, row_bytes};
    share_out(steps, threads_for(bytes, threads), [&](std::int64_t begin, std::int64_t end) { run(job, begin, end); });
}

void merge(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
           std::int64_t channels, Element element, Isa isa, int threads) {
    const std::int64_t steps = videos * path.tokens(), bytes = 3 * steps * channels * size_of(element);
    const MergeSteps run = merge_steps(element, past_cache(bytes), isa);
    const MergeJob job{y, y_strides, x, path, channels};
    share_out(steps, threads_for(bytes, threads), [&](std::int64_t begin, std::int64_t end) { run(job, begin, end); });
}

}  // namespace medsora
