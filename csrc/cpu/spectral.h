// Filters in the frequency domain and the focal frequency loss, image by image, each transformed within the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../common/element.h"
#include "isa.h"
#include "spectral_plan.h"

namespace medsora {

// Images of one height and width, numbered row-major over any leading dimensions; elements of a row lie side by side.
struct Images {
    char* base;
    std::vector<std::int64_t> sizes, strides;  // of the leading dimensions; strides in bytes
    std::int64_t row;                          // bytes from one image row to the next

    char* at(std::int64_t image) const {
        std::int64_t offset = 0;
        for (std::size_t i = sizes.size(); i-- > 0; image /= sizes[i]) offset += image % sizes[i] * strides[i];
        return base + offset;
    }
    std::int64_t count() const {
        std::int64_t total = 1;
        for (std::int64_t size : sizes) total *= size;
        return total;
    }
};

// How magnitudes of a difference of spectra become weights: |d|^alpha or log(|d|^alpha + 1).
struct FocalWeight {
    float alpha;
    bool logarithm;
};

// y = x + filter(x). x and y hold (channels, images of one channel) images; weight (channels, height, width / 2 + 1)
// complex numbers, of which the part acts that leaves images real.
void spectral_filter(const SpectralPlan& plan, Element element, const Images& x, const float* weight, const Images& y,
                     std::int64_t channels, Isa isa, int threads);

// The gradients of that with respect to x and weight, from the gradient of y. grad_weight is summed over the images of
// a channel in an order that only sizes decide.
void spectral_filter_backward(const SpectralPlan& plan, Element element, const Images& grad, const Images& x,
                              const float* weight, const Images& grad_x, float* grad_weight, std::int64_t channels,
                              Isa isa, int threads);

struct FocalCall {
    const SpectralPlan& plan;
    Element element;
    Images pred, target;
    FocalWeight weight;
    bool largest_of_all;  // weights are divided by the largest of all images, not of each: that takes a pass of its own
    Isa isa;
    int threads;
};

// The mean over images and the full spectrum of weight / largest * |d|^2.
double focal_loss(const FocalCall& call);

// grad_pred = scale * inverse transform(weight / largest * d).
void focal_gradient(const FocalCall& call, double scale, const Images& grad_pred);

}  // namespace medsora
