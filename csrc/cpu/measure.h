// What this machine can do at most: multiply-adds, exponentials, bytes copied. Benchmarks hold operators against it.
#pragma once

#include <cstdint>

#include "isa.h"

namespace medsora {

// Inner loops of the measurements, one version an instruction set.
struct LimitKernels {
    // Runs independent chains of `steps` vector multiply-adds; the result keeps the compiler from dropping them.
    float (*multiply_add)(std::int64_t steps);
    std::int64_t operations_per_step;
    void (*exponentials)(const float* from, float* to, std::int64_t count);
    // Copies past the caches. Both addresses and the count are multiples of 64 bytes; null where there is no such store.
    void (*stream)(const float* from, float* to, std::int64_t count);
};

LimitKernels limit_kernels_baseline();
#if MEDSORA_X86_VARIANTS
LimitKernels limit_kernels_avx2();
LimitKernels limit_kernels_avx512();
#endif

// Each measures for about `seconds` on `threads` threads and returns the best rate of many short bursts, per second.
double measure_fma(double seconds, Isa isa, int threads);   // float32 operations, a multiply-add counting as two
double measure_exp(double seconds, Isa isa, int threads);   // float32 exponentials, operands in the first-level cache
double measure_copy(double seconds, Isa isa, int threads);  // bytes read plus bytes written, far larger than any cache

}  // namespace medsora
