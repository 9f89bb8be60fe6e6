// Gradients that are stated, against slopes that are found by moving the inputs of a plain double-precision loop.
#pragma once

#include <functional>

#include "check.h"

namespace medsora::check {

using Values = std::vector<double>;
using Inputs = std::vector<Values>;

inline double product(const Values& a, const Values& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// Numbers that T can store.
template <typename T>
Values drawn(std::int64_t count, double lowest, double highest, Numbers& numbers) {
    Values values(count);
    for (double& value : values) {
        value = value_of(stored_as<T>(lowest + (highest - lowest) * (numbers.next() + 1) / 2));
    }
    return values;
}

// The gradient times a direction must be the slope along it: along one that moves all elements, then some alone.
inline void expect_gradient(const char* name, const std::function<double(const Inputs&)>& loss, const Inputs& inputs,
                            std::size_t which, const Values& found, double tolerance, Numbers& numbers) {
    const auto slope_along = [&](const Values& direction) {
        constexpr double h = 1e-5;
        double ends[2];
        for (int end : {0, 1}) {
            Inputs moved = inputs;
            for (std::size_t i = 0; i < direction.size(); ++i) moved[which][i] += (end ? h : -h) * direction[i];
            ends[end] = loss(moved);
        }
        return (ends[1] - ends[0]) / (2 * h);
    };
    expect(found.size() == inputs[which].size(), "gradient of ", name, ": ", found.size(), " numbers");
    const double length = std::sqrt(product(found, found));
    for (int draw = 0; draw < 4; ++draw) {
        Values direction(found.size());
        if (draw == 0) direction = drawn<double>(found.size(), -1, 1, numbers);
        else direction[numbers.below(direction.size())] = 1;
        const double slope = slope_along(direction), stated = product(found, direction);
        expect(std::abs(stated - slope) <= tolerance * length + 1e-6, "gradient of ", name, ": ", stated,
               " along a direction of slope ", slope, ", its length being ", length);  // NaN fails
    }
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace medsora::check
