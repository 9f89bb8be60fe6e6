// What the driver of the plain scan asks of the kernels of one instruction set.
#pragma once

#include <cstddef>

#include "ssd_scan.h"

namespace medsora {

struct SsdScanCall {
    SsdScanSizes sizes;
    SsdScanTensors inputs;
    SsdScanParameters parameters;
    StridedRows y;             // forward: the result; backward: its gradient
    StridedRows final_states;  // likewise; or not given
    SsdScanTensors grads;      // backward
    int chunk;                 // steps of a tile
    int blocks;                // of heads, in each group
    int heads_at_once;         // in a block; the last may have fewer
    int states_apart;          // backward: chunks between the states kept on a first walk
    std::int64_t apart;        // backward: floats between the parts of b's and c's gradients that two blocks write

    std::int64_t chunks() const { return (sizes.length + chunk - 1) / chunk; }
    std::int64_t items() const { return sizes.batch * sizes.groups * blocks; }
};

// Work on one item with `scratch` of the size told. Parameter gradients are added to `sums`.
struct SsdScanKernels {
    std::size_t (*forward_scratch)(const SsdScanCall&);
    void (*forward)(const SsdScanCall&, std::int64_t item, float* scratch);
    std::size_t (*backward_scratch)(const SsdScanCall&);
    void (*backward)(const SsdScanCall&, std::int64_t item, float* scratch, const SsdScanParameters& sums);
    // The rows (batch, token, group) that each block wrote, added up into `to` for the tokens of one chunk; scratch for
    // a row in whole vectors.
    void (*add_blocks)(const SsdScanCall&, const StridedRows& parts, const StridedRows& to, std::int64_t batch,
                       std::int64_t chunk, float* scratch);
};

SsdScanKernels ssd_scan_kernels_baseline();
#if MEDSORA_X86_VARIANTS
SsdScanKernels ssd_scan_kernels_avx2();
SsdScanKernels ssd_scan_kernels_avx512();
#endif

}  // namespace medsora
