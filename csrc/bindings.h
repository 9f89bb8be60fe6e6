// What the files of bindings share: how tensors and streams come out of Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

#include "common/element.h"
#ifdef MEDSORA_CUDA
#include "cuda/stream.h"
#endif

namespace medsora {

using Address = std::uintptr_t;

inline Element element_named(std::string_view dtype) {
    if (dtype == "float32") return Element::float32;
    if (dtype == "float64") return Element::float64;
    if (dtype == "bfloat16") return Element::bfloat16;
    if (dtype == "float16") return Element::float16;
    throw std::invalid_argument("dtype: got " + std::string(dtype) + ", wants float32, float64, bfloat16 or float16");
}

#ifdef MEDSORA_CUDA
using StreamTuple = std::tuple<int, Address>;  // the number of a device, a stream of it

inline cuda::Stream stream_at(const StreamTuple& stream) {
    return {std::get<0>(stream), reinterpret_cast<void*>(std::get<1>(stream))};
}

#endif

}  // namespace medsora

// Adds the frequency operators.
void def_spectral(pybind11::module_& module);
