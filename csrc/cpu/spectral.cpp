#include "spectral.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "spectral_kernels.h"
#include "threads.h"

namespace medsora {
namespace {

struct FreeAligned {
    void operator()(float* at) const { ::operator delete(at, std::align_val_t{64}); }
};

// Calls work(task, scratch) for each task; every thread has scratch memory of its own.
template <typename Work>
void for_each_task(const SpectralKernels& kernels, const SpectralPlan& plan, std::int64_t tasks, std::int64_t bytes,
                   int threads, Work work) {
    const std::int64_t floats = (kernels.scratch(plan) + 15) / 16 * 16;
    threads = static_cast<int>(std::min<std::int64_t>(threads_for(bytes, threads), std::max<std::int64_t>(tasks, 1)));
    const std::unique_ptr<float, FreeAligned> scratch(
        static_cast<float*>(::operator new(floats * threads * sizeof(float), std::align_val_t{64})));
    if (threads == 1) {  // not even a region of one thread: after a fork the pool must stay untouched
        for (std::int64_t task = 0; task < tasks; ++task) work(task, scratch.get());
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
    for (int thread = 0; thread < threads; ++thread) {
        const std::int64_t first = tasks * thread / threads, last = tasks * (thread + 1) / threads;
        for (std::int64_t task = first; task < last; ++task) work(task, scratch.get() + floats * thread);
    }
}

// Images are cut into parts that only their numbers decide, never the threads: sums over parts are always the same.
struct Parts {
    std::int64_t count, images;

    std::int64_t first(std::int64_t part) const { return images * part / count; }
};

// The work on a filter: `together` channels a task, and of them parts of their images.
struct FilterWork {
    std::int64_t channels, together;
    Parts parts;

    // Enough tasks to occupy many threads, but none of fewer images than make up for laying out weights.
    FilterWork(const SpectralKernels& kernels, const SpectralPlan& plan, std::int64_t channels, std::int64_t images)
        : channels(channels), together(std::min<std::int64_t>(kernels.channels_together(plan), channels)) {
        constexpr std::int64_t enough = 64, fewest_images = 4;
        const std::int64_t stacks = (channels + together - 1) / together;
        parts = {std::clamp<std::int64_t>(images / fewest_images, 1, (enough + stacks - 1) / stacks), images};
    }

    std::int64_t tasks() const { return (channels + together - 1) / together * parts.count; }
    std::int64_t channel(std::int64_t task) const { return task / parts.count * together; }
    int channels_of(std::int64_t task) const {
        return static_cast<int>(std::min(together, channels - channel(task)));
    }
    std::int64_t part(std::int64_t task) const { return task % parts.count; }
};

std::int64_t bytes_of(const SpectralPlan& plan, Element element, std::int64_t images) {
    return images * plan.pixels() * (element == Element::bfloat16 ? 2 : 4);
}

// Whether a call that moves so many bytes leaves the caches behind, so that its results had better pass them by. An
// image is then written as one, so its rows must lie side by side.
bool past_cache(const SpectralPlan& plan, Element element, const Images& results, std::int64_t bytes) {
    return bytes > 12 << 20 && results.row * plan.height == bytes_of(plan, element, 1);
}

// Calls run(kernels, task, scratch) for parts of the images.
template <typename Run>
void for_each_focal_part(const FocalCall& call, const float* largest, Run run) {
    const SpectralKernels kernels = spectral_kernels(call.isa);
    const std::int64_t images = call.pred.count();
    const Parts parts{std::clamp<std::int64_t>(images, 1, 64), images};
    const auto run_part = [&](std::int64_t part, float* scratch) {
        const FocalTask task{&call.plan,  call.element, &call.pred,         &call.target,
                             call.weight, largest,      parts.first(part), parts.first(part + 1)};
        run(kernels, task, scratch);
    };
    const std::int64_t bytes = 2 * bytes_of(call.plan, call.element, images);
    for_each_task(kernels, call.plan, parts.count, bytes, call.threads, run_part);
}

// NaN if there is one among them.
float focal_largest(const FocalCall& call) {
    std::vector<float> each(call.pred.count());
    for_each_focal_part(call, nullptr, [&](const SpectralKernels& kernels, const FocalTask& task, float* scratch) {
        kernels.largest(task, each.data(), scratch);
    });
    float largest = 0.0f;
    for (float one : each) {
        if (one > largest || one != one) largest = one;
    }
    return largest;
}

}  // namespace

void spectral_filter(const SpectralPlan& plan, Element element, const Images& x, const float* weight, const Images& y,
                     std::int64_t channels, Isa isa, int threads) {
    if (x.count() == 0) return;
    const SpectralKernels kernels = spectral_kernels(isa);
    const std::int64_t images = x.count() / channels, bytes = 2 * bytes_of(plan, element, x.count());
    const FilterWork work(kernels, plan, channels, images);
    const auto run = [&](std::int64_t task, float* scratch) {
        const std::int64_t channel = work.channel(task), part = work.part(task);
        kernels.filter({&plan, element, &x, &y, weight + 2 * channel * plan.bins(), channel, work.channels_of(task),
                        images, work.parts.first(part), work.parts.first(part + 1),
                        past_cache(plan, element, y, bytes)},
                       scratch);
    };
    for_each_task(kernels, plan, work.tasks(), bytes, threads, run);
}

void spectral_filter_backward(const SpectralPlan& plan, Element element, const Images& grad, const Images& x,
                              const float* weight, const Images& grad_x, float* grad_weight, std::int64_t channels,
                              Isa isa, int threads) {
    const std::int64_t size = 2 * plan.bins();
    if (x.count() == 0) {
        std::fill_n(grad_weight, channels * size, 0.0f);
        return;
    }
    const SpectralKernels kernels = spectral_kernels(isa);
    const std::int64_t images = x.count() / channels, bytes = 3 * bytes_of(plan, element, x.count());
    const FilterWork work(kernels, plan, channels, images);
    const std::int64_t parts = work.parts.count;
    std::vector<float> sums(parts > 1 ? channels * parts * size : 0);
    float* const slots = parts > 1 ? sums.data() : grad_weight;  // (channels, parts) gradients
    const auto run = [&](std::int64_t task, float* scratch) {
        const std::int64_t channel = work.channel(task), part = work.part(task);
        kernels.filter_backward({&plan, element, &grad, &x, &grad_x, weight + channel * size,
                                 slots + (channel * parts + part) * size, parts * size, channel,
                                 work.channels_of(task), images, work.parts.first(part), work.parts.first(part + 1),
                                 past_cache(plan, element, grad_x, bytes)},
                                scratch);
    };
    for_each_task(kernels, plan, work.tasks(), bytes, threads, run);
    for (std::int64_t channel = 0; parts > 1 && channel < channels; ++channel) {
        float* const total = grad_weight + channel * size;
        const float* slot = slots + channel * parts * size;
        std::copy_n(slot, size, total);
        for (std::int64_t part = 1; part < parts; ++part) {
            slot += size;
            for (std::int64_t i = 0; i < size; ++i) total[i] += slot[i];
        }
    }
}

double focal_loss(const FocalCall& call) {
    const float of_all = call.largest_of_all ? focal_largest(call) : 0.0f;
    std::vector<double> each(call.pred.count());
    for_each_focal_part(call, call.largest_of_all ? &of_all : nullptr,
                        [&](const SpectralKernels& kernels, const FocalTask& task, float* scratch) {
                            kernels.losses(task, each.data(), scratch);
                        });
    double sum = 0.0;
    for (double one : each) sum += one;
    return sum / (static_cast<double>(call.pred.count()) * static_cast<double>(call.plan.pixels()));
}

void focal_gradient(const FocalCall& call, double scale, const Images& grad_pred) {
    const float of_all = call.largest_of_all ? focal_largest(call) : 0.0f;
    for_each_focal_part(call, call.largest_of_all ? &of_all : nullptr,
                        [&](const SpectralKernels& kernels, const FocalTask& task, float* scratch) {
                            kernels.gradient(task, scale, grad_pred, scratch);
                        });
}

}  // namespace medsora
