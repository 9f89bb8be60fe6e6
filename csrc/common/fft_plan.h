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
    int roots;     // where the roots of unity begin, as many as the odd factor of the radix; none if that is 1
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

// The odd primes of n, ascending.
inline std::vector<int> odd_primes(int n) {
    std::vector<int> found;
    while (n % 2 == 0) n /= 2;
    for (int prime = 3; n > 1; prime += 2) {
        if (prime * prime > n) prime = n;
        for (; n % prime == 0; n /= prime) found.push_back(prime);
    }
    return found;
}

// The radices of n in the order of the passes: odd primes, then powers of two in as few passes as radix 16 allows and
// as even as they come. Where 2 or 4 would be left for a pass of its own, it goes with a 3 or 5 as radix 6, 10 or 12.
inline std::vector<int> radices(int n) {
    std::vector<int> found = odd_primes(n);
    int twos = 0;
    for (; n % 2 == 0; n /= 2) ++twos;
    const int left_over = twos % 4;
    for (int& radix : found) {
        if ((left_over == 1 && radix <= 5) || (left_over == 2 && radix == 3)) {
            radix <<= left_over;
            twos -= left_over;
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
        int odd = radix;
        while (odd % 2 == 0) odd /= 2;
        for (int j = 0; odd > 1 && j < odd; ++j) tables.push_back(turn(j, odd));
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
