// Fourier transforms of any length on any element type: a SIMD vector of numbers on the CPU, one number on a GPU.
//
// transform() runs the passes of a plan from one buffer to another and back (Stockham's form: input and output in
// natural order). Forward only, e^(-2 pi i jk / n), not normalised; the inverse is the forward transform of the values
// with real and imaginary parts exchanged. Internal linkage: each instruction set gets its own copy.
#pragma once

#include "fft_plan.h"

#ifndef MEDSORA_HOST_DEVICE
#if defined(__CUDACC__)
#define MEDSORA_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MEDSORA_HOST_DEVICE inline __attribute__((always_inline))
#else
#define MEDSORA_HOST_DEVICE inline
#endif
#endif
#if defined(__CUDACC__) || defined(__clang__)
#define MEDSORA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define MEDSORA_UNROLL _Pragma("GCC unroll 16")
#else
#define MEDSORA_UNROLL
#endif
#if defined(__CUDACC__)
#define MEDSORA_HOST_DEVICE_CALL __host__ __device__
#else
#define MEDSORA_HOST_DEVICE_CALL
#endif

namespace medsora {
namespace {

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

template <typename T>
MEDSORA_HOST_DEVICE void dft4(Complex<T>& a, Complex<T>& b, Complex<T>& c, Complex<T>& d) {
    const Complex<T> even = a + c, odd = b + d, even_turned = a - c, odd_turned = times_minus_i(b - d);
    a = even + odd;
    b = even_turned + odd_turned;
    c = even - odd;
    d = even_turned - odd_turned;
}

// An odd length from sums and differences of values that mirror each other: half of the products of a dense transform.
// roots: cos and sin of 2 pi j / R.
template <int R, typename T>
MEDSORA_HOST_DEVICE void dft_odd(Complex<T>* a, const Twiddle* roots) {
    constexpr int half = (R - 1) / 2;
    Complex<T> sum[half], difference[half], total = a[0];
    MEDSORA_UNROLL
    for (int j = 0; j < half; ++j) {
        sum[j] = a[j + 1] + a[R - 1 - j];
        difference[j] = a[j + 1] - a[R - 1 - j];
        total = total + sum[j];
    }
    MEDSORA_UNROLL
    for (int k = 1; k <= half; ++k) {
        const Twiddle first = roots[k];
        Complex<T> along{a[0].re + sum[0].re * first.re, a[0].im + sum[0].im * first.re};
        Complex<T> across{difference[0].re * first.im, difference[0].im * first.im};
        MEDSORA_UNROLL
        for (int j = 1; j < half; ++j) {
            const Twiddle w = roots[(j + 1) * k % R];
            along.re = along.re + sum[j].re * w.re;
            along.im = along.im + sum[j].im * w.re;
            across.re = across.re + difference[j].re * w.im;
            across.im = across.im + difference[j].im * w.im;
        }
        a[k] = along + times_minus_i(across);
        a[R - k] = along - times_minus_i(across);
    }
    a[0] = total;
}

template <int R>
struct Dft {
    template <typename T>
    static MEDSORA_HOST_DEVICE void run(Complex<T>* a, const Twiddle* roots) {
        static_assert(R % 2 == 1, "an even radix has its own form");
        dft_odd<R>(a, roots);
    }
};

template <>
struct Dft<2> {
    template <typename T>
    static MEDSORA_HOST_DEVICE void run(Complex<T>* a, const Twiddle*) {
        const Complex<T> sum = a[0] + a[1];
        a[1] = a[0] - a[1];
        a[0] = sum;
    }
};

template <>
struct Dft<4> {
    template <typename T>
    static MEDSORA_HOST_DEVICE void run(Complex<T>* a, const Twiddle*) {
        dft4(a[0], a[1], a[2], a[3]);
    }
};

template <>
struct Dft<8> {
    template <typename T>
    static MEDSORA_HOST_DEVICE void run(Complex<T>* a, const Twiddle*) {
        dft4(a[0], a[2], a[4], a[6]);
        dft4(a[1], a[3], a[5], a[7]);
        const Complex<T> one{(a[3].re + a[3].im) * root_half, (a[3].im - a[3].re) * root_half};
        const Complex<T> two = times_minus_i(a[5]);
        const Complex<T> three{(a[7].im - a[7].re) * root_half, (a[7].re + a[7].im) * -root_half};
        const Complex<T> zero = a[1], e0 = a[0], e1 = a[2], e2 = a[4], e3 = a[6];
        a[0] = e0 + zero, a[4] = e0 - zero;
        a[1] = e1 + one, a[5] = e1 - one;
        a[2] = e2 + two, a[6] = e2 - two;
        a[3] = e3 + three, a[7] = e3 - three;
    }
};

template <>
struct Dft<16> {
    template <typename T>
    static MEDSORA_HOST_DEVICE void run(Complex<T>* a, const Twiddle*) {
        constexpr float c = cos_eighth, s = sin_eighth, h = root_half;
        MEDSORA_UNROLL
        for (int j = 0; j < 4; ++j) dft4(a[j], a[j + 4], a[j + 8], a[j + 12]);
        a[5] = a[5] * Twiddle{c, -s};
        a[6] = {(a[6].re + a[6].im) * h, (a[6].im - a[6].re) * h};
        a[7] = a[7] * Twiddle{s, -c};
        a[9] = {(a[9].re + a[9].im) * h, (a[9].im - a[9].re) * h};
        a[10] = times_minus_i(a[10]);
        a[11] = {(a[11].im - a[11].re) * h, (a[11].re + a[11].im) * -h};
        a[13] = a[13] * Twiddle{s, -c};
        a[14] = {(a[14].im - a[14].re) * h, (a[14].re + a[14].im) * -h};
        a[15] = a[15] * Twiddle{-c, s};
        MEDSORA_UNROLL
        for (int k = 0; k < 4; ++k) dft4(a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3]);
        MEDSORA_UNROLL
        for (int row = 0; row < 4; ++row) {  // output k + 4 l stands at 4 k + l
            MEDSORA_UNROLL
            for (int column = row + 1; column < 4; ++column) {
                const Complex<T> other = a[4 * row + column];
                a[4 * row + column] = a[4 * column + row];
                a[4 * column + row] = other;
            }
        }
    }
};

template <int R, bool turned, typename T>
MEDSORA_HOST_DEVICE void butterfly(const Complex<T>* from, int from_step, Complex<T>* to, int to_step,
                                   const Twiddle* twiddles, const Twiddle* roots) {
    Complex<T> a[R];
    MEDSORA_UNROLL
    for (int j = 0; j < R; ++j) a[j] = from[j * from_step];
    Dft<R>::run(a, roots);
    to[0] = a[0];
    MEDSORA_UNROLL
    for (int j = 1; j < R; ++j) to[j * to_step] = turned ? a[j] * twiddles[j - 1] : a[j];
}

template <int R, typename T>
MEDSORA_HOST_DEVICE_CALL void run_pass(const FftPass& pass, const Twiddle* table, const Complex<T>* from,
                                       Complex<T>* to) {
    const int stride = pass.stride, step = stride * pass.count;
    const Twiddle *twiddles = table + pass.twiddles, *roots = table + pass.roots;
    for (int q = 0; q < stride; ++q) butterfly<R, false>(from + q, step, to + q, stride, twiddles, roots);
    for (int p = 1; p < pass.count; ++p) {
        twiddles += R - 1;
        for (int q = 0; q < stride; ++q) {
            butterfly<R, true>(from + stride * p + q, step, to + stride * R * p + q, stride, twiddles, roots);
        }
    }
}

// Outputs k, k + 1, ... of one odd dense transform and those that mirror them, `together` at a time.
template <int together, typename T>
MEDSORA_HOST_DEVICE void dense_outputs(int radix, int k, const Complex<T>* from, int from_step, Complex<T>* to,
                                       int to_step, const Twiddle* twiddles, const Twiddle* roots) {
    Complex<T> along[together], across[together];
    int index[together];
    MEDSORA_UNROLL
    for (int i = 0; i < together; ++i) {
        along[i] = from[0];
        across[i] = from[0] - from[0];
        index[i] = 0;
    }
    for (int j = 1; 2 * j < radix; ++j) {
        const Complex<T> one = from[j * from_step], other = from[(radix - j) * from_step];
        const Complex<T> sum = one + other, difference = one - other;
        MEDSORA_UNROLL
        for (int i = 0; i < together; ++i) {
            index[i] += k + i;
            index[i] -= index[i] >= radix ? radix : 0;
            const Twiddle w = roots[index[i]];
            along[i].re = along[i].re + sum.re * w.re;
            along[i].im = along[i].im + sum.im * w.re;
            across[i].re = across[i].re + difference.re * w.im;
            across[i].im = across[i].im + difference.im * w.im;
        }
    }
    MEDSORA_UNROLL
    for (int i = 0; i < together; ++i) {
        const int output = k + i, mirrored = radix - output;
        if (2 * output < radix) {
            to[output * to_step] = (along[i] + times_minus_i(across[i])) * twiddles[output - 1];
            to[mirrored * to_step] = (along[i] - times_minus_i(across[i])) * twiddles[mirrored - 1];
        }
    }
}

// Any odd radix: a dense transform, for the primes that have no codelet.
template <typename T>
MEDSORA_HOST_DEVICE_CALL void run_dense_pass(const FftPass& pass, const Twiddle* table, const Complex<T>* from,
                                             Complex<T>* to) {
    const int radix = pass.radix, stride = pass.stride, step = stride * pass.count;
    for (int i = 0; i < pass.count * stride; ++i) {
        const int p = i / stride, q = i % stride;
        const Complex<T>* in = from + i;
        Complex<T>* out = to + stride * radix * p + q;
        const Twiddle* twiddles = table + pass.twiddles + p * (radix - 1);
        Complex<T> total = in[0];
        for (int j = 1; j < radix; ++j) total = total + in[j * step];
        out[0] = total;
        for (int k = 1; 2 * k < radix; k += 4) {
            dense_outputs<4>(radix, k, in, step, out, stride, twiddles, table + pass.roots);
        }
    }
}

// Transforms plan.n values in `data`, with as many in `spare` to work in. Returns which of the two holds the result:
// `data` after an even number of passes, `spare` after an odd one.
template <typename T>
MEDSORA_HOST_DEVICE_CALL Complex<T>* transform(const FftPlan& plan, Complex<T>* data, Complex<T>* spare) {
    for (int i = 0; i < plan.passes; ++i) {
        const FftPass& pass = plan.pass[i];
        switch (pass.radix) {
            case 2: run_pass<2>(pass, plan.table, data, spare); break;
            case 3: run_pass<3>(pass, plan.table, data, spare); break;
            case 4: run_pass<4>(pass, plan.table, data, spare); break;
            case 5: run_pass<5>(pass, plan.table, data, spare); break;
            case 7: run_pass<7>(pass, plan.table, data, spare); break;
            case 8: run_pass<8>(pass, plan.table, data, spare); break;
            case 16: run_pass<16>(pass, plan.table, data, spare); break;
            default: run_dense_pass(pass, plan.table, data, spare);
        }
        Complex<T>* const other = data;
        data = spare;
        spare = other;
    }
    return data;
}

}  // namespace
}  // namespace medsora
