// ssd_scan against the recurrence, one token and one state at a time in double precision; its gradients against the
// slope of that along directions drawn at random.
#include "../cpu/ssd_scan.h"

#include <array>

#include "check.h"

namespace medsora::check {
namespace {

using Values = std::vector<double>;

// Optional inputs, a bit each.
enum Given { with_D = 1, with_z = 2, with_dt_bias = 4, with_states = 8, with_softplus = 16 };
constexpr int everything = 31;

struct Shape {
    std::int64_t batch, length;
    int heads, head_dim, groups, state;
    int given;
};

// Alone in a tile and longer than one; with and without parts of a group; sizes that fill registers and others.
const Shape shapes[] = {
    {1, 1, 1, 1, 1, 1, everything},
    {2, 17, 4, 5, 2, 7, everything},
    {3, 16, 2, 16, 1, 16, with_D | with_softplus},
    {1, 33, 9, 8, 1, 17, with_z | with_dt_bias},
    {2, 19, 3, 33, 3, 5, 0},
    {1, 40, 2, 16, 1, 16, with_states},
    {1, 270, 8, 3, 1, 5, everything},
    {2, 259, 1, 4, 1, 3, with_z | with_softplus},
};

// What a scan is a function of; the tensors of SsdScanTensors in their order, then the parameters.
enum Input { x, dt, b, c, z, initial, A, D, dt_bias, inputs };
constexpr const char* names[] = {"x", "dt", "B", "C", "z", "initial_states", "A", "D", "dt_bias"};
using Inputs = std::vector<Values>;

struct Results {
    Values y, final_states;
};

double silu(double value) { return value / (1 + std::exp(-value)); }
double softplus(double value) { return std::max(value, 0.0) + std::log1p(std::exp(-std::abs(value))); }

Results scan(const Shape& shape, const Inputs& in) {
    const std::int64_t H = shape.heads, P = shape.head_dim, N = shape.state, G = shape.groups;
    Results out{Values(shape.batch * shape.length * H * P), in[initial]};
    for (std::int64_t row = 0; row < shape.batch * shape.length * H; ++row) {
        const std::int64_t token = row / H, head = row % H, sequence = token / shape.length;
        const double raw = in[dt][row] + (shape.given & with_dt_bias ? in[dt_bias][head] : 0.0);
        const double step = shape.given & with_softplus ? softplus(raw) : raw, decay = std::exp(step * in[A][head]);
        const double* B = in[b].data() + (token * G + head / (H / G)) * N;
        const double* C = in[c].data() + (token * G + head / (H / G)) * N;
        for (std::int64_t p = 0; p < P; ++p) {
            double& y = out.y[row * P + p];
            if (shape.given & with_D) y = in[D][head * P + p] * in[x][row * P + p];
            for (std::int64_t n = 0; n < N; ++n) {
                double& h = out.final_states[((sequence * H + head) * P + p) * N + n];
                h = decay * h + step * in[x][row * P + p] * B[n];
                y += h * C[n];
            }
            if (shape.given & with_z) y *= silu(in[z][row * P + p]);
        }
    }
    return out;
}

Values drawn(std::int64_t count, double lowest, double highest, bool half, Numbers& numbers) {
    Values values(count);
    for (double& value : values) {
        value = lowest + (highest - lowest) * (numbers.next() + 1) / 2;
        value = half ? value_of(stored_as<std::uint16_t>(value)) : value_of(stored_as<float>(value));
    }
    return values;
}

Inputs drawn_inputs(const Shape& s, bool half, Numbers& numbers) {
    const std::int64_t tokens = s.batch * s.length, lowest_dt = s.given & with_softplus ? -2 : 0;
    Inputs in(inputs);
    in[x] = drawn(tokens * s.heads * s.head_dim, -1, 1, half, numbers);
    in[dt] = drawn(tokens * s.heads, lowest_dt, 1, half, numbers);
    in[b] = drawn(tokens * s.groups * s.state, -1, 1, half, numbers);
    in[c] = drawn(tokens * s.groups * s.state, -1, 1, half, numbers);
    in[z] = drawn(s.given & with_z ? tokens * s.heads * s.head_dim : 0, -1.5, 1.5, half, numbers);
    const double states = s.given & with_states ? 1 : 0;
    in[initial] = drawn(s.batch * s.heads * s.head_dim * s.state, -states, states, false, numbers);
    in[A] = drawn(s.heads, -1.5, -0.1, false, numbers);
    in[D] = drawn(s.given & with_D ? s.heads * s.head_dim : 0, -1, 1, false, numbers);
    in[dt_bias] = drawn(s.given & with_dt_bias ? s.heads : 0, 0, 0.5, false, numbers);
    return in;
}

// Rows at three indices with a gap behind each, the first two indices exchanged in memory; nobody may write to gaps.
class Rows {
public:
    Rows(std::array<std::int64_t, 3> sizes, std::int64_t count, bool half, bool given = true)
        : sizes_(sizes), count_(count), half_(half), given_(given), wide_(half ? 0 : numbers()),
          narrow_(half ? numbers() : 0) {}
    StridedRows view() {
        void* data = half_ ? static_cast<void*>(narrow_.data()) : static_cast<void*>(wide_.data());
        const std::int64_t inner = sizes_[2] * pitch();
        const Element element = half_ ? Element::bfloat16 : Element::float32;
        return {given_ ? data : nullptr, element, {inner, sizes_[0] * inner, pitch()}};
    }
    void set(const Values& values) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            if (half_) narrow_[place(i)] = stored_as<std::uint16_t>(values[i]);
            else wide_[place(i)] = stored_as<float>(values[i]);
        }
    }
    Values values() const {
        Values found;
        for (std::int64_t i = 0; i < sizes_[0] * sizes_[1] * sizes_[2] * count_; ++i) {
            found.push_back(half_ ? value_of(narrow_[place(i)]) : value_of(wide_[place(i)]));
        }
        return found;
    }
    void check(const char* name) {
        if (half_) check_memory(narrow_, name);
        else check_memory(wide_, name);
    }

private:
    static constexpr std::int64_t gap = 3;
    std::int64_t pitch() const { return count_ + gap; }
    std::int64_t numbers() const { return given_ ? sizes_[0] * sizes_[1] * sizes_[2] * pitch() - gap : 0; }
    std::int64_t place(std::int64_t i) const {
        const std::int64_t row = i / count_, k = row % sizes_[2], j = row / sizes_[2] % sizes_[1];
        return ((j * sizes_[0] + row / sizes_[2] / sizes_[1]) * sizes_[2] + k) * pitch() + i % count_;
    }
    template <typename T>
    void check_memory(Guarded<T>& memory, const char* name) {
        memory.check_guards(name);
        const Guarded<T> fresh(1);
        for (std::int64_t i = 0; i < memory.size(); ++i) {
            expect(i % pitch() < count_ || std::memcmp(&memory[i], &fresh[0], sizeof(T)) == 0, name,
                   ": written between rows");
        }
    }

    std::array<std::int64_t, 3> sizes_;
    std::int64_t count_;
    bool half_, given_;
    Guarded<float> wide_;
    Guarded<std::uint16_t> narrow_;
};

// All arguments of a call, or all gradients.
class Arguments {
public:
    Arguments(const Shape& s, bool half)
        : given_(s.given),
          tensors_{rows(s.batch, s.length, s.heads, s.head_dim, half), rows(s.batch, s.length, s.heads, 1, half),
                   rows(s.batch, s.length, s.groups, s.state, half), rows(s.batch, s.length, s.groups, s.state, half),
                   rows(s.batch, s.length, s.heads, s.head_dim, half, s.given & with_z),
                   rows(s.batch, s.heads, s.head_dim, s.state, false, s.given & with_states)},
          parameters_{parameter(s.heads), parameter(s.heads * s.head_dim), parameter(s.heads)} {}
    SsdScanTensors tensors() const {
        const auto at = [&](int i) { return tensors_[i]->view(); };
        return {at(x), at(dt), at(b), at(c), at(z), at(initial)};
    }
    SsdScanParameters parameters() const {
        return {parameters_[0]->data(), given_ & with_D ? parameters_[1]->data() : nullptr,
                given_ & with_dt_bias ? parameters_[2]->data() : nullptr};
    }
    bool has(int which) const {
        const int needed[] = {0, 0, 0, 0, with_z, with_states, 0, with_D, with_dt_bias};
        return (given_ & needed[which]) == needed[which];
    }
    void set(const Inputs& in) {
        for (int i = 0; i < inputs; ++i) {
            if (!has(i)) continue;
            if (i < A) tensors_[i]->set(in[i]);
            else std::copy(in[i].begin(), in[i].end(), parameters_[i - A]->data());
        }
    }
    Values values(int which) const {
        return which < A ? tensors_[which]->values() : values_of(*parameters_[which - A]);
    }
    void check() {
        for (int i = 0; i < inputs; ++i) {
            if (i < A) tensors_[i]->check(names[i]);
            else parameters_[i - A]->check_guards(names[i]);
        }
    }

private:
    static std::unique_ptr<Rows> rows(std::int64_t i, std::int64_t j, std::int64_t k, std::int64_t count, bool half,
                                      bool given = true) {
        return std::make_unique<Rows>(std::array<std::int64_t, 3>{i, j, k}, count, half, given);
    }
    static std::unique_ptr<Guarded<float>> parameter(std::int64_t count) {
        return std::make_unique<Guarded<float>>(count, 1);
    }
    int given_;
    std::unique_ptr<Rows> tensors_[6];
    std::unique_ptr<Guarded<float>> parameters_[3];
};

double product(const Values& one, const Values& other) {
    return std::inner_product(one.begin(), one.end(), other.begin(), 0.0);
}

// The gradient times a direction must be the slope along it: along one that moves all elements, then some alone.
void expect_gradient(const Shape& shape, const Inputs& in, const Results& grads, int which, const Values& found,
                     double tolerance, Numbers& numbers) {
    const double length = std::sqrt(product(found, found));
    for (int draw = 0; draw < 3; ++draw) {
        Values direction(found.size());
        if (draw == 0) direction = drawn(found.size(), -1, 1, false, numbers);
        else direction[numbers.below(direction.size())] = 1;
        constexpr double h = 1e-5;
        double ends[2];
        for (int end : {0, 1}) {
            Inputs moved = in;
            for (std::size_t i = 0; i < direction.size(); ++i) moved[which][i] += (end ? h : -h) * direction[i];
            const Results results = scan(shape, moved);
            ends[end] = product(results.y, grads.y) + product(results.final_states, grads.final_states);
        }
        const double slope = (ends[1] - ends[0]) / (2 * h), stated = product(found, direction);
        expect(std::abs(stated - slope) <= tolerance * length + 1e-6, "gradient of ", names[which], ": ", stated,
               " along a direction of slope ", slope, ", its length being ", length);
    }
}

void check_shape(const Setting& setting, const Shape& shape, bool half, double tolerance) {
    Numbers numbers(shape.length);
    const Shape& s = shape;
    const bool softplus_too = s.given & with_softplus;
    const SsdScanSizes sizes{s.batch, s.length, s.heads, s.head_dim, s.groups, s.state, softplus_too};
    const bool final_states = s.given & with_states;
    const Inputs in = drawn_inputs(s, half, numbers);
    Arguments arguments(s, half), found(s, half);
    arguments.set(in);
    Rows y({s.batch, s.length, s.heads}, s.head_dim, half);
    Rows final({s.batch, s.heads, s.head_dim}, s.state, false, final_states);
    ssd_scan(sizes, arguments.tensors(), arguments.parameters(), y.view(), final.view(), setting.isa, setting.threads);
    const Results wanted = scan(s, in);
    expect_near(y.values(), wanted.y, tolerance, "y");
    if (final_states) expect_near(final.values(), wanted.final_states, 2e-5, "final states");
    y.check("y");
    final.check("final states");

    Results grads{drawn(wanted.y.size(), -1, 1, half, numbers), Values(wanted.final_states.size())};
    if (final_states) grads.final_states = drawn(grads.final_states.size(), -1, 1, false, numbers);
    y.set(grads.y);
    if (final_states) final.set(grads.final_states);
    ssd_scan_backward(sizes, arguments.tensors(), arguments.parameters(), y.view(), final.view(), found.tensors(),
                      found.parameters(), setting.isa, setting.threads);
    found.check();
    arguments.check();
    for (int i = 0; i < inputs; ++i) {
        if (!found.has(i)) continue;
        expect(arguments.values(i) == in[i], names[i], ": written to");
        expect_gradient(s, in, grads, i, found.values(i), tolerance, numbers);
    }
}

void ssd_scan_all(const Setting& setting) {
    for (const Shape& shape : shapes) {
        check_shape(setting, shape, false, 2e-5);
        check_shape(setting, shape, true, 1e-2);
    }
}

const Registered check("ssd_scan", ssd_scan_all);

}  // namespace
}  // namespace medsora::check
