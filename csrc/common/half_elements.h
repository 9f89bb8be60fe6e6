// Elements of tensors as types of their own, each with its way to a float and back.
#pragma once

#include <cstdint>

#include "half.h"

namespace medsora {
namespace {

struct Float16 {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// Any type of element, as the float it is and from the nearest one.
MEDSORA_HOST_DEVICE_CALL inline float float_of(float value) { return value; }
MEDSORA_HOST_DEVICE_CALL inline float float_of(Float16 value) { return float_of_float16(value.bits); }
MEDSORA_HOST_DEVICE_CALL inline float float_of(BFloat16 value) { return float_of_bfloat16(value.bits); }
MEDSORA_HOST_DEVICE_CALL inline void set_to(float& to, float value) { to = value; }
MEDSORA_HOST_DEVICE_CALL inline void set_to(Float16& to, float value) { to = {float16_of_float(value)}; }
MEDSORA_HOST_DEVICE_CALL inline void set_to(BFloat16& to, float value) { to = {bfloat16_of_float(value)}; }

}  // namespace
}  // namespace medsora
