// gather and merge, through the caches, past them and as a GPU's threads do them, against one copy or sum at a time.
#include "../cpu/reorder.h"

#include "../cpu/reorder_in_blocks.h"
#include "../cpu/reorder_steps.h"
#include "check.h"

namespace medsora::check {
namespace {

struct Grid {
    std::int64_t frames, height, width;
    std::int64_t tokens() const { return frames * height * width; }
};

constexpr std::int64_t videos = 2;
constexpr Grid grids[] = {{1, 1, 1}, {3, 4, 5}, {7, 2, 9}, {2, 11, 1}};
constexpr std::int64_t channel_counts[] = {1, 2, 3, 5, 8, 16, 33, 64, 130, 257, 512};
constexpr std::int64_t longest_row = 2700;  // once: longer than what is staged

// Both kinds of stores on any size: the choice between them lies in the public functions, which come first.
constexpr int publicly = -1, cached = 0, past_cache = 1, in_blocks = 2;
constexpr int ways[] = {publicly, cached, past_cache, in_blocks};

template <typename T>
void check_gather(const Setting& setting, const Walk& walk, std::int64_t tokens, std::int64_t channels, int stores,
                  std::int64_t shift, Numbers& numbers) {
    const Path& path = walk.path();
    const std::int64_t gap = 3, pitch = channels + gap, row_bytes = channels * sizeof(T);
    Guarded<T> x(videos * tokens * pitch - gap, shift), y(videos * 2 * tokens * channels, shift);
    fill(x, numbers);
    const std::vector<T> before = x.copy();
    const GridStrides strides{static_cast<std::int64_t>(tokens * pitch * sizeof(T)),
                              static_cast<std::int64_t>(pitch * sizeof(T))};
    if (stores == publicly) {
        gather(x.bytes(), strides, y.bytes(), path, videos, row_bytes, setting.isa, setting.threads);
    } else if (stores == in_blocks) {
        gather_in_blocks_on_cpu(x.bytes(), strides, y.bytes(), path, videos, row_bytes);
    } else {
        const GatherJob job{x.bytes(), strides, y.bytes(), path, row_bytes};
        const std::int64_t steps = videos * tokens, cut = steps / 3;
        gather_steps(stores == past_cache, setting.isa)(job, 0, cut);
        gather_steps(stores == past_cache, setting.isa)(job, cut, steps);
    }
    x.check_guards("x");
    y.check_guards("y");
    expect(before == x.copy(), "x: written to");
    for (std::int64_t row = 0; row < videos * 2 * tokens; ++row) {
        const std::int64_t video = row / (2 * tokens), sequence = row / path.length % path.sequences;
        const std::int64_t step = row % path.length, reverse = row / tokens % 2;
        const std::int64_t token = path.token(sequence, reverse ? path.length - 1 - step : step);
        const bool same = std::equal(y.data() + row * channels, y.data() + (row + 1) * channels,
                                     before.begin() + (video * tokens + token) * pitch);
        expect(same, "y: row ", row, " of ", channels, " channels is not that of token ", token);
    }
}

template <typename T>
T sum(T a, T b) {
    if constexpr (std::is_same_v<T, std::uint16_t>) {
        return bfloat16_near(static_cast<float>(value_of_bfloat16(a)) + static_cast<float>(value_of_bfloat16(b)));
    } else {
        return a + b;
    }
}

template <typename T>
void check_merge(const Setting& setting, const Walk& walk, std::int64_t tokens, std::int64_t channels, int stores,
                 std::int64_t shift, Element element, Numbers& numbers) {
    const Path& path = walk.path();
    // Steps outermost and the directions innermost, with a gap behind each row: nothing lies where a loop would guess.
    const std::int64_t pitch = channels + 1, direction = pitch, video = 2 * pitch, sequence = videos * video;
    const std::int64_t step = path.sequences * sequence;
    Guarded<T> y(path.length * step - 1, shift), x(videos * tokens * channels, shift);
    fill(y, numbers);
    const std::vector<T> before = y.copy();
    const std::int64_t size = sizeof(T);
    const ScanStrides strides{video * size, direction * size, sequence * size, step * size};
    if (stores == publicly) {
        merge(y.bytes(), strides, x.bytes(), path, videos, channels, element, setting.isa, setting.threads);
    } else if (stores == in_blocks) {
        merge_in_blocks_on_cpu(y.bytes(), strides, x.bytes(), path, videos, channels, element);
    } else {
        const MergeJob job{y.bytes(), strides, x.bytes(), path, channels};
        const std::int64_t steps = videos * tokens, cut = steps / 3;
        merge_steps(element, stores == past_cache, setting.isa)(job, 0, cut);
        merge_steps(element, stores == past_cache, setting.isa)(job, cut, steps);
    }
    y.check_guards("y");
    x.check_guards("x");
    expect(before == y.copy(), "y: written to");
    for (std::int64_t i = 0; i < videos * tokens; ++i) {
        const std::int64_t sequence_of = i / path.length % path.sequences, s = i % path.length;
        const T* forward = before.data() + i / tokens * video + sequence_of * sequence + s * step;
        const T* reverse = forward + direction + (path.length - 1 - 2 * s) * step;
        const T* found = x.data() + (i / tokens * tokens + path.token(sequence_of, s)) * channels;
        for (std::int64_t c = 0; c < channels; ++c) {
            expect(found[c] == sum(forward[c], reverse[c]), "x: step ", i, ", channel ", c, " of ", channels);
        }
    }
}

template <typename Check>
void for_each_case(const Check& check) {
    Numbers numbers(7);
    for (const Grid& grid : grids) {
        for (const char* kind = walk_kinds; *kind; ++kind) {
            const Walk walk(*kind, grid.frames, grid.height, grid.width, numbers);
            for (std::int64_t channels : channel_counts) {
                for (int stores : ways) {
                    for (std::int64_t shift : {0, 1}) check(walk, grid.tokens(), channels, stores, shift, numbers);
                }
            }
        }
    }
    const Walk walk('f', 2, 3, 4, numbers);
    for (int stores : ways) check(walk, 24, longest_row, stores, 0, numbers);
}

void gather_all(const Setting& setting) {
    for_each_case([&](const Walk& walk, auto tokens, auto channels, int stores, auto shift, Numbers& numbers) {
        check_gather<float>(setting, walk, tokens, channels, stores, shift, numbers);
        check_gather<std::uint16_t>(setting, walk, tokens, channels, stores, shift, numbers);
    });
}

void merge_all(const Setting& setting) {
    for_each_case([&](const Walk& walk, auto tokens, auto channels, int stores, auto shift, Numbers& numbers) {
        check_merge<float>(setting, walk, tokens, channels, stores, shift, Element::float32, numbers);
        check_merge<std::uint16_t>(setting, walk, tokens, channels, stores, shift, Element::bfloat16, numbers);
        if (channels < 64) {
            check_merge<double>(setting, walk, tokens, channels, stores, shift, Element::float64, numbers);
        }
    });
}

const Registered gather_check("gather", gather_all), merge_check("merge", merge_all);

}  // namespace
}  // namespace medsora::check
