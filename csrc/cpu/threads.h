// How many threads a kernel uses, and what OpenMP this build has.
#pragma once

#include <algorithm>
#include <cstdint>

namespace medsora {

// Waking the pool costs some microseconds: each thread gets at least this many bytes to move, or is not woken.
constexpr std::int64_t bytes_per_thread = 64 * 1024;

inline int threads_for(std::int64_t bytes, int wanted) {
    return static_cast<int>(std::clamp<std::int64_t>(bytes / bytes_per_thread, 1, std::max(wanted, 1)));
}

// The OpenMP date this was compiled with (201511 is 4.5), 0 without OpenMP.
int openmp_version();

// How many threads a parallel region that asks for `wanted` really gets.
int threads_seen(int wanted);

}  // namespace medsora
