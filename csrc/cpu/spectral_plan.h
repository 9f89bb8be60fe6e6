// What the transforms of images of one height and width have in common: their passes, tables and scale.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../common/fft_plan.h"

namespace medsora {

// Of an image's spectrum rows 0 .. height / 2 are kept; the others mirror them. With an even height rows 0 and
// height / 2, spectra of real rows, share the first place as one complex row; see common/fft_real.h.
struct SpectralPlan {
    int height, width;
    bool even;            // the height
    int kept;             // rows of the spectrum that are kept: height / 2, or (height + 1) / 2 if odd
    FftPlan columns;      // of height / 2 pairs of rows, or of `height` rows if odd
    FftPlan rows;         // of `width`
    const Twiddle* split;  // for pairs of rows
    float doubled;        // the factor by which kept values are too large: 2, or 1 if odd
    std::int64_t bins() const { return static_cast<std::int64_t>(height) * (width / 2 + 1); }
    std::int64_t pixels() const { return static_cast<std::int64_t>(height) * width; }
};

// A plan with the memory of its tables.
struct SpectralPlanTables {
    SpectralPlan plan;
    std::vector<Twiddle> table;
};

// From a few kept by each calling thread, so that neither memory grows nor a lock is needed.
std::shared_ptr<const SpectralPlanTables> spectral_plan(int height, int width);

}  // namespace medsora
