// What the checks of all operators share: the list of them, guarded memory, numbers to fill it with, and comparison.
//
// A check is one file with plain loops for its operator and, at its end, one `Registered`. The program built from
// them runs each on every instruction set of this processor and on several threads; see main.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../common/path.h"
#include "../cpu/isa.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

namespace medsora::check {

struct Setting {
    Isa isa;
    int threads;
};

struct Operator {
    const char* name;
    void (*run)(const Setting& setting);
};

inline std::vector<Operator>& operators() {
    static std::vector<Operator> list;
    return list;
}

struct Registered {
    Registered(const char* name, void (*run)(const Setting&)) { operators().push_back({name, run}); }
};

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

template <typename... Parts>
void expect(bool holds, const Parts&... parts) {
    if (!holds) fail(parts...);
}

// The same numbers on every machine: the high bits of a linear congruential sequence.
class Numbers {
public:
    explicit Numbers(std::uint64_t seed) : state_(seed * 2 + 1) {}
    std::uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<std::uint32_t>(state_ >> 32);
    }
    double next() { return bits() * 0x1p-31 - 1.0; }  // from -1 to 1
    std::int64_t below(std::int64_t limit) { return bits() % limit; }

private:
    std::uint64_t state_;
};

// Memory between two guards. The data starts `shift` elements behind a cache line. Whoever touches a guard is stopped
// by the address sanitizer or, without it, found by `check_guards`.
template <typename T>
class Guarded {
public:
    explicit Guarded(std::int64_t count, std::int64_t shift = 0)
        : count_(count), bytes_(count * sizeof(T)), front_(guard + shift * sizeof(T)), memory_(allocate()) {
        std::memset(memory_.get(), pattern, front_ + bytes_ + guard);
        poison();
    }
    Guarded(Guarded&&) = delete;
    ~Guarded() { unpoison(); }

    T* data() { return reinterpret_cast<T*>(memory_.get() + front_); }
    const T* data() const { return reinterpret_cast<const T*>(memory_.get() + front_); }
    T& operator[](std::int64_t i) { return data()[i]; }
    const T& operator[](std::int64_t i) const { return data()[i]; }
    std::int64_t size() const { return count_; }
    char* bytes() { return memory_.get() + front_; }
    std::vector<T> copy() const { return {data(), data() + count_}; }

    void check_guards(const char* name) {
        unpoison();
        const char* start = memory_.get();
        const auto untouched = [](const char* from, std::int64_t bytes) {
            return std::all_of(from, from + bytes, [](char byte) { return byte == pattern; });
        };
        const bool before = untouched(start, front_), behind = untouched(start + front_ + bytes_, guard);
        poison();
        expect(before, name, ": written in front of its start");
        expect(behind, name, ": written behind its end");
    }

private:
    static constexpr std::int64_t guard = 128;
    static constexpr char pattern = 0x7e;  // as a number: about 8e37 in float32 and bfloat16

    struct Free {
        void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    char* allocate() const {
        return static_cast<char*>(::operator new(front_ + bytes_ + guard, std::align_val_t{64}));
    }
    void poison() {
        ASAN_POISON_MEMORY_REGION(memory_.get(), front_);
        ASAN_POISON_MEMORY_REGION(memory_.get() + front_ + bytes_, guard);
    }
    void unpoison() { ASAN_UNPOISON_MEMORY_REGION(memory_.get(), front_ + bytes_ + guard); }

    std::int64_t count_, bytes_, front_;
    std::unique_ptr<char, Free> memory_;
};

// bfloat16 as it is stored, by arithmetic alone: nothing is shared with what the kernels do.
inline double value_of_bfloat16(std::uint16_t bits) {
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline std::uint16_t bfloat16_near(double value) {
    int exponent;
    std::frexp(value, &exponent);
    const double unit = std::ldexp(1.0, std::max(exponent - 8, -133));
    const float rounded = static_cast<float>(std::nearbyint(value / unit) * unit);
    std::uint32_t wide;
    std::memcpy(&wide, &rounded, sizeof wide);
    return static_cast<std::uint16_t>(wide >> 16);
}

// float, double, or bfloat16 as std::uint16_t, to and from plain numbers.
template <typename T>
double value_of(T stored) {
    if constexpr (std::is_same_v<T, std::uint16_t>) return value_of_bfloat16(stored);
    else return stored;
}
template <typename T>
T stored_as(double value) {
    if constexpr (std::is_same_v<T, std::uint16_t>) return bfloat16_near(value);
    else return static_cast<T>(value);
}

template <typename T>
void fill(Guarded<T>& memory, Numbers& numbers, double scale = 1.0) {
    for (std::int64_t i = 0; i < memory.size(); ++i) memory[i] = stored_as<T>(scale * numbers.next());
}

// Root mean square of the difference against that of what is wanted.
inline void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, double tolerance,
                        const std::string& what) {
    expect(found.size() == wanted.size(), what, ": ", found.size(), " numbers, wants ", wanted.size());
    double error = 0, size = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        error += (found[i] - wanted[i]) * (found[i] - wanted[i]);
        size += wanted[i] * wanted[i];
    }
    const double relative = std::sqrt(error / std::max(size, 1e-30));
    expect(relative <= tolerance, what, ": relative error ", relative, ", wants at most ", tolerance);  // NaN fails
}

template <typename T>
std::vector<double> values_of(const Guarded<T>& memory) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < memory.size(); ++i) values.push_back(value_of(memory[i]));
    return values;
}

// A path with the table it points to: any order of visiting, over planes, columns or everything.
class Walk {
public:
    // kind: 'f' frame x width planes, 'h' frame x height planes, 's' spatial planes, 't' frames, 'a' all in one.
    Walk(char kind, std::int64_t frames, std::int64_t height, std::int64_t width, Numbers& numbers) {
        const std::int64_t plane = height * width;
        std::int64_t rows = frames, cols = 1, row_step = plane, col_step = 1, sequences = plane, stride = 1;
        if (kind == 'f') cols = width, sequences = height, stride = width;
        if (kind == 'h') cols = height, col_step = width, sequences = width;
        if (kind == 's') rows = height, cols = width, row_step = width, sequences = frames, stride = plane;
        if (kind == 'a') rows = 1, cols = frames * plane, sequences = 1, stride = cols;
        for (std::int64_t cell = 0; cell < rows * cols; ++cell) {
            offsets_.push_back(static_cast<std::int32_t>(cell / cols * row_step + cell % cols * col_step));
        }
        for (std::size_t i = offsets_.size(); i-- > 1;) std::swap(offsets_[i], offsets_[numbers.below(i + 1)]);
        path_ = {offsets_.data(), sequences, rows * cols, stride};
    }
    Walk(const Walk&) = delete;
    const Path& path() const { return path_; }

private:
    std::vector<std::int32_t> offsets_;
    Path path_{};
};

inline const char* const walk_kinds = "fhsta";

}  // namespace medsora::check
