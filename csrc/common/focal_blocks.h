// The focal frequency loss as a GPU runs it: what one block does, compiled for the CPU too.
//
// The difference of two images is read and transformed in the block's memory. The largest weight of an image, its loss
// and its gradient come from the spectrum while it is there. A block walks its images in order and leaves one number.
#pragma once

#include <cmath>
#include <cstdint>

#include "spectral_blocks.h"

namespace medsora {

enum class FocalTask { largest, loss, gradient };

struct FocalJob {
    FocalTask task;
    SpectralCut cut;
    BlockImages pred, target, out;  // target: without a base where pred is the difference; out: for the gradient
    Element element;
    int piece;
    Divider pieces;
    float alpha;
    bool logarithm;
    float orthonormal;       // of squares: 1 / (height * width)
    std::uint32_t images, block_images;
    std::int64_t blocks;
    Divider by_members;      // threads that work on one image's sums
    const double* largest;   // a number of each block whose largest divides the weights; null: of each image its own
    double* found;           // a number of each block: the largest weight, or the sum of losses
    const void* grad;        // of the loss, a number of the type `grad_element`
    Element grad_element;
    float scale;             // of the gradient, `orthonormal` included

    std::int64_t shared_bytes() const;
};

// The loss out of what blocks have found.
struct FocalMeanJob {
    const double* found;
    std::int64_t blocks;
    double scale;
    void* loss;
    Element element;
};

namespace {

struct FocalPlace {
    const char *pred, *target, *out;
    float largest, sum;
};

struct FocalMemory {
    const SpectralCut* cut;
    FocalPlace* places;

    MEDSORA_HOST_DEVICE FocalMemory(const SpectralCut& of, char* memory)
        : cut(&of), places(reinterpret_cast<FocalPlace*>(memory)) {}

    // One for each thread.
    MEDSORA_HOST_DEVICE double* cells() const { return reinterpret_cast<double*>(places + cut->images); }
    MEDSORA_HOST_DEVICE double* total() const { return cells() + cut->threads; }  // what the block leaves
    MEDSORA_HOST_DEVICE double* given() const { return total() + 1; }             // the largest weight of all images
    MEDSORA_HOST_DEVICE Bin* values() const { return reinterpret_cast<Bin*>(given() + 1); }
    MEDSORA_HOST_DEVICE Twiddle* along_roots() const {
        return reinterpret_cast<Twiddle*>(values() + cut->images * cut->image_values());
    }
    MEDSORA_HOST_DEVICE Twiddle* down_roots() const { return along_roots() + cut->width; }
};

inline std::int64_t focal_bytes(const SpectralCut& cut) {
    return static_cast<std::int64_t>(cut.images) * (sizeof(FocalPlace) + sizeof(Bin) * cut.image_values()) +
           sizeof(double) * (cut.threads + 2) + sizeof(Bin) * (cut.width + cut.height);
}

// NaN if one is.
struct Largest {
    template <typename T>
    MEDSORA_HOST_DEVICE T operator()(T one, T other) const {
        return one != one || one > other ? one : other;
    }
};
struct Sum {
    template <typename T>
    MEDSORA_HOST_DEVICE T operator()(T one, T other) const {
        return one + other;
    }
};

// |d|^alpha or log(|d|^alpha + 1), from the square of |d|.
MEDSORA_HOST_DEVICE float focal_weight(const FocalJob& job, float squared) {
    float weight = sqrtf(squared);
    if (job.alpha != 1.0f) weight = powf(weight, job.alpha);
    return job.logarithm ? logf(weight + 1.0f) : weight;
}

// Of the largest; 0 where that is 0 / 0.
MEDSORA_HOST_DEVICE float focal_ratio(const FocalJob& job, float squared, float largest) {
    return fminf(fmaxf(focal_weight(job, squared) / largest, 0.0f), 1.0f);  // fmaxf takes the number beside a NaN
}

MEDSORA_HOST_DEVICE float squared(const Bin& value) { return value.re * value.re + value.im * value.im; }

struct FocalWeigh {
    const FocalJob* job;
    const FocalPlace* places;
    float scale;

    MEDSORA_HOST_DEVICE Bin operator()(const Bin& value, int image, int, int) const {
        const float factor = focal_ratio(*job, squared(value) * job->orthonormal, places[image].largest) * scale;
        return {value.re * factor, value.im * factor};
    }
};

// For each image: `start` combined with of(value, image, column) of all its bins.
template <typename Team, typename Of, typename Combine>
MEDSORA_HOST_DEVICE void reduce_bins(const Team& team, const FocalJob& job, const FocalMemory& memory, int images,
                                     const Of& of, const Combine& combine) {
    const SpectralCut& cut = job.cut;
    const int members = static_cast<int>(job.by_members.divisor());
    combine_groups(team, memory.cells(), images, members, [&](int image, int member) {
        const Bin* const values = memory.values() + image * cut.image_values();
        float found = 0.0f;
        for (int bin = member; bin < cut.bins(); bin += members) {
            const int ky = static_cast<int>(cut.by_columns.quotient(bin)), column = bin - ky * cut.columns;
            found = combine(found, of(values[ColumnPlaces(cut, column)(ky)], image, column));
        }
        return static_cast<double>(found);
    }, combine);
}

template <typename Team>
MEDSORA_HOST_DEVICE void find_largest(const Team& team, const FocalJob& job, const FocalMemory& memory, int images) {
    const auto of = [&](const Bin& value, int, int) { return focal_weight(job, squared(value) * job.orthonormal); };
    reduce_bins(team, job, memory, images, of, Largest{});
    team.each([&](int thread) {
        const int members = static_cast<int>(job.by_members.divisor());
        if (thread < images) memory.places[thread].largest = static_cast<float>(memory.cells()[thread * members]);
    });
}

// Adds the losses of the images to the block's, one after the other.
template <typename Team>
MEDSORA_HOST_DEVICE void add_losses(const Team& team, const FocalJob& job, const FocalMemory& memory, int images) {
    const int width = job.cut.width;
    const auto of = [&](const Bin& value, int image, int column) {
        const float distance = squared(value) * job.orthonormal;
        const float times = column == 0 || 2 * column == width ? 1.0f : 2.0f;
        return times * distance * focal_ratio(job, distance, memory.places[image].largest);
    };
    reduce_bins(team, job, memory, images, of, Sum{});
    team.each([&](int thread) {
        const int members = static_cast<int>(job.by_members.divisor());
        if (thread > 0) return;
        for (int image = 0; image < images; ++image) *memory.total() += memory.cells()[image * members];
    });
}

MEDSORA_HOST_DEVICE float number_at(const void* address, Element element) {
    switch (element) {
        case Element::float32: return *static_cast<const float*>(address);
        case Element::bfloat16: return float_of(*static_cast<const BFloat16*>(address));
        default: return float_of(*static_cast<const Float16*>(address));
    }
}

template <typename Team>
MEDSORA_HOST_DEVICE void focal_batch(const Team& team, const FocalJob& job, const FocalMemory& memory,
                                     const Batch& batch) {
    const SpectralCut& cut = job.cut;
    const bool difference = job.target.base != nullptr, gradient = job.task == FocalTask::gradient;
    FocalPlace* const places = memory.places;
    team.each([&](int thread) {
        if (thread >= batch.count) return;
        const std::uint32_t number = batch.first + thread;
        places[thread].pred = image_at(job.pred, number);
        places[thread].target = difference ? image_at(job.target, number) : nullptr;
        places[thread].out = gradient ? image_at(job.out, number) : nullptr;
        if (job.largest != nullptr) places[thread].largest = static_cast<float>(*memory.given());
    });
    const auto from = [&](int image, int which) { return which == 0 ? places[image].pred : places[image].target; };
    with_elements(job.element, job.piece, [&](auto type, auto piece) {
        load_images<decltype(type), decltype(piece)::value>(team, cut, job.pieces, batch.count, job.pred.row,
                                                            job.target.row, difference, from, memory.values());
    });
    for (int turn = 0; turn < (gradient ? 2 : 1); ++turn) {
        transform_images(team, cut, memory.values(), batch.count, turn == 1, memory.along_roots(), memory.down_roots());
        if (turn == 1) continue;
        if (job.largest == nullptr) find_largest(team, job, memory, batch.count);
        if (!gradient) continue;
        const float scale = job.scale * number_at(job.grad, job.grad_element);
        weigh_bins(team, cut, memory.values(), batch.count, FocalWeigh{&job, places, scale});
    }
    if (job.task == FocalTask::largest) {
        team.each([&](int thread) {
            for (int image = 0; thread == 0 && image < batch.count; ++image) {
                *memory.total() = Largest{}(*memory.total(), static_cast<double>(places[image].largest));
            }
        });
    } else if (job.task == FocalTask::loss) {
        add_losses(team, job, memory, batch.count);
    } else {
        const auto to = [&](int image, int) { return places[image].out; };
        with_elements(job.element, job.piece, [&](auto type, auto piece) {
            store_images<decltype(type), decltype(piece)::value>(team, cut, job.pieces, batch.count, job.out.row, 0,
                                                                 false, to, memory.values());
        });
    }
}

template <typename Team>
MEDSORA_HOST_DEVICE void focal_block(const Team& team, const FocalJob& job, std::uint32_t block, char* shared) {
    const FocalMemory memory(job.cut, shared);
    if (job.largest != nullptr) {
        const auto of = [&](int, int thread) {
            double found = 0.0;
            for (std::int64_t i = thread; i < job.blocks; i += team.size()) found = Largest{}(found, job.largest[i]);
            return found;
        };
        combine_groups(team, memory.cells(), 1, team.size(), of, Largest{});
    }
    team.each([&](int thread) {
        find_roots(team, thread, job.cut.width, memory.along_roots());
        find_roots(team, thread, job.cut.height, memory.down_roots());
        if (thread > 0) return;
        *memory.total() = 0.0;
        *memory.given() = job.largest != nullptr ? memory.cells()[0] : 0.0;
    });
    std::uint32_t first = block * job.block_images, last = first + job.block_images;
    if (last > job.images) last = job.images;
    for (; first < last; first += job.cut.images) {
        const int left = static_cast<int>(last - first);
        focal_batch(team, job, memory, {first, left < job.cut.images ? left : job.cut.images});
    }
    if (job.task == FocalTask::gradient) return;
    team.each([&](int thread) {
        if (thread == 0) job.found[block] = *memory.total();
    });
}

constexpr int mean_threads = 256;

// One block, with a cell for each of its threads.
template <typename Team>
MEDSORA_HOST_DEVICE void focal_mean_block(const Team& team, const FocalMeanJob& job, double* cells) {
    const auto of = [&](int, int thread) {
        double sum = 0.0;
        for (std::int64_t i = thread; i < job.blocks; i += team.size()) sum += job.found[i];
        return sum;
    };
    combine_groups(team, cells, 1, team.size(), of, Sum{});
    team.each([&](int thread) {
        if (thread > 0) return;
        const auto loss = static_cast<float>(cells[0] * job.scale);
        switch (job.element) {
            case Element::float32: return set_to(*static_cast<float*>(job.loss), loss);
            case Element::bfloat16: return set_to(*static_cast<BFloat16*>(job.loss), loss);
            default: return set_to(*static_cast<Float16*>(job.loss), loss);
        }
    });
}

}  // namespace

inline std::int64_t FocalJob::shared_bytes() const { return focal_bytes(cut); }

}  // namespace medsora
