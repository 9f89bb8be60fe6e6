// The scan of plain sequences on a CPU: what one call consists of, and the two passes.
//
// An item of work is a sequence and some heads of one group, which share its scores. Items are cut by the sizes alone,
// an item is computed by one thread in one order, and sums over items run in one order too, so the thread count cannot
// change a bit.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "isa.h"

namespace medsora {

// Rows of float32 or bfloat16 numbers at three indices; strides in elements, numbers in a row contiguous.
struct StridedRows {
    void* data;  // null: not given
    Element element;
    std::int64_t strides[3];
    std::int64_t at(std::int64_t i, std::int64_t j, std::int64_t k) const {
        return i * strides[0] + j * strides[1] + k * strides[2];
    }
};

struct SsdScanSizes {
    std::int64_t batch, length;
    int heads, head_dim, groups, state;
    bool dt_softplus;
};

// What lies along the sequences, or its gradients.
struct SsdScanTensors {
    StridedRows x;               // rows of head_dim at (batch, token, head)
    StridedRows dt;              // one number at each (batch, token, head)
    StridedRows b, c;            // rows of the state at (batch, token, group)
    StridedRows z;               // as x, or not given
    StridedRows initial_states;  // rows of the state at (batch, head, channel of the head), or not given
};

// float32 and contiguous; or their gradients.
struct SsdScanParameters {
    float* A;        // (heads)
    float* D;        // (heads, head_dim), or null
    float* dt_bias;  // (heads), or null
};

// y: rows like x. final_states: rows like initial_states, or not given.
void ssd_scan(const SsdScanSizes& sizes, const SsdScanTensors& inputs, const SsdScanParameters& parameters,
              const StridedRows& y, const StridedRows& final_states, Isa isa, int threads);

// Gradients of y and, if given, of the final states -> those of all inputs, written; those given are asked for.
void ssd_scan_backward(const SsdScanSizes& sizes, const SsdScanTensors& inputs, const SsdScanParameters& parameters,
                       const StridedRows& grad_y, const StridedRows& grad_final_states, const SsdScanTensors& grads,
                       const SsdScanParameters& grad_parameters, Isa isa, int threads);

}  // namespace medsora
