#include "measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace medsora {
namespace {

constexpr std::int64_t copied_floats = std::int64_t{1} << 26;  // 256 MiB each way
constexpr std::int64_t cached_floats = 1024;                   // 4 KiB each way

LimitKernels limit_kernels(Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return limit_kernels_avx512();
    if (isa == Isa::avx2) return limit_kernels_avx2();
#endif
    (void)isa;
    return limit_kernels_baseline();
}

template <typename Work>
void on_each_thread(int threads, Work work) {
    if (threads <= 1) {  // not even a region of one thread: after a fork the pool must stay untouched
        work(0);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(threads)
#endif
    for (int thread = 0; thread < threads; ++thread) work(thread);
}

// The best rate of bursts that do `amount` on all threads together: whatever else runs here only slows a burst down.
template <typename Burst>
double best_rate(double seconds, double amount, Burst burst) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    const auto begun = Clock::now();
    double best = 0;
    do {
        const auto start = Clock::now();
        burst();
        best = std::max(best, amount / since(start));
    } while (since(begun) < seconds);
    return best;
}

struct FreeAligned {
    void operator()(float* at) const { ::operator delete(at, std::align_val_t{4096}); }
};
using Floats = std::unique_ptr<float, FreeAligned>;

Floats uninitialised(std::int64_t count) {
    return Floats(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{4096})));
}

}  // namespace

double measure_fma(double seconds, Isa isa, int threads) {
    threads = std::max(threads, 1);
    const LimitKernels kernels = limit_kernels(isa);
    const std::int64_t steps = std::int64_t{1} << 17;  // about half a millisecond
    std::vector<float> results(threads);
    return best_rate(seconds, static_cast<double>(threads) * steps * kernels.operations_per_step, [&] {
        on_each_thread(threads, [&](int thread) { results[thread] = kernels.multiply_add(steps); });
    });
}

double measure_exp(double seconds, Isa isa, int threads) {
    threads = std::max(threads, 1);
    const LimitKernels kernels = limit_kernels(isa);
    constexpr int repeats = 2048;
    const Floats operands = uninitialised(2 * threads * cached_floats);
    const auto own = [&](int thread) { return operands.get() + 2 * thread * cached_floats; };
    for (int thread = 0; thread < threads; ++thread) {
        for (std::int64_t i = 0; i < cached_floats; ++i) own(thread)[i] = static_cast<float>(i % 17) - 12.0f;
    }
    return best_rate(seconds, static_cast<double>(threads) * repeats * cached_floats, [&] {
        on_each_thread(threads, [&](int thread) {
            for (int i = 0; i < repeats; ++i) {
                kernels.exponentials(own(thread), own(thread) + cached_floats, cached_floats);
            }
        });
    });
}

double measure_copy(double seconds, Isa isa, int threads) {
    threads = std::max(threads, 1);
    const auto stream = limit_kernels(isa).stream;
    const Floats source = uninitialised(copied_floats), target = uninitialised(copied_floats);
    const std::int64_t line = 16, share = (copied_floats / threads + line - 1) / line * line;
    const auto on_each_share = [&](auto visit) {
        on_each_thread(threads, [&](int thread) {
            const std::int64_t first = std::min(thread * share, copied_floats);
            visit(source.get() + first, target.get() + first, std::min(share, copied_floats - first));
        });
    };
    on_each_share([](float* from, float* to, std::int64_t count) {  // by the thread that will read and write them
        std::fill_n(from, count, 1.0f);
        std::fill_n(to, count, 0.0f);
    });
    const double bytes = 2.0 * copied_floats * sizeof(float);
    const double cached = best_rate(stream ? seconds / 2 : seconds, bytes, [&] {
        on_each_share([](float* from, float* to, std::int64_t count) { std::memcpy(to, from, count * sizeof(float)); });
    });
    if (!stream) return cached;
    return std::max(cached, best_rate(seconds / 2, bytes, [&] { on_each_share(stream); }));
}

}  // namespace medsora
