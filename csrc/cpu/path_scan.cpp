#include "path_scan.h"

#include <algorithm>

#include "path_scan_kernels.h"
#include "scan_chunks.h"
#include "share_out.h"

namespace medsora {
namespace {

constexpr std::int64_t packed_steps = 16;        // sequences of up to half as many steps share a tile
constexpr std::int64_t cached_bytes = 16 << 20;  // so many may still lie in a cache from who wrote them

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
    cut.chunk = static_cast<int>(cut.sequences) * chunk_steps(length);
    return cut;
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
    const std::int64_t chunks = (path.length + call.cut.chunk - 1) / call.cut.chunk;
    call.states_apart = chunks_between_states(chunks, std::int64_t{sizes.width()} * sizes.state);
    return call;
}

// The parameters in the kernels' layout, in memory of their own.
Memory laid_out(const PathScanSizes& sizes, const PathScanParameters& given) {
    Memory memory = allocate(parameter_floats(sizes));
    const PathScanParameters to = lay_out(sizes, memory.get());
    const std::int64_t mixed = sizes.mixed(), taps = sizes.taps;
    for (std::int64_t c = 0; c < mixed; ++c) {
        for (std::int64_t k = 0; k < taps; ++k) to.conv_weight[k * mixed + c] = given.conv_weight[c * taps + k];
    }
    if (given.conv_bias == nullptr) std::fill_n(to.conv_bias, mixed, 0.0f);
    else std::copy_n(given.conv_bias, mixed, to.conv_bias);
    std::copy_n(given.dt_bias, sizes.heads, to.dt_bias);
    std::copy_n(given.A, sizes.heads, to.A);
    std::copy_n(given.D, sizes.heads, to.D);
    std::copy_n(given.norm_weight, sizes.width(), to.norm_weight);
    return memory;
}

// The sums in the caller's layout.
void hand_out(const PathScanSizes& sizes, const PathScanParameters& sums, const PathScanParameters& to) {
    const std::int64_t mixed = sizes.mixed(), taps = sizes.taps;
    for (std::int64_t c = 0; c < mixed; ++c) {
        for (std::int64_t k = 0; k < taps; ++k) to.conv_weight[c * taps + k] = sums.conv_weight[k * mixed + c];
    }
    if (to.conv_bias != nullptr) std::copy_n(sums.conv_bias, mixed, to.conv_bias);
    std::copy_n(sums.dt_bias, sizes.heads, to.dt_bias);
    std::copy_n(sums.A, sizes.heads, to.A);
    std::copy_n(sums.D, sizes.heads, to.D);
    std::copy_n(sums.norm_weight, sizes.width(), to.norm_weight);
}

}  // namespace

void path_scan(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
               const std::vector<Path>& paths, const std::vector<TokenRows>& out, Isa isa, int threads) {
    const PathScanKernels kernels = kernels_of(sizes.element, isa);
    const Memory own_parameters = laid_out(sizes, parameters);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        const PathScanCall call = call_along(sizes, lay_out(sizes, own_parameters.get()), rows, paths[i], out[i]);
        share_out(sizes.videos * call.cut.items, threads, kernels.forward_scratch(call),
                  [&](std::int64_t item, float* scratch) { kernels.forward(call, item, scratch); });
    }
}

void path_scan_backward(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
                        const std::vector<Path>& paths, const std::vector<TokenRows>& grads, const TokenRows& grad_rows,
                        const PathScanParameters& grad_parameters, Isa isa, int threads) {
    const PathScanKernels kernels = kernels_of(sizes.element, isa);
    const std::size_t floats = parameter_floats(sizes), each = (floats + 15) / 16 * 16;
    const Memory own_parameters = laid_out(sizes, parameters), total = allocate(floats);
    std::fill_n(total.get(), floats, 0.0f);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        PathScanCall call = call_along(sizes, lay_out(sizes, own_parameters.get()), rows, paths[i], grads[i]);
        call.grad_rows = grad_rows;
        call.add = i > 0;
        const std::int64_t items = sizes.videos * call.cut.items, ranges = std::min(items, most_ranges);
        const Memory sums = allocate(each * std::max<std::int64_t>(ranges, 1));
        share_out(ranges, threads, kernels.backward_scratch(call), [&](std::int64_t range, float* scratch) {
            float* own = sums.get() + range * each;
            std::fill_n(own, each, 0.0f);
            for (std::int64_t item = range * items / ranges; item < (range + 1) * items / ranges; ++item) {
                kernels.backward(call, item, scratch, own);
            }
        });
        for (std::int64_t range = 0; range < ranges; ++range) {
            const float* own = sums.get() + range * each;
            for (std::size_t k = 0; k < floats; ++k) total.get()[k] += own[k];
        }
    }
    hand_out(sizes, lay_out(sizes, total.get()), grad_parameters);
}

}  // namespace medsora
