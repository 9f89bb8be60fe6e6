// bfloat16 and float16 as bit patterns: to float exactly, back with round-to-nearest-even.
//
// Branch-free selects on plain integers, so that loops over them vectorise on any instruction set. Internal linkage:
// each translation unit gets copies for its own instruction set, which the linker must never exchange. GPUs have
// instructions for this.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace medsora {
namespace {

MEDSORA_HOST_DEVICE_CALL inline float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

MEDSORA_HOST_DEVICE_CALL inline std::uint32_t bits_of_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

MEDSORA_HOST_DEVICE_CALL inline float float_of_bfloat16(std::uint16_t half) {
    return float_of_bits(std::uint32_t{half} << 16);
}

MEDSORA_HOST_DEVICE_CALL inline std::uint16_t bfloat16_of_float(float value) {
#if defined(__CUDA_ARCH__)
    std::uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const std::uint32_t bits = bits_of_float(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded);
#endif
}

MEDSORA_HOST_DEVICE_CALL inline float float_of_float16(std::uint16_t half) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    const std::uint32_t magnitude = (std::uint32_t{half} & 0x7fffu) << 13;
    const std::uint32_t exponent = magnitude & 0x0f800000u;
    const std::uint32_t normal = magnitude + (112u << 23);
    const std::uint32_t infinite = magnitude + (224u << 23);
    // A subnormal is an integer multiple of 2^-24: borrow the exponent of 2^-14 and take 2^-14 away again.
    const std::uint32_t subnormal = bits_of_float(float_of_bits(magnitude + (113u << 23)) - float_of_bits(113u << 23));
    const std::uint32_t bits = exponent == 0 ? subnormal : (exponent == 0x0f800000u ? infinite : normal);
    return float_of_bits(bits | ((std::uint32_t{half} & 0x8000u) << 16));
#endif
}

MEDSORA_HOST_DEVICE_CALL inline std::uint16_t float16_of_float(float value) {
#if defined(__CUDA_ARCH__)
    std::uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    const std::uint32_t bits = bits_of_float(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 lets the hardware round to a multiple of 2^-24, the step of float16 subnormals.
    const std::uint32_t subnormal = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
    const std::uint32_t huge = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t half = magnitude < (113u << 23) ? subnormal : (magnitude >= (143u << 23) ? huge : normal);
    return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u));
#endif
}

}  // namespace
}  // namespace medsora
