// The spectral filter and its gradients as a GPU runs them: what one block does, compiled for the CPU too.
//
// A block holds whole images in its shared memory: it reads them, transforms them, weighs their spectra, transforms
// back and writes. For the gradients it walks images of one channel and adds up conj(X) dY in the order of the images.
#pragma once

#include <cstdint>

#include "spectral_images.h"

namespace medsora {

struct FilterJob {
    SpectralCut cut;
    BlockImages x, grad, out;  // grad: only for gradients, which go to `out`
    Element element;
    int piece;       // elements of a row that move at a time
    Divider pieces;  // of a row
    const float* weight;
    bool wide;                   // complex weights
    float scale;                 // of them: 1 / (height * width)
    std::uint32_t images;        // of all channels
    Divider channel_images;      // of one
    std::uint32_t block_images;  // of one block, if there are no gradients
    bool gradients;
    std::uint32_t parts;         // blocks that share a channel, if there are
    bool kept_inside, sums_inside;  // whether spectra of x and sums lie in shared memory, or in `scratch`
    float* sums;                 // (blocks, height, columns) complex numbers: of conj(X) dY
    float* kept;                 // (blocks, values of a block) complex numbers, unless inside
    std::int64_t blocks;

    std::int64_t shared_bytes() const;
};

// The gradient of the weight out of the sums: (channels, height, columns), real or complex.
struct WeightSumJob {
    const float* sums;
    float* grad_weight;
    bool wide;
    int width;
    std::uint32_t parts, bins;
    Divider by_bins, by_columns;
    std::int64_t numbers;  // channels * bins
    float scale;
};

namespace {

// Of an image in a block.
struct ImagePlace {
    const char *x, *grad, *out;
    const float* weight;
};

// Where a block's things lie. What is seldom asked for is computed anew: registers are dear.
struct FilterMemory {
    const FilterJob* job;
    std::uint32_t block;
    ImagePlace* places;
    Bin* values;

    MEDSORA_HOST_DEVICE FilterMemory(const FilterJob& of, std::uint32_t number, char* memory)
        : job(&of),
          block(number),
          places(reinterpret_cast<ImagePlace*>(memory)),
          values(reinterpret_cast<Bin*>(places + of.cut.images)) {}

    MEDSORA_HOST_DEVICE int size() const { return job->cut.images * job->cut.image_values(); }
    MEDSORA_HOST_DEVICE Twiddle* along_roots() const { return reinterpret_cast<Twiddle*>(values + size()); }
    MEDSORA_HOST_DEVICE Twiddle* down_roots() const { return along_roots() + job->cut.width; }
    MEDSORA_HOST_DEVICE Bin* behind() const { return reinterpret_cast<Bin*>(down_roots() + job->cut.height); }
    // Spectra of x; sums of products; where these are to be in the end.
    MEDSORA_HOST_DEVICE Bin* kept() const {
        return job->kept_inside ? behind() : reinterpret_cast<Bin*>(job->kept) + std::int64_t{block} * size();
    }
    MEDSORA_HOST_DEVICE Bin* sums() const {
        return job->sums_inside ? behind() + (job->kept_inside ? size() : 0) : left();
    }
    MEDSORA_HOST_DEVICE Bin* left() const {
        return reinterpret_cast<Bin*>(job->sums) + std::int64_t{block} * job->cut.bins();
    }
};

inline std::int64_t filter_bytes(const SpectralCut& cut, bool kept, bool sums) {
    const std::int64_t size = static_cast<std::int64_t>(cut.images) * cut.image_values();
    return cut.images * sizeof(ImagePlace) +
           sizeof(Bin) * (size * (kept ? 2 : 1) + cut.width + cut.height + (sums ? cut.bins() : 0));
}

template <typename Team>
MEDSORA_HOST_DEVICE void find_roots(const Team& team, int thread, int n, Twiddle* roots) {
    for (int k = thread; k < n; k += team.size()) roots[k] = root_of_unity(k, n);
}

// What a bin is multiplied by; transforms there and back leave it height * width times as large.
struct FilterWeigh {
    const FilterJob* job;
    const ImagePlace* places;

    MEDSORA_HOST_DEVICE Bin operator()(const Bin& value, int image, int column, int ky) const {
        const int bin = ky * job->cut.columns + column;
        const float* const weight = places[image].weight;
        if (!job->wide) return {value.re * (weight[bin] * job->scale), value.im * (weight[bin] * job->scale)};
        const Bin w = *reinterpret_cast<const Bin*>(weight + 2 * bin);
        return value * Twiddle{w.re * job->scale, (job->gradients ? -w.im : w.im) * job->scale};
    }
};

template <typename Team>
MEDSORA_HOST_DEVICE void place_images(const Team& team, const FilterJob& job, const Batch& batch, ImagePlace* places) {
    team.each([&](int thread) {
        if (thread >= batch.count) return;
        const std::uint32_t number = batch.first + thread;
        const std::int64_t channel = job.channel_images.quotient(number);
        places[thread] = {image_at(job.x, number), job.gradients ? image_at(job.grad, number) : nullptr,
                          image_at(job.out, number), job.weight + channel * job.cut.bins() * (job.wide ? 2 : 1)};
    });
}

// sums += conj(X) dY, over the images of a batch one after the other.
template <typename Team>
MEDSORA_HOST_DEVICE void add_products(const Team& team, const SpectralCut& cut, int images, const Bin* x,
                                      const Bin* grad, Bin* sums) {
    team.each([&](int thread) {
        for (int bin = thread; bin < cut.bins(); bin += team.size()) {
            const int ky = static_cast<int>(cut.by_columns.quotient(bin)), column = bin - ky * cut.columns;
            const int place = ColumnPlaces(cut, column)(ky);
            Bin sum = sums[bin];
            for (int image = 0; image < images; ++image) {
                const int at = image * cut.image_values() + place;
                sum = sum + conj(x[at]) * grad[at];
            }
            sums[bin] = sum;
        }
    });
}

template <typename Team>
MEDSORA_HOST_DEVICE void copy_bins(const Team& team, const Bin* from, int count, Bin* to) {
    team.each([&](int thread) {
        for (int i = thread; i < count; i += team.size()) to[i] = from[i];
    });
}

// One batch: x, for gradients grad too, there and back.
template <typename Team>
MEDSORA_HOST_DEVICE void filter_batch(const Team& team, const FilterJob& job, const FilterMemory& memory,
                                      const Batch& batch) {
    const SpectralCut& cut = job.cut;
    const ImagePlace* const places = memory.places;
    place_images(team, job, batch, memory.places);
    const FilterWeigh weigh{&job, places};
    const int inputs = job.gradients ? 2 : 1;
    for (int turn = 0; turn <= inputs; ++turn) {
        const bool of_grad = turn == 1, back = turn == inputs;
        if (!back) {
            const std::int64_t row = of_grad ? job.grad.row : job.x.row;
            const auto from = [&](int image, int) { return of_grad ? places[image].grad : places[image].x; };
            with_elements(job.element, job.piece, [&](auto type, auto piece) {
                load_images<decltype(type), decltype(piece)::value>(team, cut, job.pieces, batch.count, row, row, false,
                                                                    from, memory.values);
            });
        }
        transform_images(team, cut, memory.values, batch.count, back, memory.along_roots(), memory.down_roots());
        if (back) continue;
        if (of_grad) add_products(team, cut, batch.count, memory.kept(), memory.values, memory.sums());
        if (turn == inputs - 1) {
            weigh_bins(team, cut, memory.values, batch.count, weigh);
        } else {
            copy_bins(team, memory.values, batch.count * cut.image_values(), memory.kept());
        }
    }
    const std::int64_t residual_row = job.gradients ? job.grad.row : job.x.row;
    const auto to = [&](int image, int residual) {
        return residual == 0 ? places[image].out : job.gradients ? places[image].grad : places[image].x;
    };
    with_elements(job.element, job.piece, [&](auto type, auto piece) {
        store_images<decltype(type), decltype(piece)::value>(team, cut, job.pieces, batch.count, job.out.row,
                                                             residual_row, true, to, memory.values);
    });
}

template <typename Team>
MEDSORA_HOST_DEVICE void filter_block(const Team& team, const FilterJob& job, std::uint32_t block, char* shared) {
    const SpectralCut& cut = job.cut;
    const FilterMemory memory(job, block, shared);
    team.each([&](int thread) {
        find_roots(team, thread, cut.width, memory.along_roots());
        find_roots(team, thread, cut.height, memory.down_roots());
        if (!job.gradients) return;
        Bin* const sums = memory.sums();
        for (int bin = thread; bin < cut.bins(); bin += team.size()) sums[bin] = {0.0f, 0.0f};
    });
    // Images are numbered by 31 bits.
    std::uint32_t first = block * job.block_images, last = first + job.block_images;
    if (job.gradients) {
        const std::uint32_t channel = block / job.parts, part = block - channel * job.parts;
        const std::uint64_t images = job.channel_images.divisor();
        first = static_cast<std::uint32_t>(channel * images + images * part / job.parts);
        last = static_cast<std::uint32_t>(channel * images + images * (part + 1) / job.parts);
    }
    if (last > job.images) last = job.images;
    for (; first < last; first += cut.images) {
        const int left = static_cast<int>(last - first);
        filter_batch(team, job, memory, {first, left < cut.images ? left : cut.images});
    }
    if (job.gradients && job.sums_inside) {
        copy_bins(team, memory.sums(), cut.bins(), memory.left());
    }
}

// Number i of the gradient: the parts of its channel, one after the other, as often as its column stands in the whole
// spectrum.
MEDSORA_HOST_DEVICE void weight_sum_thread(const WeightSumJob& job, std::int64_t i) {
    if (i >= job.numbers) return;
    const auto number = static_cast<std::uint32_t>(i), channel = job.by_bins.quotient(number);
    const std::uint32_t bin = number - channel * job.by_bins.divisor();
    const auto column = static_cast<int>(bin - job.by_columns.quotient(bin) * job.by_columns.divisor());
    const auto* const sums =
        reinterpret_cast<const Bin*>(job.sums) + static_cast<std::int64_t>(channel) * job.parts * job.bins + bin;
    Bin sum = sums[0];
    for (std::uint32_t part = 1; part < job.parts; ++part) sum = sum + sums[static_cast<std::int64_t>(part) * job.bins];
    const float times = column == 0 || 2 * column == job.width ? job.scale : 2.0f * job.scale;
    if (!job.wide) {
        job.grad_weight[i] = sum.re * times;
    } else {
        reinterpret_cast<Bin*>(job.grad_weight)[i] = {sum.re * times, sum.im * times};
    }
}

}  // namespace

inline std::int64_t FilterJob::shared_bytes() const { return filter_bytes(cut, kept_inside, sums_inside); }

}  // namespace medsora
