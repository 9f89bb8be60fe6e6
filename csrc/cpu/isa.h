// Which instruction sets the kernels were compiled for, and which of them this call uses.
#pragma once

#include <string>
#include <vector>

// GCC on x86-64 compiles each vector kernel three times; any other compiler or processor gets the portable form once,
// and so does -DMEDSORA_X86_VARIANTS=0.
#ifndef MEDSORA_X86_VARIANTS
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MEDSORA_X86_VARIANTS 1
#else
#define MEDSORA_X86_VARIANTS 0
#endif
#endif

namespace medsora {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

const char* name_of(Isa isa);

// Ascending; baseline is always there.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

// The best supported one, or the one the environment variable MEDSORA_ISA names.
// Throws std::invalid_argument for an unknown name or one that this processor or build does not have.
Isa isa_in_use();

}  // namespace medsora
