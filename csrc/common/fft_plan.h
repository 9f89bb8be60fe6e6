// How a Fourier transform of n points is cut into passes, and the tables its passes read.
//
// Built once a length, in double; the kernels in fft.h read it. A pass of radix r turns n = r * count * stride values.
#pragma once

#include <cmath>
#include <vector>

namespace medsora {

struct Twiddle {
    float re, im;
};

struct FftPass {
    int radix;
    int count;     // butterflies that differ in their twiddles
    int stride;    // butterflies that share them, side by side
    int twiddles;  // where in the table (count) rows of radix - 1 begin
    int roots;     // where the radix roots of unity begin, for odd radices
};

struct FftPlan {
    static constexpr int most_passes = 16;
    int n;
    int passes;
    FftPass pass[most_passes];
    const Twiddle* table;
};

// cos and sin of 2 pi k / n, from the first octant, where both are exact to the last place.
inline Twiddle turn(long long k, long long n) {
    k %= n;
    const long long octant = 8 * k / n;
    const double pi = 3.14159265358979323846;
    const long long quarter = (octant + 1) / 2;  // the nearest axis
    const double angle = 2 * pi * static_cast<double>(4 * k - quarter * n) / static_cast<double>(4 * n);
    const double c = std::cos(angle), s = std::sin(angle);
    const double re = quarter % 4 == 0 ? c : quarter % 4 == 1 ? -s : quarter % 4 == 2 ? -c : s;
    const double im = quarter % 4 == 0 ? s : quarter % 4 == 1 ? c : quarter % 4 == 2 ? -s : -c;
    return {static_cast<float>(re), static_cast<float>(im)};
}

// The radices of n in the order of the passes: powers of two together in as few passes as radix 16 allows and as even
// as they come, then the odd primes.
inline std::vector<int> radices(int n) {
    std::vector<int> found;
    int twos = 0;
    for (; n % 2 == 0; n /= 2) ++twos;
    for (int prime = 3; n > 1; prime += 2) {
        for (; n % prime == 0; n /= prime) found.push_back(prime);
        if (prime * prime > n && n > 1) {
            found.push_back(n);
            break;
        }
    }
    for (int left = (twos + 3) / 4; left > 0; --left) {
        const int bits = twos / left;
        found.push_back(1 << bits);
        twos -= bits;
    }
    return found;
}

inline int largest_radix(int n) {
    int largest = 1;
    for (int radix : radices(n)) largest = radix > largest ? radix : largest;
    return largest;
}

// Appends the tables of a transform of n points; plan.table must be set once `tables` no longer grows, to its start.
inline FftPlan plan_fft(int n, std::vector<Twiddle>& tables) {
    FftPlan plan{};
    plan.n = n;
    int left = n, stride = 1;
    for (int radix : radices(n)) {
        FftPass& pass = plan.pass[plan.passes++];
        pass = {radix, left / radix, stride, static_cast<int>(tables.size()), 0};
        for (int p = 0; p < pass.count; ++p) {
            for (int j = 1; j < radix; ++j) {
                const Twiddle w = turn(static_cast<long long>(p) * j, left);
                tables.push_back({w.re, -w.im});
            }
        }
        pass.roots = static_cast<int>(tables.size());
        if (radix % 2 != 0) {
            for (int j = 0; j < radix; ++j) tables.push_back(turn(j, radix));
        }
        left /= radix;
        stride *= radix;
    }
    return plan;
}

// -i e^(-2 pi i k / n) for k < n / 2: what splits a transform of pairs of real numbers into theirs; see real_fft.h.
inline int plan_split(int n, std::vector<Twiddle>& tables) {
    const int start = static_cast<int>(tables.size());
    for (int k = 0; k < n / 2; ++k) {
        const Twiddle w = turn(k, n);
        tables.push_back({-w.im, -w.re});
    }
    return start;
}

}  // namespace medsora
