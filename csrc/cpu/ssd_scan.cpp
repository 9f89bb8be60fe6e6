#include "ssd_scan.h"

#include <algorithm>

#include "scan_chunks.h"
#include "share_out.h"
#include "ssd_scan_kernels.h"

namespace medsora {
namespace {

constexpr std::int64_t enough_items = 8;  // to keep threads busy; with fewer, the heads of a group are parted
constexpr std::int64_t fewest_heads = 4;  // in a block: each computes the scores of its group again

SsdScanKernels kernels_of(Isa isa) {
#if MEDSORA_X86_VARIANTS
    if (isa == Isa::avx512) return ssd_scan_kernels_avx512();
    if (isa == Isa::avx2) return ssd_scan_kernels_avx2();
#endif
    (void)isa;
    return ssd_scan_kernels_baseline();
}

SsdScanCall call_for(const SsdScanSizes& sizes, const SsdScanTensors& inputs, const SsdScanParameters& parameters,
                     const StridedRows& y, const StridedRows& final_states) {
    SsdScanCall call{};
    call.sizes = sizes;
    call.inputs = inputs;
    call.parameters = parameters;
    call.y = y;
    call.final_states = final_states;
    call.chunk = chunk_steps(sizes.length);
    const std::int64_t heads = sizes.heads / sizes.groups, most = std::max<std::int64_t>(heads / fewest_heads, 1);
    const std::int64_t items = std::max<std::int64_t>(sizes.batch * sizes.groups, 1);
    const std::int64_t wanted = std::clamp<std::int64_t>((enough_items + items - 1) / items, 1, most);
    call.heads_at_once = static_cast<int>((heads + wanted - 1) / wanted);
    call.blocks = static_cast<int>((heads + call.heads_at_once - 1) / call.heads_at_once);
    call.states_apart =
        chunks_between_states(call.chunks(), std::int64_t{call.heads_at_once} * sizes.head_dim * sizes.state);
    return call;
}

// Where the blocks of a group write their parts of a gradient that all its heads share.
struct Parts {
    Memory memory;
    StridedRows rows;
    std::int64_t apart;
};

Parts parts_for(const SsdScanCall& call) {
    const std::int64_t token = std::int64_t{call.sizes.groups} * call.sizes.state, sequence = call.sizes.length * token;
    Parts parts{nullptr, {}, call.sizes.batch * sequence};
    parts.memory = allocate(parts.apart * call.blocks);
    parts.rows = {parts.memory.get(), Element::float32, {sequence, token, call.sizes.state}};
    return parts;
}

// Floats of the sums for all parameters, laid out one after the other.
std::size_t parameter_floats(const SsdScanSizes& sizes) {
    return static_cast<std::size_t>(sizes.heads) * (sizes.head_dim + 2);
}

SsdScanParameters lay_out(const SsdScanSizes& sizes, const SsdScanParameters& wanted, float* memory) {
    SsdScanParameters laid_out{};
    laid_out.A = memory;
    if (wanted.dt_bias != nullptr) laid_out.dt_bias = memory + sizes.heads;
    if (wanted.D != nullptr) laid_out.D = memory + 2 * sizes.heads;
    return laid_out;
}

void add(float* to, const float* from, std::size_t count) {
    for (std::size_t i = 0; to != nullptr && i < count; ++i) to[i] += from[i];
}

// All items back, their sums added up range by range.
void items_back(const SsdScanCall& call, const SsdScanKernels& kernels, const SsdScanParameters& grads, int threads) {
    const SsdScanSizes& sizes = call.sizes;
    const std::size_t heads = sizes.heads, each = (parameter_floats(sizes) + 15) / 16 * 16;
    const std::int64_t items = call.items(), ranges = std::min(items, most_ranges);
    const Memory sums = allocate(each * std::max<std::int64_t>(ranges, 1));
    share_out(ranges, threads, kernels.backward_scratch(call), [&](std::int64_t range, float* scratch) {
        float* own = sums.get() + range * each;
        std::fill_n(own, each, 0.0f);
        const SsdScanParameters laid_out = lay_out(sizes, grads, own);
        for (std::int64_t item = range * items / ranges; item < (range + 1) * items / ranges; ++item) {
            kernels.backward(call, item, scratch, laid_out);
        }
    });
    std::fill_n(grads.A, heads, 0.0f);
    if (grads.dt_bias != nullptr) std::fill_n(grads.dt_bias, heads, 0.0f);
    if (grads.D != nullptr) std::fill_n(grads.D, heads * sizes.head_dim, 0.0f);
    for (std::int64_t range = 0; range < ranges; ++range) {
        const float* own = sums.get() + range * each;
        add(grads.A, own, heads);
        add(grads.dt_bias, own + heads, heads);
        add(grads.D, own + 2 * heads, heads * sizes.head_dim);
    }
}

}  // namespace

void ssd_scan(const SsdScanSizes& sizes, const SsdScanTensors& inputs, const SsdScanParameters& parameters,
              const StridedRows& y, const StridedRows& final_states, Isa isa, int threads) {
    const SsdScanKernels kernels = kernels_of(isa);
    const SsdScanCall call = call_for(sizes, inputs, parameters, y, final_states);
    share_out(call.items(), threads, kernels.forward_scratch(call),
              [&](std::int64_t item, float* scratch) { kernels.forward(call, item, scratch); });
}

void ssd_scan_backward(const SsdScanSizes& sizes, const SsdScanTensors& inputs, const SsdScanParameters& parameters,
                       const StridedRows& grad_y, const StridedRows& grad_final_states, const SsdScanTensors& grads,
                       const SsdScanParameters& grad_parameters, Isa isa, int threads) {
    const SsdScanKernels kernels = kernels_of(isa);
    SsdScanCall call = call_for(sizes, inputs, parameters, grad_y, grad_final_states);
    call.grads = grads;
    if (call.blocks == 1) return items_back(call, kernels, grad_parameters, threads);
    const Parts b = parts_for(call), c = parts_for(call);
    call.grads.b = b.rows;
    call.grads.c = c.rows;
    call.apart = b.apart;
    items_back(call, kernels, grad_parameters, threads);
    share_out(sizes.batch * call.chunks(), threads, sizes.state + 16, [&](std::int64_t index, float* scratch) {
        const std::int64_t batch = index / call.chunks(), chunk = index % call.chunks();
        kernels.add_blocks(call, b.rows, grads.b, batch, chunk, scratch);
        kernels.add_blocks(call, c.rows, grads.c, batch, chunk, scratch);
    });
}

}  // namespace medsora
