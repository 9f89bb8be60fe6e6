// Rows of numbers that lie apart in memory and in another order than they are counted in.
#pragma once

#include "check.h"

namespace medsora::check {

// Rows at (i, j, k), counted with k fastest; in memory j is slowest and a gap, which nobody may write to, follows each.
template <typename T>
class Rows {
public:
    Rows(std::int64_t first, std::int64_t second, std::int64_t third, std::int64_t width)
        : counts_{first, second, third}, width_(width), memory_(first * second * third * pitch() - gap, 1) {
        strides[0] = third * pitch();
        strides[1] = first * strides[0];
        strides[2] = pitch();
    }
    std::int64_t strides[3];  // in elements

    T* data() { return memory_.data(); }
    std::int64_t size() const { return counts_[0] * counts_[1] * counts_[2] * width_; }
    void set(const std::vector<double>& values) {
        for (std::int64_t i = 0; i < size(); ++i) at(i) = stored_as<T>(values[i]);
    }
    std::vector<double> values() {
        std::vector<double> found;
        for (std::int64_t i = 0; i < size(); ++i) found.push_back(value_of(at(i)));
        return found;
    }
    void check(const char* name) {
        memory_.check_guards(name);
        const Guarded<T> fresh(1);
        for (std::int64_t i = 0; i < memory_.size(); ++i) {
            expect(i % pitch() < width_ || std::memcmp(&memory_[i], &fresh[0], sizeof(T)) == 0, name,
                   ": written between rows");
        }
    }

private:
    static constexpr std::int64_t gap = 5;
    std::int64_t pitch() const { return width_ + gap; }
    T& at(std::int64_t i) {
        const std::int64_t row = i / width_, k = row % counts_[2], j = row / counts_[2] % counts_[1];
        return memory_[row / counts_[2] / counts_[1] * strides[0] + j * strides[1] + k * strides[2] + i % width_];
    }
    std::int64_t counts_[3], width_;
    Guarded<T> memory_;
};

}  // namespace medsora::check
