// Fourier transforms of any length on any element type: a SIMD vector of numbers on the CPU, one number on a GPU.
//
// transform() runs the passes of a plan from one buffer to another and back (Stockham's form: input and output in
// natural order); transform_from() and transform_into() read or write elsewhere at the first or last pass. Forward
// only, e^(-2 pi i jk / n), not normalised; the inverse is the forward transform of the values with real and imaginary
// parts exchanged. Internal linkage: each instruction set gets its own copy.
#pragma once

#include <cstddef>

#include "fft_plan.h"
#include "host_device.h"

namespace medsora {
namespace {

using Index = std::ptrdiff_t;  // as wide as an address: narrower ones cost an instruction at each access

template <typename T>
struct Complex {
    T re, im;
};

template <typename T>
MEDSORA_HOST_DEVICE Complex<T> operator+(const Complex<T>& a, const Complex<T>& b) {
    return {a.re + b.re, a.im + b.im};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> operator-(const Complex<T>& a, const Complex<T>& b) {
    return {a.re - b.re, a.im - b.im};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> operator*(const Complex<T>& a, const Complex<T>& b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> operator*(const Complex<T>& a, Twiddle w) {
    return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> conj(const Complex<T>& a) {
    return {a.re, -a.im};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> exchanged(const Complex<T>& a) {
    return {a.im, a.re};
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> times_minus_i(const Complex<T>& a) {
    return {a.im, -a.re};
}

constexpr float root_half = 0.70710678118654752f;  // cos(pi / 4)
constexpr float cos_eighth = 0.92387953251128674f, sin_eighth = 0.38268343236508977f;  // of pi / 8

// The codelets below take in(j), which gives input j, and out(j, value), which takes output j. Both are called as late
// and as early as can be, so that few values are held at a time.

template <typename T>
MEDSORA_HOST_DEVICE void dft4(Complex<T>& a, Complex<T>& b, Complex<T>& c, Complex<T>& d) {
    const Complex<T> even = a + c, odd = b + d, even_turned = a - c, odd_turned = times_minus_i(b - d);
    a = even + odd;
    b = even_turned + odd_turned;
    c = even - odd;
    d = even_turned - odd_turned;
}

// a e^(-2 pi i k / 8) and a e^(-2 pi i k / 16).
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> times_eighth(const Complex<T>& a, int k) {
    if (k == 1) return {(a.re + a.im) * root_half, (a.im - a.re) * root_half};
    if (k == 2) return times_minus_i(a);
    if (k == 3) return {(a.im - a.re) * root_half, (a.re + a.im) * -root_half};
    return a;
}
template <typename T>
MEDSORA_HOST_DEVICE Complex<T> times_sixteenth(const Complex<T>& a, int k) {
    if (k == 1) return a * Twiddle{cos_eighth, -sin_eighth};
    if (k == 3) return a * Twiddle{sin_eighth, -cos_eighth};
    if (k == 9) return a * Twiddle{-cos_eighth, sin_eighth};
    return times_eighth(a, k / 2);
}

// An odd length from sums and differences of values that mirror each other: half of the products of a dense transform.
// roots: cos and sin of 2 pi j / R.
template <int R>
struct Dft {
    static_assert(R % 2 == 1, "an even radix has its own form");

    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle* roots) {
        constexpr int half = (R - 1) / 2;
        const Complex<T> first = in(0);
        Complex<T> sum[half], difference[half], total = first;
        MEDSORA_UNROLL
        for (int j = 0; j < half; ++j) {
            const Complex<T> one = in(j + 1), other = in(R - 1 - j);
            sum[j] = one + other;
            difference[j] = one - other;
            total = total + sum[j];
        }
        out(0, total);
        MEDSORA_UNROLL
        for (int k = 1; k <= half; ++k) {
            Complex<T> along = first;
            Complex<T> across{difference[0].re * roots[k].im, difference[0].im * roots[k].im};
            MEDSORA_UNROLL
            for (int j = 0; j < half; ++j) {
                const Twiddle w = roots[(j + 1) * k % R];
                along = {along.re + sum[j].re * w.re, along.im + sum[j].im * w.re};
                if (j > 0) across = {across.re + difference[j].re * w.im, across.im + difference[j].im * w.im};
            }
            out(k, along + times_minus_i(across));
            out(R - k, along - times_minus_i(across));
        }
    }
};

template <>
struct Dft<2> {
    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle*) {
        const Complex<T> one = in(0), other = in(1);
        out(0, one + other);
        out(1, one - other);
    }
};

template <>
struct Dft<4> {
    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle*) {
        Complex<T> a = in(0), b = in(1), c = in(2), d = in(3);
        dft4(a, b, c, d);
        out(0, a), out(1, b), out(2, c), out(3, d);
    }
};

template <>
struct Dft<8> {
    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle*) {
        Complex<T> even[4] = {in(0), in(2), in(4), in(6)};
        dft4(even[0], even[1], even[2], even[3]);
        Complex<T> odd[4] = {in(1), in(3), in(5), in(7)};
        dft4(odd[0], odd[1], odd[2], odd[3]);
        MEDSORA_UNROLL
        for (int k = 0; k < 4; ++k) {
            const Complex<T> turned = times_eighth(odd[k], k);
            out(k, even[k] + turned);
            out(k + 4, even[k] - turned);
        }
    }
};

template <>
struct Dft<16> {
    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle*) {
        Complex<T> a[4][4];
        MEDSORA_UNROLL
        for (int j = 0; j < 4; ++j) {
            Complex<T> one = in(j), two = in(j + 4), three = in(j + 8), four = in(j + 12);
            dft4(one, two, three, four);
            a[0][j] = one;
            a[1][j] = times_sixteenth(two, j);
            a[2][j] = times_sixteenth(three, 2 * j);
            a[3][j] = times_sixteenth(four, 3 * j);
        }
        MEDSORA_UNROLL
        for (int k = 0; k < 4; ++k) {
            dft4(a[k][0], a[k][1], a[k][2], a[k][3]);
            out(k, a[k][0]), out(k + 4, a[k][1]), out(k + 8, a[k][2]), out(k + 12, a[k][3]);
        }
    }
};

// The number below A * B with these remainders.
template <int A, int B>
MEDSORA_HOST_DEVICE constexpr int with_remainders(int of_a, int of_b) {
    int found = of_a;
    while (found % B != of_b) found += A;
    return found;
}

// A product of coprime lengths without twiddles, by the numbering of Good and Thomas. A is odd.
template <int A, int B>
struct CoprimeDft {
    template <typename T, typename In, typename Out>
    static MEDSORA_HOST_DEVICE void run(In in, Out out, const Twiddle* roots) {
        Complex<T> a[A][B];
        MEDSORA_UNROLL
        for (int j = 0; j < B; ++j) {
            Dft<A>::template run<T>([&](int i) { return in((B * i + A * j) % (A * B)); },
                                    [&](int i, const Complex<T>& value) { a[i][j] = value; }, roots);
        }
        MEDSORA_UNROLL
        for (int i = 0; i < A; ++i) {
            Dft<B>::template run<T>(
                [&](int j) { return a[i][j]; },
                [&](int j, const Complex<T>& value) { out(with_remainders<A, B>(i, j), value); }, roots);
        }
    }
};

template <>
struct Dft<6> : CoprimeDft<3, 2> {};
template <>
struct Dft<10> : CoprimeDft<5, 2> {};
template <>
struct Dft<12> : CoprimeDft<3, 4> {};

// A pass reads its inputs by in(index) and hands out its results by out(index, value), index from 0 to n - 1; what
// in.from(index) and out.from(index) give counts from there.
template <int R, bool turned, typename T, typename In, typename Out>
MEDSORA_HOST_DEVICE void butterfly(const In& in, Index from, Index from_step, const Out& out, Index to, Index to_step,
                                   const Twiddle* twiddles, const Twiddle* roots) {
    const auto from_here = in.from(from);
    const auto to_here = out.from(to);
    Dft<R>::template run<T>([=](int j) { return from_here(j * from_step); },
                            [=](int j, const Complex<T>& value) {
                                to_here(j * to_step, turned && j > 0 ? value * twiddles[j - 1] : value);
                            },
                            roots);
}

template <int R, typename T, typename In, typename Out>
MEDSORA_HOST_DEVICE_CALL void run_pass(const FftPass& pass, const Twiddle* table, const In& in, const Out& out) {
    const Index stride = pass.stride, step = stride * pass.count;
    const Twiddle *twiddles = table + pass.twiddles, *roots = table + pass.roots;
    for (Index q = 0; q < stride; ++q) butterfly<R, false, T>(in, q, step, out, q, stride, twiddles, roots);
    for (Index p = 1; p < pass.count; ++p) {
        twiddles += R - 1;
        for (Index q = 0; q < stride; ++q) {
            butterfly<R, true, T>(in, stride * p + q, step, out, stride * R * p + q, stride, twiddles, roots);
        }
    }
}

// Outputs k, k + 1, ... of one odd dense transform and those that mirror them, `together` at a time.
// roots[j]: cos and sin of 2 pi j / radix.
template <int together, typename T, typename In, typename Out, typename Roots>
MEDSORA_HOST_DEVICE void dense_outputs(int radix, int k, const In& in, const Out& out, const Roots& roots) {
    const Complex<T> first = in(0);
    Complex<T> along[together], across[together];
    int index[together];
    MEDSORA_UNROLL
    for (int i = 0; i < together; ++i) {
        along[i] = first;
        across[i] = Complex<T>{};
        index[i] = 0;
    }
    for (int j = 1; 2 * j < radix; ++j) {
        const Complex<T> one = in(j), other = in(radix - j);
        const Complex<T> sum = one + other, difference = one - other;
        MEDSORA_UNROLL
        for (int i = 0; i < together; ++i) {
            index[i] += k + i;
            index[i] -= index[i] >= radix ? radix : 0;
            const Twiddle w = roots[index[i]];
            along[i] = {along[i].re + sum.re * w.re, along[i].im + sum.im * w.re};
            across[i] = {across[i].re + difference.re * w.im, across[i].im + difference.im * w.im};
        }
    }
    MEDSORA_UNROLL
    for (int i = 0; i < together; ++i) {
        if (2 * (k + i) < radix) {
            out(k + i, along[i] + times_minus_i(across[i]));
            out(radix - k - i, along[i] - times_minus_i(across[i]));
        }
    }
}

// Any odd radix: a dense transform, for the primes that have no codelet.
template <typename T, typename In, typename Out>
MEDSORA_HOST_DEVICE_CALL void run_dense_pass(const FftPass& pass, const Twiddle* table, const In& in, const Out& out) {
    const int radix = pass.radix, stride = pass.stride, step = stride * pass.count;
    for (int i = 0; i < step; ++i) {
        const int p = i / stride, to = stride * radix * p + i % stride;
        const Twiddle* const twiddles = table + pass.twiddles + p * (radix - 1);
        const auto from_step = [&](int j) { return in(i + j * step); };
        const auto turned = [&](int j, const Complex<T>& value) { out(to + j * stride, value * twiddles[j - 1]); };
        Complex<T> total = in(i);
        for (int j = 1; j < radix; ++j) total = total + from_step(j);
        out(to, total);
        for (int k = 1; 2 * k < radix; k += 4) {
            dense_outputs<4, T>(radix, k, from_step, turned, table + pass.roots);
        }
    }
}

template <typename T, typename In, typename Out>
MEDSORA_HOST_DEVICE_CALL void run_any_pass(const FftPlan& plan, int i, const In& in, const Out& out) {
    const FftPass& pass = plan.pass[i];
    switch (pass.radix) {
        case 2: return run_pass<2, T>(pass, plan.table, in, out);
        case 3: return run_pass<3, T>(pass, plan.table, in, out);
        case 4: return run_pass<4, T>(pass, plan.table, in, out);
        case 5: return run_pass<5, T>(pass, plan.table, in, out);
        case 6: return run_pass<6, T>(pass, plan.table, in, out);
        case 7: return run_pass<7, T>(pass, plan.table, in, out);
        case 8: return run_pass<8, T>(pass, plan.table, in, out);
        case 10: return run_pass<10, T>(pass, plan.table, in, out);
        case 12: return run_pass<12, T>(pass, plan.table, in, out);
        case 16: return run_pass<16, T>(pass, plan.table, in, out);
        default: return run_dense_pass<T>(pass, plan.table, in, out);
    }
}

template <typename T>
struct FromBuffer {
    const Complex<T>* data;
    MEDSORA_HOST_DEVICE Complex<T> operator()(Index index) const { return data[index]; }
    MEDSORA_HOST_DEVICE FromBuffer from(Index index) const { return {data + index}; }
};
template <typename T>
struct ToBuffer {
    Complex<T>* data;
    MEDSORA_HOST_DEVICE void operator()(Index index, const Complex<T>& value) const { data[index] = value; }
    MEDSORA_HOST_DEVICE ToBuffer from(Index index) const { return {data + index}; }
};

// Passes first .. last - 1 on values in `data`, with as many places in `spare`. Returns which of the two holds the
// result: `data` after an even number of passes, `spare` after an odd one.
template <typename T>
MEDSORA_HOST_DEVICE_CALL Complex<T>* run_passes(const FftPlan& plan, int first, int last, Complex<T>* data,
                                                Complex<T>* spare) {
    for (int i = first; i < last; ++i) {
        run_any_pass<T>(plan, i, FromBuffer<T>{data}, ToBuffer<T>{spare});
        Complex<T>* const other = data;
        data = spare;
        spare = other;
    }
    return data;
}

// Transforms plan.n values in `data`; returns where the result is, as run_passes does.
template <typename T>
MEDSORA_HOST_DEVICE Complex<T>* transform(const FftPlan& plan, Complex<T>* data, Complex<T>* spare) {
    return run_passes(plan, 0, plan.passes, data, spare);
}

// The same for values that in(index) gives: the first pass reads them where they are.
template <typename T, typename In>
MEDSORA_HOST_DEVICE Complex<T>* transform_from(const FftPlan& plan, const In& in, Complex<T>* data, Complex<T>* spare) {
    if (plan.passes == 0) {
        data[0] = in(0);
        return data;
    }
    run_any_pass<T>(plan, 0, in, ToBuffer<T>{data});
    return run_passes(plan, 1, plan.passes, data, spare);
}

// The same with results that out(index, value) takes from the last pass.
template <typename T, typename Out>
MEDSORA_HOST_DEVICE void transform_into(const FftPlan& plan, Complex<T>* data, Complex<T>* spare, const Out& out) {
    if (plan.passes == 0) return out(0, data[0]);
    const Complex<T>* const found = run_passes(plan, 0, plan.passes - 1, data, spare);
    run_any_pass<T>(plan, plan.passes - 1, FromBuffer<T>{found}, out);
}

}  // namespace
}  // namespace medsora
