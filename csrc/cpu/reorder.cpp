#include "reorder.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "reorder_steps.h"
#include "threads.h"

namespace medsora {
namespace {

std::int64_t size_of(Element element) {
    return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// Whether what a call reads and writes is more than half the last cache, which others use too.
bool past_cache(std::int64_t bytes) {
#ifdef _SC_LEVEL3_CACHE_SIZE
    static const std::int64_t told = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    static const std::int64_t told = 0;
#endif
    constexpr std::int64_t usual = 32 << 20;
    return bytes > (told > 0 ? told : usual) / 2;
}

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
