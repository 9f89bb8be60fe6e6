#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace medsora {
namespace {

bool processor_has(Isa isa) {
#if MEDSORA_X86_VARIANTS
    // Feature by feature: the level names ("x86-64-v4") are known to newer compilers only.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return isa == Isa::baseline || (isa == Isa::avx2 && avx2) || (isa == Isa::avx512 && avx2 && avx512);
#else
    return isa == Isa::baseline;
#endif
}

std::string joined(const std::vector<Isa>& isas) {
    std::string names;
    for (Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
    return names;
}

}  // namespace

const char* name_of(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

std::vector<Isa> compiled_isas() {
#if MEDSORA_X86_VARIANTS
    return {Isa::baseline, Isa::avx2, Isa::avx512};
#else
    return {Isa::baseline};
#endif
}

std::vector<Isa> supported_isas() {
    std::vector<Isa> supported = compiled_isas();
    supported.erase(std::remove_if(supported.begin(), supported.end(), [](Isa isa) { return !processor_has(isa); }),
                    supported.end());
    return supported;
}

Isa isa_in_use() {
    // Probed once; the environment is read at every call, so that a test can walk through all paths in one process.
    static const std::vector<Isa> supported = supported_isas();
    const char* wanted = std::getenv("MEDSORA_ISA");
    if (wanted == nullptr || *wanted == '\0') return supported.back();
    for (Isa isa : supported) {
        if (wanted == std::string(name_of(isa))) return isa;
    }
    throw std::invalid_argument("MEDSORA_ISA: got '" + std::string(wanted) + "', wants one of " + joined(supported) +
                                " on this machine");
}

}  // namespace medsora
