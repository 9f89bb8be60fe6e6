// Items of work dealt out to threads, each of which has scratch of its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace medsora {

constexpr std::int64_t most_ranges = 64;  // of items, for sums over them whose order no thread count may change

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

inline Memory allocate(std::size_t floats) {
    const std::size_t line = 64, bytes = (floats * sizeof(float) + line - 1) / line * line;
    Memory memory(static_cast<float*>(std::aligned_alloc(line, std::max(bytes, line))));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

// Calls work(index, scratch) for 0 .. count - 1; each thread takes what comes next, with scratch of its own.
template <typename Work>
void share_out(std::int64_t count, int threads, std::size_t scratch_floats, Work work) {
    threads = static_cast<int>(std::clamp<std::int64_t>(count, 1, std::max(threads, 1)));
    const std::size_t each = (scratch_floats + 31) / 16 * 16;
    const Memory scratch = allocate(each * threads);
    if (threads == 1) {  // not even a region of one thread: after a fork the pool must stay untouched
        for (std::int64_t i = 0; i < count; ++i) work(i, scratch.get());
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t i = 0; i < count; ++i) work(i, scratch.get() + each * omp_get_thread_num());
#else
    for (std::int64_t i = 0; i < count; ++i) work(i, scratch.get());
#endif
}

}  // namespace medsora
