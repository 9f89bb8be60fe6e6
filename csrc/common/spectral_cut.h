// How spectra of images are cut into blocks of threads: sizes, passes, shared memory. Decided before a launch.
//
// Two rows of an image travel as one row of complex numbers. Such pairs of rows are transformed; then the columns of
// the half spectrum are told apart and transformed. Column c of an image keeps its even rows in place c of each pair
// and its odd rows in place width - c, where the mirrored column would be; those of the columns that mirror themselves,
// 0 and width / 2, lie behind the others. So an image is transformed within its own memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "divider.h"
#include "fft_plan.h"
#include "host_device.h"

namespace medsora {

constexpr int most_block_threads = 512;

// What one launch may use.
struct Chip {
    int shared_bytes;  // the most shared memory of a block
    int multiprocessors;
};

// One pass over all lines. Each line takes `units` threads, and `together` lines take their turn at a time.
struct BlockPass {
    int radix;
    int butterflies;  // of a line: its length / radix
    int parts;        // threads that share a butterfly: one, but for radices without a codelet
    int together;
    bool turned;  // whether results are multiplied by roots of unity
    Divider stride, by_together, by_parts;

    int units() const { return butterflies * parts; }
};

struct LinePasses {
    static constexpr int most_passes = 8;
    int length;
    int passes;
    BlockPass pass[most_passes];
};

struct SpectralCut {
    int height, width;
    int pairs;    // of rows
    int columns;  // of the half spectrum
    int stride;   // complex numbers from one pair to the next: odd, so that threads on different pairs meet no bank
    int images;   // most that a block holds at a time
    int threads;
    LinePasses along, down;  // rows, columns
    Divider by_pairs, by_columns, by_height;

    MEDSORA_HOST_DEVICE int image_values() const { return pairs * stride; }
    MEDSORA_HOST_DEVICE int bins() const { return height * columns; }
};

constexpr int dense_outputs_together = 4;  // of a thread, and as many that mirror them

inline bool has_codelet(int radix) { return radix > 1 && radix <= 16 && radix != 11 && radix != 13; }

inline LinePasses passes_of(int length) {
    LinePasses found{};
    found.length = length;
    const auto add = [&](int radix, int stride) {
        const int parts = has_codelet(radix) ? 1 : std::max(1, (radix / 2 + dense_outputs_together - 1) /
                                                                   dense_outputs_together);
        found.pass[found.passes++] = {radix,           length / radix, parts,     1, stride * radix < length,
                                      Divider(stride), Divider(1),     Divider(parts)};
    };
    int stride = 1;
    for (int radix : radices(length)) {
        if (found.passes == LinePasses::most_passes) throw std::invalid_argument("side: has too many factors");
        add(radix, stride);
        stride *= radix;
    }
    return found;
}

// Lets `lines` lines be shared out to `threads` threads. Returns the time that takes: rounds, each with some to spare
// for its barriers; less than 0 if a line takes more threads.
inline std::int64_t share_out_lines(LinePasses& line, int lines, int threads) {
    std::int64_t cost = 0;
    for (int i = 0; i < line.passes; ++i) {
        BlockPass& pass = line.pass[i];
        if (pass.units() > threads) return -1;
        pass.together = std::min(threads / pass.units(), lines);
        pass.by_together = Divider(pass.together);
        cost += static_cast<std::int64_t>((lines + pass.together - 1) / pass.together) * (threads + 32);
    }
    return cost;
}

// For blocks that hold up to `most_images` images, and about `values` complex numbers if more than one.
inline SpectralCut cut_spectrum(int height, int width, std::int64_t most_images, int values) {
    SpectralCut cut{};
    cut.height = height;
    cut.width = width;
    cut.pairs = (height + 1) / 2;
    cut.columns = width / 2 + 1;
    cut.stride = width % 2 == 0 ? width + 3 : width + 2;
    cut.along = passes_of(width);
    cut.down = passes_of(height);
    cut.by_pairs = Divider(cut.pairs);
    cut.by_columns = Divider(cut.columns);
    cut.by_height = Divider(height);
    const std::int64_t most = std::clamp<std::int64_t>(most_images, 1, 32);
    cut.images = static_cast<int>(std::clamp<std::int64_t>(values / cut.image_values(), 1, most));
    std::int64_t least = -1;
    for (int threads = cut.image_values() > 4096 ? 256 : 64; threads <= most_block_threads; threads += 32) {
        const std::int64_t along = share_out_lines(cut.along, cut.images * cut.pairs, threads);
        const std::int64_t down = share_out_lines(cut.down, cut.images * cut.columns, threads);
        if (along >= 0 && down >= 0 && (least < 0 || along + down < least)) {
            least = along + down;
            cut.threads = threads;
        }
    }
    if (least < 0) {
        throw std::invalid_argument("sides: got " + std::to_string(height) + " x " + std::to_string(width) +
                                    ", whose factors take more threads than a block has");
    }
    share_out_lines(cut.along, cut.images * cut.pairs, cut.threads);
    share_out_lines(cut.down, cut.images * cut.columns, cut.threads);
    return cut;
}

}  // namespace medsora
