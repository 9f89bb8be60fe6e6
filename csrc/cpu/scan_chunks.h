// How a long sequence is cut into chunks, and how many of the states between them are kept on the way back.
#pragma once

#include <algorithm>
#include <cstdint>

namespace medsora {

constexpr std::int64_t longest_tile = 256;  // beyond, the state is cheaper than the quadratic form
constexpr std::int64_t usual_chunk = 96;
constexpr std::int64_t states_bytes = 24 << 20;  // all states of a sequence are kept, if so many bytes hold them

// Steps of each chunk but the last, which may have fewer.
inline int chunk_steps(std::int64_t length) {
    const std::int64_t chunks = length <= longest_tile ? 1 : (length + usual_chunk - 1) / usual_chunk;
    return static_cast<int>((length + chunks - 1) / chunks);
}

// Every state if they are few; else about the root of their number on a first walk, and as many again between two.
inline int chunks_between_states(std::int64_t chunks, std::int64_t state_floats) {
    if (chunks * state_floats * 4 <= states_bytes) return static_cast<int>(std::max<std::int64_t>(chunks, 1));
    std::int64_t root = 1;
    while (root * root < chunks) ++root;
    return static_cast<int>(root);
}

}  // namespace medsora
