// How a scan path walks the token grid; the arithmetic every kernel shares.
#pragma once

#include <cstdint>

namespace medsora {

// Sequence n, step s of one video visits token n * stride + offsets[s].
// Every token is visited exactly once, so a video has sequences * length tokens.
struct Path {
    const std::int32_t* offsets;  // (length)
    std::int64_t sequences;
    std::int64_t length;
    std::int64_t stride;

    // 64-bit on purpose: tokens times channels passes 2^31 on real videos.
    std::int64_t token(std::int64_t sequence, std::int64_t step) const {
        return sequence * stride + offsets[step];
    }
    std::int64_t tokens() const { return sequences * length; }
};

}  // namespace medsora
