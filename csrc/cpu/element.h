// The types tensors are stored in.
#pragma once

namespace medsora {

enum class Element { float32, float64, bfloat16, float16 };

}  // namespace medsora
