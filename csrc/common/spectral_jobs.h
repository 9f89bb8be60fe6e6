// From images and a chip to jobs for the blocks of csrc/common/{spectral,focal}_blocks.h: for the GPU, and for the CPU
// that stands in for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "focal_blocks.h"
#include "reorder_blocks.h"
#include "spectral_blocks.h"

namespace medsora {

// As the caller has them; strides in bytes.
struct ImageTensor {
    char* base;
    std::int64_t sizes[3], strides[3];  // of the leading dimensions
    std::int64_t row;
    std::int64_t count() const { return sizes[0] * sizes[1] * sizes[2]; }
};

struct FilterCall {
    int height, width;
    Element element;
    ImageTensor x, grad, out;  // of one count; the first dimension are the channels
    const float* weight;
    bool wide;
    float* scratch;  // for gradients, as large as FilterScratch says
    Chip chip;
};

struct FocalCallInBlocks {
    int height, width;
    Element element;
    ImageTensor pred, target, out;
    float alpha;
    bool logarithm;
    double* largest;  // of each block, or null
    double* found;
    const void* grad;
    Element grad_element;
    double scale;
    Chip chip;
};

namespace {

constexpr int filter_values = 2048, gradient_values = 1024;  // of a block that holds several images; not measured

inline void within(const char* what, std::int64_t value, std::int64_t most) {
    if (value > most) {
        throw std::invalid_argument(std::string(what) + ": got " + std::to_string(value) + ", wants at most " +
                                    std::to_string(most));
    }
}

inline void fits(std::int64_t bytes, const SpectralCut& cut, const Chip& chip) {
    if (bytes > chip.shared_bytes) {
        throw std::invalid_argument("sides: " + std::to_string(cut.height) + " x " + std::to_string(cut.width) +
                                    " take " + std::to_string(bytes) + " bytes of shared memory, the chip has " +
                                    std::to_string(chip.shared_bytes) + " for a block");
    }
}

inline BlockImages in_blocks(const ImageTensor& images) {
    within("images", images.count(), (std::int64_t{1} << 31) - 1);
    const auto divider = [](std::int64_t n) { return Divider(std::max<std::int64_t>(n, 1)); };
    return {images.base,
            {images.strides[0], images.strides[1], images.strides[2]},
            divider(images.sizes[1]),
            divider(images.sizes[2]),
            images.row};
}

// Two, if all addresses allow it, or one.
inline int common_piece(Element element, int width, std::initializer_list<const ImageTensor*> all) {
    std::int64_t bytes = 16;
    for (const ImageTensor* one : all) {
        if (one->base == nullptr) continue;
        bytes = std::min<std::int64_t>(bytes, common_width({reinterpret_cast<std::intptr_t>(one->base),
                                                            one->strides[0], one->strides[1], one->strides[2],
                                                            one->row}));
    }
    return width % 2 == 0 && bytes >= 2 * size_of(element) ? 2 : 1;
}

// Images of a block, so that there are blocks for all multiprocessors to take several turns, and all do as much.
inline std::uint32_t images_of_block(std::int64_t images, const SpectralCut& cut, const Chip& chip) {
    constexpr int turns = 16;
    const std::int64_t batches = (images + cut.images - 1) / cut.images, most = turns * chip.multiprocessors;
    return static_cast<std::uint32_t>((batches + most - 1) / most * cut.images);
}

// Where the spectra of x and the sums go: into shared memory if two blocks with them still fit there.
inline std::pair<bool, bool> inside(const SpectralCut& cut, const Chip& chip) {
    const auto leaves_room = [&](bool kept, bool sums) {
        return filter_bytes(cut, kept, sums) <= chip.shared_bytes / 2;
    };
    if (leaves_room(true, true)) return {true, true};
    return {leaves_room(true, false), false};
}

inline SpectralCut cut_gradients(int height, int width, std::int64_t channel_images) {
    return cut_spectrum(height, width, std::max<std::int64_t>(channel_images, 1), gradient_values);
}

// Blocks that share a channel.
inline std::uint32_t parts_of(std::int64_t channels, std::int64_t channel_images, const SpectralCut& cut,
                              const Chip& chip) {
    constexpr int turns = 4;
    const std::int64_t wanted = (turns * chip.multiprocessors + channels - 1) / std::max<std::int64_t>(channels, 1);
    const std::int64_t most = (channel_images + cut.images - 1) / cut.images;
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(wanted, 1, most));
}

}  // namespace

inline FilterJob filter_in_blocks(const FilterCall& call, bool gradients) {
    FilterJob job{};
    const std::int64_t channels = call.x.sizes[0], channel_images = call.x.sizes[1] * call.x.sizes[2];
    job.cut = gradients ? cut_gradients(call.height, call.width, channel_images)
                        : cut_spectrum(call.height, call.width, call.x.count(), filter_values);
    job.x = in_blocks(call.x);
    job.grad = in_blocks(call.grad);
    job.out = in_blocks(call.out);
    job.element = call.element;
    job.piece = common_piece(call.element, call.width, {&call.x, &call.grad, &call.out});
    job.pieces = Divider(call.width / job.piece);
    job.weight = call.weight;
    job.wide = call.wide;
    job.scale = 1.0f / (static_cast<float>(call.height) * static_cast<float>(call.width));
    job.images = static_cast<std::uint32_t>(call.x.count());
    job.channel_images = Divider(std::max<std::int64_t>(channel_images, 1));
    job.gradients = gradients;
    if (gradients) {
        job.parts = parts_of(channels, channel_images, job.cut, call.chip);
        job.blocks = channels * job.parts;
        const auto [kept, sums] = inside(job.cut, call.chip);
        job.kept_inside = kept;
        job.sums_inside = sums;
        job.sums = call.scratch;
        job.kept = job.sums + 2 * job.blocks * job.cut.bins();
    } else {
        job.block_images = images_of_block(job.images, job.cut, call.chip);
        job.blocks = (job.images + job.block_images - 1) / std::max(job.block_images, 1u);
    }
    fits(job.shared_bytes(), job.cut, call.chip);
    return job;
}

// What the largest of the jobs takes at least, on one image at a time.
inline std::int64_t spectral_shared_bytes(int height, int width) {
    const SpectralCut cut = cut_spectrum(height, width, 1, 1);
    return std::max(filter_bytes(cut, false, false), focal_bytes(cut));
}

// Floats that FilterCall::scratch holds.
inline std::int64_t filter_scratch(int height, int width, std::int64_t channels, std::int64_t channel_images,
                                   const Chip& chip) {
    const SpectralCut cut = cut_gradients(height, width, channel_images);
    const std::int64_t kept = inside(cut, chip).first ? 0 : cut.images * cut.image_values();
    return 2 * channels * parts_of(channels, channel_images, cut, chip) * (cut.bins() + kept);
}

inline WeightSumJob weight_sum_of(const FilterJob& job, const FilterCall& call, float* grad_weight) {
    const std::int64_t numbers = call.x.sizes[0] * job.cut.bins();
    within("weight", numbers, (std::int64_t{1} << 31) - 1024);
    return {job.sums,
            grad_weight,
            call.wide,
            job.cut.width,
            job.parts,
            static_cast<std::uint32_t>(job.cut.bins()),
            Divider(job.cut.bins()),
            job.cut.by_columns,
            numbers,
            job.scale};
}

// Blocks of a focal job: as many numbers as FocalCallInBlocks::found holds.
inline std::int64_t focal_blocks(int height, int width, std::int64_t images, const Chip& chip) {
    const SpectralCut cut = cut_spectrum(height, width, images, filter_values);
    const std::int64_t of_block = images_of_block(images, cut, chip);
    return (images + of_block - 1) / of_block;
}

inline FocalJob focal_in_blocks(const FocalCallInBlocks& call, FocalTask task) {
    FocalJob job{};
    job.task = task;
    job.images = static_cast<std::uint32_t>(call.pred.count());
    job.cut = cut_spectrum(call.height, call.width, job.images, filter_values);
    job.pred = in_blocks(call.pred);
    job.target = in_blocks(call.target);
    job.out = in_blocks(call.out);
    job.element = call.element;
    job.piece = common_piece(call.element, call.width, {&call.pred, &call.target, &call.out});
    job.pieces = Divider(call.width / job.piece);
    job.alpha = call.alpha;
    job.logarithm = call.logarithm;
    job.orthonormal = 1.0f / (static_cast<float>(call.height) * static_cast<float>(call.width));
    job.block_images = images_of_block(job.images, job.cut, call.chip);
    job.blocks = (job.images + job.block_images - 1) / job.block_images;
    job.by_members = Divider(job.cut.threads / job.cut.images);
    job.largest = call.largest;
    job.found = call.found;
    job.grad = call.grad;
    job.grad_element = call.grad_element;
    job.scale = static_cast<float>(call.scale) * job.orthonormal;
    fits(job.shared_bytes(), job.cut, call.chip);
    return job;
}

}  // namespace medsora
