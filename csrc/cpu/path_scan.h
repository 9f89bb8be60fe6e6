// The fused path scan on a CPU: what one call consists of, and the two passes.
//
// Sequences are cut into items of work: one long sequence, or several short ones packed into a tile. Threads take
// items; an item is computed by one thread in one order, and parameter gradients are summed over a fixed number of
// ranges of items, so the thread count cannot change a bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../common/element.h"
#include "../common/path.h"
#include "isa.h"

namespace medsora {

constexpr int most_taps = 64;  // of the convolution

// Rows of channels in grid order; strides in elements, channels contiguous.
struct TokenRows {
    void* data;
    std::int64_t video_stride, token_stride;
};

struct PathScanSizes {
    std::int64_t videos;
    int heads, head_dim, groups, state, taps;
    bool bidirectional;
    float eps;
    int norm_group_size;
    Element element;  // of all rows: float32 or bfloat16
    int width() const { return heads * head_dim; }
    int mixed() const { return width() + 2 * groups * state; }  // channels that are convolved: x, B, C
    int channels() const { return width() + mixed() + heads; }  // of a row: z, x, B, C, dt
};

// All float32 and contiguous.
struct PathScanParameters {
    float* conv_weight;  // (mixed, taps)
    float* conv_bias;    // (mixed), or null
    float* dt_bias;      // (heads)
    float* A;            // (heads)
    float* D;            // (heads)
    float* norm_weight;  // (width)
};

// rows (videos, tokens, channels) -> one out (videos, tokens, width) a path.
void path_scan(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
               const std::vector<Path>& paths, const std::vector<TokenRows>& out, Isa isa, int threads);

// Gradients of the outputs -> grad_rows and grad_parameters, all written.
void path_scan_backward(const PathScanSizes& sizes, const PathScanParameters& parameters, const TokenRows& rows,
                        const std::vector<Path>& paths, const std::vector<TokenRows>& grads, const TokenRows& grad_rows,
                        const PathScanParameters& grad_parameters, Isa isa, int threads);

}  // namespace medsora
