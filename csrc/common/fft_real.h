// Half spectra of real sequences by complex transforms of half the length.
//
// 2 m real numbers x are taken as the m complex numbers x[2j] + i x[2j + 1]. Of their spectrum X[0 .. m] the first and
// the last value are real numbers when x is, and in a two-dimensional transform spectra of real rows: they travel
// together as X[0] + i X[m] in place 0. Values are doubled on the way; the factor belongs to whoever normalises.
#pragma once

#include "fft.h"

namespace medsora {
namespace {

// The transform `from` of m pairs becomes twice the half spectrum of the 2 m numbers; `to` may be the same place.
// turns: from plan_split(2 m).
template <typename T>
MEDSORA_HOST_DEVICE void split_pairs(const Complex<T>* from, Complex<T>* to, int m, const Twiddle* turns) {
    const Complex<T> first = from[0];
    to[0] = {(first.re + first.im) * 2.0f, (first.re - first.im) * 2.0f};
    for (int k = 1; 2 * k <= m; ++k) {
        const Complex<T> one = from[k], other = conj(from[m - k]);
        const Complex<T> even = one + other, odd = (one - other) * turns[k];
        to[m - k] = conj(even - odd);
        to[k] = even + odd;
    }
}

// Back: a half spectrum becomes what a forward transform turns into m pairs, twice as large, with the numbers of each
// pair exchanged, and m times over as inverse transforms are.
template <typename T>
MEDSORA_HOST_DEVICE void join_pairs(const Complex<T>* from, Complex<T>* to, int m, const Twiddle* turns) {
    const Complex<T> first = from[0];
    to[0] = {first.re - first.im, first.re + first.im};
    for (int k = 1; 2 * k <= m; ++k) {
        const Complex<T> one = from[k], other = conj(from[m - k]);
        const Complex<T> even = one + other, odd = (one - other) * Twiddle{turns[k].re, -turns[k].im};
        to[m - k] = exchanged(conj(even - odd));
        to[k] = exchanged(even + odd);
    }
}

// The same for an odd number n of real values, whose half spectrum X[0 .. (n - 1) / 2] is written out in full.
template <typename T>
MEDSORA_HOST_DEVICE void unfold(const Complex<T>* from, Complex<T>* to, int n) {
    to[0] = exchanged(from[0]);
    for (int k = 1; 2 * k < n; ++k) {
        to[n - k] = exchanged(conj(from[k]));
        to[k] = exchanged(from[k]);
    }
}

}  // namespace
}  // namespace medsora
