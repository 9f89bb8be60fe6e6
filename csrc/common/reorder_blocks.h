// gather and merge as a GPU runs them: what one thread of one block does, compiled for the CPU too.
//
// Rows are moved in pieces of `width` bytes, the most that all addresses are multiples of. The pieces of a video are
// numbered as they lie in the forward half of y; a block does `block_pieces` neighbours, so that any number of channels
// keeps all threads busy and neighbouring threads touch neighbouring memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "divider.h"
#include "element.h"
#include "half_elements.h"
#include "host_device.h"
#include "path.h"
#include "reorder_strides.h"

namespace medsora {
namespace {  // as half.h has it

constexpr int block_threads = 256;
constexpr int thread_pieces = 4;  // read before the first is written: what hides the latency of memory
constexpr int block_pieces = block_threads * thread_pieces;

struct Place {
    std::int64_t row;  // of all rows of all videos, as they are walked
    std::int64_t video, sequence, step, token;
    std::int64_t byte;  // of the row
    bool exists;
};

// The numbering of pieces. It fits 32 bits within a block; what it leads to has 64.
struct BlockWalk {
    const std::int32_t* offsets;
    std::int64_t stride, tokens;
    Divider length, row_pieces, video_blocks;
    std::int64_t blocks;

    struct Start {
        std::int64_t video;
        std::uint32_t row, piece;
    };

    MEDSORA_HOST_DEVICE Start start(std::uint32_t block) const {
        const std::uint32_t video = video_blocks.quotient(block);
        const std::uint64_t first = std::uint64_t{block - video * video_blocks.divisor()} * block_pieces;
        const std::uint64_t row = first / row_pieces.divisor();
        return {video, static_cast<std::uint32_t>(row),
                static_cast<std::uint32_t>(first - row * row_pieces.divisor())};
    }

    // Piece i of a block. Past the end it has the place of one that exists, so that reads need no branch: with one
    // they would wait for each other's offsets.
    template <int width>
    MEDSORA_HOST_DEVICE Place place(const Start& start, std::uint32_t i) const {
        const std::uint32_t piece = start.piece + i, rows = row_pieces.quotient(piece), walked = start.row + rows;
        const auto last = static_cast<std::uint32_t>(tokens - 1);
        const std::uint32_t row = walked < last ? walked : last, sequence = length.quotient(row);
        Place at{};
        at.exists = walked <= last;
        at.row = start.video * tokens + row;
        at.video = start.video;
        at.sequence = sequence;
        at.step = row - sequence * length.divisor();
        at.token = at.sequence * stride + offsets[at.step];
        at.byte = static_cast<std::int64_t>(piece - rows * row_pieces.divisor()) * width;
        return at;
    }
};

struct GatherBlocks {
    const char* x;
    GridStrides x_strides;
    char* y;
    std::int64_t row_bytes;
    int width;
    BlockWalk walk;
};

struct MergeBlocks {
    const char* y;
    ScanStrides y_strides;
    char* x;
    std::int64_t row_bytes;
    int width;
    BlockWalk walk;
};

// Most bytes, up to 16, that all of these addresses and distances are multiples of.
inline int common_width(std::initializer_list<std::int64_t> all) {
    std::int64_t bits = 16;
    for (std::int64_t one : all) bits |= one;
    return static_cast<int>(bits & -bits);
}

// Throws std::invalid_argument for more than the numbering holds.
inline BlockWalk walk_in_blocks(const Path& path, std::int64_t videos, std::int64_t row_bytes, int width) {
    constexpr std::int64_t limit = std::int64_t{1} << 31;
    const auto within = [](const char* what, std::int64_t value, std::int64_t most) {
        if (value > most) {
            throw std::invalid_argument(std::string(what) + ": got " + std::to_string(value) + ", wants at most " +
                                        std::to_string(most));
        }
    };
    const std::int64_t pieces = row_bytes / width;
    within("tokens", path.tokens(), limit - block_pieces - 1);
    within("channels", pieces, limit - block_pieces - 1);
    const std::int64_t video_blocks = (path.tokens() * pieces + block_pieces - 1) / block_pieces;
    if (video_blocks > 0) within("batch", videos, (limit - 1) / video_blocks);  // the grid of a launch
    const auto divider = [](std::int64_t n) { return Divider(std::max<std::int64_t>(n, 1)); };
    return {path.offsets,    path.stride,           path.tokens(),        divider(path.length),
            divider(pieces), divider(video_blocks), videos * video_blocks};
}

inline GatherBlocks gather_in_blocks(const char* x, GridStrides strides, char* y, const Path& path,
                                     std::int64_t videos, std::int64_t row_bytes) {
    const int width = common_width({reinterpret_cast<std::intptr_t>(x), reinterpret_cast<std::intptr_t>(y),
                                    strides.video, strides.token, row_bytes});
    return {x, strides, y, row_bytes, width, walk_in_blocks(path, videos, row_bytes, width)};
}

inline MergeBlocks merge_in_blocks(const char* y, ScanStrides strides, char* x, const Path& path,
                                   std::int64_t videos, std::int64_t row_bytes) {
    const int width = common_width({reinterpret_cast<std::intptr_t>(x), reinterpret_cast<std::intptr_t>(y),
                                    strides.video, strides.direction, strides.sequence, strides.step, row_bytes});
    return {y, strides, x, row_bytes, width, walk_in_blocks(path, videos, row_bytes, width)};
}

// Calls run(width) with it as a constant: 2, 4, 8 or 16 and no less than `least`.
template <int least, typename Run>
void with_width(int width, const Run& run) {
    if (width == 16) return run(std::integral_constant<int, 16>{});
    if (width == 8) return run(std::integral_constant<int, 8>{});
    if constexpr (least <= 4) {
        if (width == 4) return run(std::integral_constant<int, 4>{});
    }
    if constexpr (least <= 2) {
        if (width == 2) return run(std::integral_constant<int, 2>{});
    }
    throw std::invalid_argument("addresses: wants multiples of " + std::to_string(least) + " bytes");
}

// What one access moves.
template <int width>
struct Piece;
template <>
struct Piece<2> {
    std::uint16_t a;
};
template <>
struct Piece<4> {
    std::uint32_t a;
};
template <>
struct alignas(8) Piece<8> {
    std::uint32_t a, b;
};
template <>
struct alignas(16) Piece<16> {
    std::uint32_t a, b, c, d;
};

template <int width>
MEDSORA_HOST_DEVICE Piece<width> piece_at(const char* address) {
    return *reinterpret_cast<const Piece<width>*>(address);
}
template <int width>
MEDSORA_HOST_DEVICE void put(char* address, const Piece<width>& piece) {
    *reinterpret_cast<Piece<width>*>(address) = piece;
}

MEDSORA_HOST_DEVICE Float16 operator+(Float16 a, Float16 b) { return {float16_of_float(float_of(a) + float_of(b))}; }
MEDSORA_HOST_DEVICE BFloat16 operator+(BFloat16 a, BFloat16 b) {
    return {bfloat16_of_float(float_of(a) + float_of(b))};
}

template <typename T, int width>
MEDSORA_HOST_DEVICE Piece<width> sum(const Piece<width>& one, const Piece<width>& other) {
    constexpr int count = width / sizeof(T);
    T a[count], b[count];
    std::memcpy(a, &one, width);
    std::memcpy(b, &other, width);
    MEDSORA_UNROLL
    for (int i = 0; i < count; ++i) a[i] = a[i] + b[i];
    Piece<width> found;
    std::memcpy(&found, a, width);
    return found;
}

template <int width>
MEDSORA_HOST_DEVICE void gather_thread(const GatherBlocks& job, std::uint32_t block, std::uint32_t thread) {
    const BlockWalk& walk = job.walk;
    const BlockWalk::Start start = walk.start(block);
    Piece<width> pieces[thread_pieces];
    Place at[thread_pieces];
    MEDSORA_UNROLL
    for (int k = 0; k < thread_pieces; ++k) {
        at[k] = walk.template place<width>(start, thread + k * block_threads);
        pieces[k] = piece_at<width>(job.x + at[k].video * job.x_strides.video + at[k].token * job.x_strides.token +
                                    at[k].byte);
    }
    MEDSORA_UNROLL
    for (int k = 0; k < thread_pieces; ++k) {
        if (!at[k].exists) continue;
        // A video's rows lie in y twice; step s of a sequence is step length - 1 - s of the reverse one.
        const std::int64_t forward = at[k].row + at[k].video * walk.tokens;
        const std::int64_t reverse = forward + walk.tokens + walk.length.divisor() - 1 - 2 * at[k].step;
        put<width>(job.y + forward * job.row_bytes + at[k].byte, pieces[k]);
        put<width>(job.y + reverse * job.row_bytes + at[k].byte, pieces[k]);
    }
}

template <typename T, int width>
MEDSORA_HOST_DEVICE void merge_thread(const MergeBlocks& job, std::uint32_t block, std::uint32_t thread) {
    const BlockWalk& walk = job.walk;
    const BlockWalk::Start start = walk.start(block);
    Piece<width> forward[thread_pieces], reverse[thread_pieces];
    Place at[thread_pieces];
    MEDSORA_UNROLL
    for (int k = 0; k < thread_pieces; ++k) {
        at[k] = walk.template place<width>(start, thread + k * block_threads);
        const char* const first =
            job.y + at[k].video * job.y_strides.video + at[k].sequence * job.y_strides.sequence + at[k].byte;
        const std::int64_t mirrored = walk.length.divisor() - 1 - at[k].step;
        forward[k] = piece_at<width>(first + at[k].step * job.y_strides.step);
        reverse[k] = piece_at<width>(first + job.y_strides.direction + mirrored * job.y_strides.step);
    }
    MEDSORA_UNROLL
    for (int k = 0; k < thread_pieces; ++k) {
        if (!at[k].exists) continue;
        put<width>(job.x + (at[k].video * walk.tokens + at[k].token) * job.row_bytes + at[k].byte,
                   sum<T>(forward[k], reverse[k]));
    }
}

// Calls run(type, width) with an object of the element type and the width as a constant.
template <typename Run>
void with_element_and_width(Element element, int width, const Run& run) {
    const auto with = [&](auto type) {
        with_width<sizeof(type)>(width, [&](auto constant) { run(type, constant); });
    };
    switch (element) {
        case Element::float32: return with(float{});
        case Element::float64: return with(double{});
        case Element::bfloat16: return with(BFloat16{});
        case Element::float16: return with(Float16{});
    }
}

}  // namespace
}  // namespace medsora
