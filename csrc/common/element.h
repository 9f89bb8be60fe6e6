// The types tensors are stored in.
#pragma once

#include <cstdint>

namespace medsora {

enum class Element { float32, float64, bfloat16, float16 };

inline std::int64_t size_of(Element element) {
    return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

}  // namespace medsora
