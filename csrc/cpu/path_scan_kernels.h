// What the driver of the path scan asks of the kernels of one instruction set.
#pragma once

#include "path_scan.h"

namespace medsora {

// How a path's sequences are cut.
struct Cut {
    std::int64_t sequences;  // a tile packs at most so many, all of one video
    std::int64_t items;      // of one video
    int chunk;               // steps of a tile when an item is one long sequence; its whole length if it is not long
};

// Parameters as the kernels read them and sums of their gradients: one after the other, a row for each tap, always a bias.
inline std::size_t parameter_floats(const PathScanSizes& sizes) {
    return std::size_t(sizes.mixed()) * (sizes.taps + 1) + 3 * std::size_t(sizes.heads) + sizes.width();
}

inline PathScanParameters lay_out(const PathScanSizes& sizes, float* memory) {
    PathScanParameters p{};
    p.conv_weight = memory;  // (taps, mixed)
    p.conv_bias = p.conv_weight + std::size_t(sizes.taps) * sizes.mixed();
    p.dt_bias = p.conv_bias + sizes.mixed();
    p.A = p.dt_bias + sizes.heads;
    p.D = p.A + sizes.heads;
    p.norm_weight = p.D + sizes.heads;
    return p;
}

// One pass along one path.
struct PathScanCall {
    PathScanSizes sizes;
    PathScanParameters parameters;  // as lay_out places them
    TokenRows rows;
    bool ahead;  // forward: ask for rows ahead of time, as they lie in no cache
    Path path;
    Cut cut;
    TokenRows out;       // forward: where the result goes; backward: its gradient
    TokenRows grad_rows; // backward
    bool add;            // backward: onto what grad_rows holds already, from another path
    int states_apart;    // backward of a long sequence: chunks between the states kept on a first walk
};

// Work on one item with `scratch` of the size told. Parameter gradients are added to `sums`, laid out like the parameters.
struct PathScanKernels {
    std::size_t (*forward_scratch)(const PathScanCall&);
    void (*forward)(const PathScanCall&, std::int64_t item, float* scratch);
    std::size_t (*backward_scratch)(const PathScanCall&);
    void (*backward)(const PathScanCall&, std::int64_t item, float* scratch, float* sums);
};

PathScanKernels path_scan_kernels_baseline(Element element);
#if MEDSORA_X86_VARIANTS
PathScanKernels path_scan_kernels_avx2(Element element);
PathScanKernels path_scan_kernels_avx512(Element element);
#endif

}  // namespace medsora
