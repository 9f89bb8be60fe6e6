#include "reorder.h"

#include <cstring>

#include "threads.h"

namespace medsora {
namespace {

// Calls visit(video, sequence) for every pair, shared out evenly over the threads.
template <typename Visit>
void for_each_sequence(std::int64_t videos, const Path& path, int threads, Visit visit) {
    const std::int64_t sequences = videos * path.sequences;
    const auto visit_flat = [&](std::int64_t i) { visit(i / path.sequences, i % path.sequences); };
    if (threads <= 1) {  // not even a region of one thread: after a fork the pool must stay untouched
        for (std::int64_t i = 0; i < sequences; ++i) visit_flat(i);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
    for (std::int64_t i = 0; i < sequences; ++i) visit_flat(i);
}

std::int64_t size_of(Element element) {
    return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

}  // namespace

void gather(const char* x, GridStrides x_strides, char* y, const Path& path, std::int64_t videos,
            std::int64_t row_bytes, int threads) {
    const std::int64_t direction_bytes = path.tokens() * row_bytes;
    for_each_sequence(videos, path, threads_for(3 * videos * direction_bytes, threads),
                      [&](std::int64_t video, std::int64_t sequence) {
        const char* source = x + video * x_strides.video;
        char* forward = y + 2 * video * direction_bytes + sequence * path.length * row_bytes;
        char* reverse = forward + direction_bytes;
        for (std::int64_t step = 0; step < path.length; ++step) {
            const char* row = source + path.token(sequence, step) * x_strides.token;
            std::memcpy(forward + step * row_bytes, row, row_bytes);
            std::memcpy(reverse + (path.length - 1 - step) * row_bytes, row, row_bytes);
        }
    });
}

void merge(const char* y, ScanStrides y_strides, char* x, const Path& path, std::int64_t videos,
           std::int64_t channels, Element element, Isa isa, int threads) {
    const AddRows add = add_rows(element, isa);
    const std::int64_t row_bytes = channels * size_of(element);
    const std::int64_t video_bytes = path.tokens() * row_bytes;
    for_each_sequence(videos, path, threads_for(3 * videos * video_bytes, threads),
                      [&](std::int64_t video, std::int64_t sequence) {
        const char* forward = y + video * y_strides.video + sequence * y_strides.sequence;
        const char* reverse = forward + y_strides.direction + (path.length - 1) * y_strides.step;
        char* target = x + video * video_bytes;
        for (std::int64_t step = 0; step < path.length; ++step) {
            add(forward + step * y_strides.step, reverse - step * y_strides.step,
                target + path.token(sequence, step) * row_bytes, channels);
        }
    });
}

}  // namespace medsora
