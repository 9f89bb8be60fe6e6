// Transforms of images in a block's shared memory: what each thread does in the passes along rows and down columns.
//
// Forward only, as in fft.h, and not normalised; the way back is the forward transform of values with real and
// imaginary parts exchanged. A thread does one butterfly of one line at a time: it reads, waits for all others that
// work on the same lines, and writes, so that results lie in natural order in the place of what they came from.
// Neighbouring threads work on neighbouring lines: no two of them meet in a bank of shared memory.
#pragma once

#include <cstdint>

#include "block_team.h"
#include "fft.h"
#include "spectral_cut.h"

namespace medsora {
namespace {

using Bin = Complex<float>;

// e^(-2 pi i k / n).
MEDSORA_HOST_DEVICE Twiddle root_of_unity(int k, int n) {
#if defined(__CUDA_ARCH__)
    const int quarter = (8 * k / n + 1) / 2;  // the nearest axis; from there the angle is at most an octant
    float s, c;
    sincospif(static_cast<float>(4 * k - quarter * n) / static_cast<float>(2 * n), &s, &c);
    const float re = quarter % 2 == 0 ? c : -s, im = quarter % 2 == 0 ? s : c;
    return quarter % 4 < 2 ? Twiddle{re, -im} : Twiddle{-re, im};
#else
    const Twiddle w = turn(k, n);
    return {w.re, -w.im};
#endif
}

// cos and sin of 2 pi j / (the odd factor of n) for the codelets, as constants in their instructions.
template <int n>
struct OddRoots {
    Twiddle at[1] = {{1.0f, 0.0f}};
};
template <>
struct OddRoots<3> {
    Twiddle at[3] = {{1.0f, 0.0f}, {-0.5f, 0.86602540378443865f}, {-0.5f, -0.86602540378443865f}};
};
template <>
struct OddRoots<5> {
    Twiddle at[5] = {{1.0f, 0.0f},
                     {0.30901699437494742f, 0.95105651629515357f},
                     {-0.80901699437494742f, 0.58778525229247313f},
                     {-0.80901699437494742f, -0.58778525229247313f},
                     {0.30901699437494742f, -0.95105651629515357f}};
};
template <>
struct OddRoots<7> {
    Twiddle at[7] = {{1.0f, 0.0f},
                     {0.62348980185873353f, 0.78183148246802981f},
                     {-0.22252093395631440f, 0.97492791218182361f},
                     {-0.90096886790241913f, 0.43388373911755812f},
                     {-0.90096886790241913f, -0.43388373911755812f},
                     {-0.22252093395631440f, -0.97492791218182361f},
                     {0.62348980185873353f, -0.78183148246802981f}};
};

template <>
struct OddRoots<6> : OddRoots<3> {};
template <>
struct OddRoots<10> : OddRoots<5> {};
template <>
struct OddRoots<12> : OddRoots<3> {};

// Roots of a radix that divides the length of a line, out of the line's own.
struct RadixRoots {
    const Twiddle* roots;
    int step;
    MEDSORA_HOST_DEVICE Twiddle operator[](int j) const { return {roots[j * step].re, -roots[j * step].im}; }
};

// Where the rows of a column lie in an image.
struct ColumnPlaces {
    int even, odd, stride;
    MEDSORA_HOST_DEVICE ColumnPlaces(const SpectralCut& cut, int column)
        : even(column),
          odd(column == 0 ? cut.width : 2 * column == cut.width ? cut.width + 1 : cut.width - column),
          stride(cut.stride) {}
    MEDSORA_HOST_DEVICE int operator()(int row) const { return (row >> 1) * stride + (row & 1 ? odd : even); }
};

// The values of a block, which lie in its shared memory. On a GPU their place is a number, not a pointer: of one that
// went through a choice the compiler no longer knows that, and takes the longer way that leads to any memory.
struct BlockValues {
#if defined(__CUDA_ARCH__)
    std::uint32_t place;
    MEDSORA_HOST_DEVICE explicit BlockValues(Bin* values)
        : place(static_cast<std::uint32_t>(__cvta_generic_to_shared(values))) {}
    MEDSORA_HOST_DEVICE Bin& operator[](int i) const {
        void* const at = __cvta_shared_to_generic(place + static_cast<std::uint32_t>(i) * std::uint32_t{sizeof(Bin)});
        return *static_cast<Bin*>(__builtin_assume_aligned(at, sizeof(Bin)));
    }
#else
    Bin* place;
    MEDSORA_HOST_DEVICE explicit BlockValues(Bin* values) : place(values) {}
    MEDSORA_HOST_DEVICE Bin& operator[](int i) const { return place[i]; }
#endif
};

// Pairs of rows, or the columns of half spectra. One type, so that each pass is compiled once.
struct Lines {
    Bin* values;
    const SpectralCut* cut;
    bool columns;
    int count;

    // Values first, first + step, ... of a line. Two steps down a column lie as many pairs of rows further as there are
    // rows in a step, on the same side.
    struct Run {
        BlockValues values;
        int even, odd, step;
        MEDSORA_HOST_DEVICE Bin& operator[](int j) const { return values[(j & 1 ? odd : even) + (j >> 1) * step]; }
    };
    MEDSORA_HOST_DEVICE Run run(int line, int first, int step) const {
        if (!columns) {
            const int start = line * cut->stride + first;
            return {BlockValues(values), start, start + step, 2 * step};
        }
        const int image = static_cast<int>(cut->by_columns.quotient(line)), start = image * cut->image_values();
        const ColumnPlaces place(*cut, line - image * cut->columns);
        return {BlockValues(values), start + place(first), start + place(first + step), step * cut->stride};
    }
};

// Calls visit(pair, column, values of the pair) for each column of each pair of rows.
template <typename Team, typename Visit>
MEDSORA_HOST_DEVICE void for_each_pair(const Team& team, const SpectralCut& cut, Bin* values, int images,
                                       const Visit& visit) {
    const int units = images * cut.pairs * cut.columns;
    team.each([&](int thread) {
        for (int unit = thread; unit < units; unit += team.size()) {
            const int pair = static_cast<int>(cut.by_columns.quotient(unit));
            visit(pair, unit - pair * cut.columns, values + pair * cut.stride);
        }
    });
}

// Spectra of pairs of rows, one + i other, become those of each row, without what mirrors them.
template <typename Team>
MEDSORA_HOST_DEVICE void tell_rows_apart(const Team& team, const SpectralCut& cut, Bin* values, int images) {
    for_each_pair(team, cut, values, images, [&](int, int column, Bin* pair) {
        const ColumnPlaces place(cut, column);
        const Bin a = pair[column], b = pair[column == 0 ? 0 : cut.width - column];
        pair[place.even] = {(a.re + b.re) * 0.5f, (a.im - b.im) * 0.5f};
        pair[place.odd] = {(a.im + b.im) * 0.5f, (b.re - a.re) * 0.5f};
    });
}

// Back: one + i other over the whole width, where all values have their real and imaginary parts exchanged. Of columns
// that mirror themselves the rows are real.
template <typename Team>
MEDSORA_HOST_DEVICE void put_rows_together(const Team& team, const SpectralCut& cut, Bin* values, int images) {
    for_each_pair(team, cut, values, images, [&](int pair_number, int column, Bin* pair) {
        const ColumnPlaces place(cut, column);
        // Behind the last row of an odd height there is none.
        const bool last = cut.height % 2 == 1 && pair_number % cut.pairs == cut.pairs - 1;
        const Bin one = pair[place.even], other = last ? Bin{0.0f, 0.0f} : pair[place.odd];
        if (place.odd >= cut.width) {
            pair[column] = {other.im, one.im};
        } else {
            pair[column] = {one.re + other.im, one.im - other.re};
            pair[cut.width - column] = {other.im - one.re, one.im + other.re};
        }
    });
}

// Butterfly b of a pass in Stockham's form: reads b, b + butterflies, ... and writes from, from + stride, ...
struct Butterfly {
    int b, line, turn, from;
    bool exists;

    MEDSORA_HOST_DEVICE Butterfly(const BlockPass& pass, int unit, int first, int lines) {
        b = static_cast<int>(pass.by_together.quotient(unit));
        line = first + unit - b * pass.together;
        exists = b < pass.butterflies && line < lines;
        const int stride = pass.stride.divisor();
        turn = static_cast<int>(pass.stride.quotient(b)) * stride;
        from = turn * pass.radix + b - turn;
    }
};

template <int radix, typename Team>
MEDSORA_HOST_DEVICE void run_codelet_pass(const Team& team, const BlockPass& pass, const Twiddle* roots,
                                          const Lines& lines) {
    struct Kept {
        Bin out[radix];
    };
    for (int first = 0; first < lines.count; first += pass.together) {
        team.template exchange<Kept>(
            [&](int thread, Kept& kept) {
                const Butterfly at(pass, thread, first, lines.count);
                if (!at.exists) return;
                const auto in = lines.run(at.line, at.b, pass.butterflies);
                const OddRoots<radix> constants;
                Dft<radix>::template run<float>([&](int j) { return in[j]; },
                                                [&](int j, const Bin& value) { kept.out[j] = value; }, constants.at);
                if (!pass.turned) return;
                MEDSORA_UNROLL
                for (int j = 1; j < radix; ++j) kept.out[j] = kept.out[j] * roots[at.turn * j];
            },
            [&](int thread, Kept& kept) {
                const Butterfly at(pass, thread, first, lines.count);
                if (!at.exists) return;
                const auto out = lines.run(at.line, at.from, pass.stride.divisor());
                MEDSORA_UNROLL
                for (int j = 0; j < radix; ++j) out[j] = kept.out[j];
            });
    }
    team.meet();
}

// Any odd radix, 1 included: several threads share a butterfly, and each finds some outputs and those that mirror them.
template <typename Team>
MEDSORA_HOST_DEVICE void run_dense_pass_in_block(const Team& team, const BlockPass& pass, const Twiddle* roots,
                                                 int length, const Lines& lines) {
    constexpr int together = dense_outputs_together;
    struct Kept {
        Bin total, out[together], mirrored[together];
    };
    const int radix = pass.radix;
    for (int first = 0; first < lines.count; first += pass.together) {
        team.template exchange<Kept>(
            [&](int thread, Kept& kept) {
                const int shared = static_cast<int>(pass.by_together.quotient(thread));
                const int b = static_cast<int>(pass.by_parts.quotient(shared)), part = shared - b * pass.parts;
                const Butterfly at(pass, thread - (shared - b) * pass.together, first, lines.count);
                if (!at.exists) return;
                const auto run = lines.run(at.line, at.b, pass.butterflies);
                const auto in = [&](int j) { return run[j]; };
                if (part == 0) {
                    kept.total = in(0);
                    for (int j = 1; j < radix; ++j) kept.total = kept.total + in(j);
                }
                const int k = 1 + part * together;
                const auto keep = [&](int j, const Bin& value) {
                    const Bin turned = pass.turned ? value * roots[at.turn * j] : value;
                    MEDSORA_UNROLL
                    for (int i = 0; i < together; ++i) {
                        if (j == k + i) kept.out[i] = turned;
                        if (j == radix - k - i) kept.mirrored[i] = turned;
                    }
                };
                dense_outputs<together, float>(radix, k, in, keep, RadixRoots{roots, length / radix});
            },
            [&](int thread, Kept& kept) {
                const int shared = static_cast<int>(pass.by_together.quotient(thread));
                const int b = static_cast<int>(pass.by_parts.quotient(shared)), part = shared - b * pass.parts;
                const Butterfly at(pass, thread - (shared - b) * pass.together, first, lines.count);
                if (!at.exists) return;
                const auto out = lines.run(at.line, at.from, pass.stride.divisor());
                if (part == 0) out[0] = kept.total;
                const int k = 1 + part * together;
                MEDSORA_UNROLL
                for (int i = 0; i < together; ++i) {
                    if (2 * (k + i) < radix) {
                        out[k + i] = kept.out[i];
                        out[radix - k - i] = kept.mirrored[i];
                    }
                }
            });
    }
    team.meet();
}

template <typename Team>
MEDSORA_HOST_DEVICE void run_block_pass(const Team& team, const LinePasses& passes, int i, const Twiddle* roots,
                                        const Lines& lines) {
    const BlockPass& pass = passes.pass[i];
    switch (pass.radix) {
        case 2: return run_codelet_pass<2>(team, pass, roots, lines);
        case 3: return run_codelet_pass<3>(team, pass, roots, lines);
        case 4: return run_codelet_pass<4>(team, pass, roots, lines);
        case 5: return run_codelet_pass<5>(team, pass, roots, lines);
        case 6: return run_codelet_pass<6>(team, pass, roots, lines);
        case 7: return run_codelet_pass<7>(team, pass, roots, lines);
        case 8: return run_codelet_pass<8>(team, pass, roots, lines);
        case 10: return run_codelet_pass<10>(team, pass, roots, lines);
        case 12: return run_codelet_pass<12>(team, pass, roots, lines);
        case 16: return run_codelet_pass<16>(team, pass, roots, lines);
        default: return run_dense_pass_in_block(team, pass, roots, passes.length, lines);
    }
}

// Forward: pairs of rows in `values` become columns of half spectra. Back: these become pairs of rows, all with real
// and imaginary parts exchanged. One loop for both, so that each pass is compiled once.
template <typename Team>
MEDSORA_HOST_DEVICE void transform_images(const Team& team, const SpectralCut& cut, Bin* values, int images, bool back,
                                          const Twiddle* along_roots, const Twiddle* down_roots) {
    const int leading = back ? cut.down.passes : cut.along.passes, steps = cut.along.passes + cut.down.passes;
    for (int step = 0; step <= steps; ++step) {
        if (step == leading) {
            back ? put_rows_together(team, cut, values, images) : tell_rows_apart(team, cut, values, images);
        }
        if (step == steps) break;
        const bool led = step < leading;
        const int i = led ? step : step - leading;
        const bool columns = led == back;
        const Lines lines{values, &cut, columns, images * (columns ? cut.columns : cut.pairs)};
        run_block_pass(team, columns ? cut.down : cut.along, i, columns ? down_roots : along_roots, lines);
    }
}

// Each bin becomes weigh(value, image, column, ky) with real and imaginary parts exchanged, ready for the way back.
template <typename Team, typename Weigh>
MEDSORA_HOST_DEVICE void weigh_bins(const Team& team, const SpectralCut& cut, Bin* values, int images,
                                    const Weigh& weigh) {
    const int units = images * cut.bins();
    team.each([&](int thread) {
        for (int unit = thread; unit < units; unit += team.size()) {
            const int line = static_cast<int>(cut.by_columns.quotient(unit)), column = unit - line * cut.columns;
            const int image = static_cast<int>(cut.by_height.quotient(line)), ky = line - image * cut.height;
            Bin& value = values[image * cut.image_values() + ColumnPlaces(cut, column)(ky)];
            value = exchanged(weigh(value, image, column, ky));
        }
    });
}

}  // namespace
}  // namespace medsora
