#include "path_scan.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "path_scan_kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace medsora {
namespace {

constexpr std::int64_t packed_steps = 16;    // sequences of up to half as many steps share a tile
constexpr std::int64_t longest_tile = 256;   // beyond, the state is cheaper than the quadratic form
constexpr std::int64_t usual_chunk = 96;
constexpr std::int64_t most_ranges = 64;     // of items, for sums of parameter gradients
constexpr std::int64_t cached_bytes = 16 << 20;  // so many may still lie in a cache from who wrote them
constexpr std::int64_t states_bytes = 24 << 20;  // all states of a sequence are kept, if so many bytes hold them

PathScanKernels kernels_of(Element element, Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return path_scan_kernels_avx512(element);
    if (isa == Isa::avx2) return path_scan_kernels_avx2(element);
#endif
    (void)isa;
    return path_scan_kernels_baseline(element);
}

Cut cut_of(const Path& path) {
    const std::int64_t length = path.length;
    const std::int64_t together = length <= packed_steps / 2 ? packed_steps / length : 1;
    Cut cut{};
    cut.sequences = std::min(together, path.sequences);
    cut.items = (path.sequences + cut.sequences - 1) / cut.sequences;
    const std::int64_t chunks = length <= longest_tile ? 1 : (length + usual_chunk - 1) / usual_chunk;
    cut.chunk = static_cast<int>(cut.sequences * ((length + chunks - 1) / chunks));
    return cut;
}

// Every state if they are few; else about the root of their number on a first walk, and as many again between two.
int states_apart(const PathScanSizes& sizes, const Path& path, const Cut& cut) {
    const std::int64_t chunks = (path.length + cut.chunk - 1) / cut.chunk;
    const std::int64_t bytes = std::int64_t{4} * sizes.width() * sizes.state;
    if (chunks * bytes <= states_bytes) return static_cast<int>(chunks);
    std::int64_t root = 1;
    while (root * root < chunks) ++root;
    return static_cast<int>(root);
}

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

Memory allocate(std::size_t floats) {
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

PathScanCall call_along(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
                        const Path& path, const TokenRows& out) {
    PathScanCall call{};
    call.sizes = sizes;
    call.parameters = parameters;
    call.rows = rows;
    const std::int64_t row_bytes = std::int64_t{sizes.channels()} * (sizes.element == Element::float32 ? 4 : 2);
    call.ahead = sizes.videos * path.tokens() * row_bytes > cached_bytes;
    call.path = path;
    call.cut = cut_of(path);
    call.out = out;
    call.states_apart = states_apart(sizes, path, call.cut);
    return call;
}

PathScanParameters lay_out(const PathScanSizes& sizes, float* memory) {
    PathScanParameters p{};
    p.conv_weight = memory;
    p.conv_bias = p.conv_weight + std::size_t(sizes.taps) * sizes.mixed();
    p.dt_bias = p.conv_bias + sizes.mixed();
    p.A = p.dt_bias + sizes.heads;
    p.D = p.A + sizes.heads;
    p.norm_weight = p.D + sizes.heads;
    return p;
}

}  // namespace

std::size_t parameter_floats(const PathScanSizes& sizes) {
    return std::size_t(sizes.mixed()) * (sizes.taps + 1) + 3 * std::size_t(sizes.heads) + sizes.width();
}

void path_scan(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
               const std::vector<Path>& paths, const std::vector<TokenRows>& out, Isa isa, int threads) {
    const PathScanKernels kernels = kernels_of(sizes.element, isa);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        const PathScanCall call = call_along(sizes, parameters, rows, paths[i], out[i]);
        share_out(sizes.videos * call.cut.items, threads, kernels.forward_scratch(call),
                  [&](std::int64_t item, float* scratch) { kernels.forward(call, item, scratch); });
    }
}

void path_scan_backward(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
                        const std::vector<Path>& paths, const std::vector<TokenRows>& grads, const TokenRows& grad_rows,
                        float* grad_parameters, Isa isa, int threads) {
    const PathScanKernels kernels = kernels_of(sizes.element, isa);
    const std::size_t floats = parameter_floats(sizes), each = (floats + 15) / 16 * 16;
    std::fill_n(grad_parameters, floats, 0.0f);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        PathScanCall call = call_along(sizes, parameters, rows, paths[i], grads[i]);
        call.grad_rows = grad_rows;
        call.add = i > 0;
        const std::int64_t items = sizes.videos * call.cut.items, ranges = std::min(items, most_ranges);
        const Memory sums = allocate(each * std::max<std::int64_t>(ranges, 1));
        share_out(ranges, threads, kernels.backward_scratch(call), [&](std::int64_t range, float* scratch) {
            float* own = sums.get() + range * each;
            std::fill_n(own, each, 0.0f);
            const PathScanParameters laid_out = lay_out(sizes, own);
            for (std::int64_t item = range * items / ranges; item < (range + 1) * items / ranges; ++item) {
                kernels.backward(call, item, scratch, laid_out);
            }
        });
        for (std::int64_t range = 0; range < ranges; ++range) {
            const float* own = sums.get() + range * each;
            for (std::size_t k = 0; k < floats; ++k) grad_parameters[k] += own[k];
        }
    }
}

}  // namespace medsora
