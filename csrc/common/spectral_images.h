// Images between a GPU's memory and a block's: where they lie, and how threads share their rows out.
#pragma once

#include <cstdint>

#include "divider.h"
#include "element.h"
#include "half_elements.h"
#include "spectral_passes.h"

namespace medsora {

// Images of one height and width, numbered row-major over three leading dimensions; elements of a row lie side by side.
struct BlockImages {
    const char* base;
    std::int64_t strides[3];  // bytes
    Divider middle, inner;    // sizes of the second and the third dimension
    std::int64_t row;         // bytes from one image row to the next
};

namespace {

// The images that a block works on at a time: `count` of them, from number `first` on.
struct Batch {
    std::uint32_t first;
    int count;
};

MEDSORA_HOST_DEVICE const char* image_at(const BlockImages& images, std::uint32_t n) {
    const std::uint32_t outer = images.inner.quotient(n), first = images.middle.quotient(outer);
    return images.base + first * images.strides[0] + (outer - first * images.middle.divisor()) * images.strides[1] +
           (n - outer * images.inner.divisor()) * images.strides[2];
}

template <typename T, int piece>
struct alignas(sizeof(T) * piece) Elements {
    T value[piece];
};

// Neighbours in a row and those below them, as a thread moves them. Past the end of what there is it is the last
// place, so that reads need no branch.
struct TwoRows {
    int image, first, to;  // first: element of the upper row; to: place in the block's memory
    std::int64_t upper, lower;
    bool exists, both;

    MEDSORA_HOST_DEVICE TwoRows(const SpectralCut& cut, const Divider& pieces, int piece, std::int64_t row, int unit,
                                int units, int element) {
        exists = unit < units;
        const int at = exists ? unit : units - 1;
        const int line = static_cast<int>(pieces.quotient(at));
        first = (at - line * static_cast<int>(pieces.divisor())) * piece;
        image = static_cast<int>(cut.by_pairs.quotient(line));
        const int pair = line - image * cut.pairs;
        both = 2 * pair + 1 < cut.height;
        to = line * cut.stride + first;
        upper = 2 * pair * row + static_cast<std::int64_t>(first) * element;
        lower = both ? upper + row : upper;
    }
};

constexpr int thread_moves = 4;  // read before the first is written: what hides the latency of memory

// values = one - other, or just one if `other` has no base; from(image, which) gives the address of an image.
template <typename T, int piece, typename Team, typename From>
MEDSORA_HOST_DEVICE void load_images(const Team& team, const SpectralCut& cut, const Divider& pieces, int images,
                                     std::int64_t row, std::int64_t other_row, bool difference, const From& from,
                                     Bin* values) {
    const int units = images * cut.pairs * static_cast<int>(pieces.divisor());
    using Moved = Elements<T, piece>;
    const auto at = [](const char* address) { return *reinterpret_cast<const Moved*>(address); };
    team.each([&](int thread) {
        for (int unit = thread; unit < units; unit += thread_moves * team.size()) {
            Moved upper[thread_moves], lower[thread_moves], less_upper[thread_moves]{}, less_lower[thread_moves]{};
            MEDSORA_UNROLL
            for (int k = 0; k < thread_moves; ++k) {
                const TwoRows rows(cut, pieces, piece, row, unit + k * team.size(), units, sizeof(T));
                const char* const image = from(rows.image, 0);
                upper[k] = at(image + rows.upper);
                lower[k] = at(image + rows.lower);
                if (!difference) continue;
                const TwoRows others(cut, pieces, piece, other_row, unit + k * team.size(), units, sizeof(T));
                const char* const other = from(rows.image, 1);
                less_upper[k] = at(other + others.upper);
                less_lower[k] = at(other + others.lower);
            }
            MEDSORA_UNROLL
            for (int k = 0; k < thread_moves; ++k) {
                const TwoRows rows(cut, pieces, piece, row, unit + k * team.size(), units, sizeof(T));
                if (!rows.exists) continue;
                MEDSORA_UNROLL
                for (int i = 0; i < piece; ++i) {
                    const float one = float_of(upper[k].value[i]), two = float_of(lower[k].value[i]);
                    const float a = difference ? one - float_of(less_upper[k].value[i]) : one;
                    const float b = difference ? two - float_of(less_lower[k].value[i]) : two;
                    values[rows.to + i] = {a, rows.both ? b : 0.0f};
                }
            }
        }
    });
}

// Images = values, whose real and imaginary parts are exchanged, plus the residual's if there is one. `from` gives the
// address of an image and of its residual.
template <typename T, int piece, typename Team, typename From>
MEDSORA_HOST_DEVICE void store_images(const Team& team, const SpectralCut& cut, const Divider& pieces, int images,
                                      std::int64_t row, std::int64_t residual_row, bool residual, const From& from,
                                      const Bin* values) {
    const int units = images * cut.pairs * static_cast<int>(pieces.divisor());
    using Moved = Elements<T, piece>;
    team.each([&](int thread) {
        for (int unit = thread; unit < units; unit += thread_moves * team.size()) {
            Moved upper[thread_moves]{}, lower[thread_moves]{};
            MEDSORA_UNROLL
            for (int k = 0; k < thread_moves; ++k) {
                if (!residual) continue;
                const TwoRows rows(cut, pieces, piece, residual_row, unit + k * team.size(), units, sizeof(T));
                upper[k] = *reinterpret_cast<const Moved*>(from(rows.image, 1) + rows.upper);
                lower[k] = *reinterpret_cast<const Moved*>(from(rows.image, 1) + rows.lower);
            }
            MEDSORA_UNROLL
            for (int k = 0; k < thread_moves; ++k) {
                const TwoRows rows(cut, pieces, piece, row, unit + k * team.size(), units, sizeof(T));
                if (!rows.exists) continue;
                MEDSORA_UNROLL
                for (int i = 0; i < piece; ++i) {
                    const Bin found = values[rows.to + i];
                    set_to(upper[k].value[i], residual ? float_of(upper[k].value[i]) + found.im : found.im);
                    set_to(lower[k].value[i], residual ? float_of(lower[k].value[i]) + found.re : found.re);
                }
                char* const image = const_cast<char*>(from(rows.image, 0));
                *reinterpret_cast<Moved*>(image + rows.upper) = upper[k];
                if (rows.both) *reinterpret_cast<Moved*>(image + rows.lower) = lower[k];
            }
        }
    });
}

// Calls run(type, piece) with an object of the element type and how many neighbours move at a time as a constant.
template <typename Run>
MEDSORA_HOST_DEVICE void with_elements(Element element, int piece, const Run& run) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    switch (element) {
        case Element::float32: return piece == 2 ? run(float{}, Two{}) : run(float{}, One{});
        case Element::bfloat16: return piece == 2 ? run(BFloat16{}, Two{}) : run(BFloat16{}, One{});
        default: return piece == 2 ? run(Float16{}, Two{}) : run(Float16{}, One{});
    }
}

}  // namespace
}  // namespace medsora
