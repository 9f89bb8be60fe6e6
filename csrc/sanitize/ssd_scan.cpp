// ssd_scan against the recurrence, one token and one state at a time in double precision; its gradients against the
// slope of that along directions drawn at random.
#include "../cpu/ssd_scan.h"

#include "rows.h"
#include "slopes.h"

namespace medsora::check {
namespace {

enum Options { bias = 1, with_softplus = 2, skip = 4, gate = 8, with_states = 16, everything = 31 };

struct Shape {
    std::int64_t batch, length;
    int heads, head_dim, groups, state, options;
};

// One token, short, about a chunk, several chunks; sizes that fill registers and sizes that do not; groups whole and in
// parts; each option with and without the others.
const Shape shapes[] = {
    {1, 1, 1, 1, 1, 1, everything},
    {2, 5, 2, 8, 1, 16, 0},
    {2, 13, 3, 5, 3, 7, bias | with_softplus | skip | with_states},
    {3, 16, 2, 16, 1, 16, skip | with_softplus},
    {2, 17, 4, 5, 2, 7, everything},
    {1, 33, 9, 8, 1, 17, gate | bias},
    {2, 33, 8, 16, 1, 16, bias | with_softplus | gate},
    {1, 40, 2, 16, 1, 16, with_states},
    {2, 97, 4, 33, 2, 17, skip | gate | with_states},
    {2, 130, 2, 64, 1, 32, everything},
    {2, 259, 1, 4, 1, 3, gate | with_softplus},
    {1, 270, 8, 3, 1, 5, everything},
    {2, 300, 2, 16, 2, 16, everything},
    {2, 600, 1, 3, 1, 5, with_states},
};

// What a scan is a function of. Those not given are empty.
enum { of_x, of_dt, of_b, of_c, of_z, of_states, of_A, of_D, of_bias, inputs_count };
constexpr const char* names[] = {"x", "dt", "B", "C", "z", "initial_states", "A", "D", "dt_bias"};

struct Scanned {
    Values y, states;
};

Scanned scan(const Shape& shape, const Inputs& in) {
    const int heads = shape.heads, P = shape.head_dim, N = shape.state;
    Scanned found{Values(shape.batch * shape.length * heads * P), in[of_states]};
    found.states.resize(shape.batch * heads * P * N);
    for (std::int64_t row = 0; row < shape.batch * shape.length * heads; ++row) {  // in order of tokens
        const std::int64_t head = row % heads, token = row / heads, sequence = token / shape.length;
        const std::int64_t shared = (token * shape.groups + head / (heads / shape.groups)) * N;
        double dt = in[of_dt][row] + (shape.options & bias ? in[of_bias][head] : 0);
        if (shape.options & with_softplus) dt = softplus(dt);
        const double decay = std::exp(dt * in[of_A][head]);
        for (int p = 0; p < P; ++p) {
            const double x = in[of_x][row * P + p];
            double sum = shape.options & skip ? x * in[of_D][head * P + p] : 0;
            for (int n = 0; n < N; ++n) {
                double& h = found.states[((sequence * heads + head) * P + p) * N + n];
                h = decay * h + dt * x * in[of_b][shared + n];
                sum += h * in[of_c][shared + n];
            }
            found.y[row * P + p] = shape.options & gate ? sum * silu(in[of_z][row * P + p]) : sum;
        }
    }
    return found;
}

template <typename T>
Inputs drawn_inputs(const Shape& shape, Numbers& numbers) {
    const std::int64_t tokens = shape.batch * shape.length, heads = shape.heads, channels = heads * shape.head_dim;
    const auto given = [&](int option, std::int64_t count) { return shape.options & option ? count : 0; };
    Inputs in(inputs_count);
    in[of_x] = drawn<T>(tokens * channels, -1, 1, numbers);
    in[of_dt] = shape.options & with_softplus ? drawn<T>(tokens * heads, -2, 1, numbers)
                                              : drawn<T>(tokens * heads, 0.05, 0.5, numbers);
    in[of_b] = drawn<T>(tokens * shape.groups * shape.state, -1, 1, numbers);
    in[of_c] = drawn<T>(tokens * shape.groups * shape.state, -1, 1, numbers);
    in[of_z] = drawn<T>(given(gate, tokens * channels), -1, 1, numbers);
    in[of_states] = drawn<float>(given(with_states, shape.batch * channels * shape.state), -1, 1, numbers);
    in[of_A] = drawn<float>(heads, -1.5, -0.1, numbers);
    in[of_D] = drawn<float>(given(skip, channels), -1, 1, numbers);
    in[of_bias] = drawn<float>(given(bias, heads), 0, 0.5, numbers);
    return in;
}

// Memory for all inputs, or for their gradients; states are stored as float32, what has tokens as T.
template <typename T>
struct Stored {
    Rows<T> x, b, c, z, dt;
    Rows<float> states;
    Guarded<float> A, D, dt_bias;
    const Inputs& given;

    Stored(const Shape& s, const Inputs& given)
        : x(s.batch, s.length, s.heads, s.head_dim), b(s.batch, s.length, s.groups, s.state),
          c(s.batch, s.length, s.groups, s.state), z(s.batch, s.length, s.heads, s.head_dim),
          dt(s.batch, s.length, s.heads, 1), states(s.batch, s.heads, s.head_dim, s.state), A(s.heads),
          D(s.heads * s.head_dim, 1), dt_bias(s.heads, 2), given(given) {}

    template <typename R>
    StridedRows view(Rows<R>& rows, int which) {
        if (given[which].empty()) return {};
        return strided(rows);
    }
    template <typename R>
    static StridedRows strided(Rows<R>& rows) {
        const Element element = std::is_same_v<R, float> ? Element::float32 : Element::bfloat16;
        return {rows.data(), element, {rows.strides[0], rows.strides[1], rows.strides[2]}};
    }
    SsdScanTensors tensors() {
        return {view(x, of_x), view(dt, of_dt), view(b, of_b), view(c, of_c), view(z, of_z), view(states, of_states)};
    }
    SsdScanParameters parameters() {
        return {A.data(), given[of_D].empty() ? nullptr : D.data(), given[of_bias].empty() ? nullptr : dt_bias.data()};
    }
    void set() {
        const auto put = [&](auto& rows, int which) {
            if (!given[which].empty()) rows.set(given[which]);
        };
        put(x, of_x), put(dt, of_dt), put(b, of_b), put(c, of_c), put(z, of_z), put(states, of_states);
        std::copy(given[of_A].begin(), given[of_A].end(), A.data());
        std::copy(given[of_D].begin(), given[of_D].end(), D.data());
        std::copy(given[of_bias].begin(), given[of_bias].end(), dt_bias.data());
    }
    Inputs values() {
        return {x.values(), dt.values(), b.values(), c.values(), z.values(), states.values(),
                values_of(A), values_of(D), values_of(dt_bias)};
    }
    void check() {
        x.check(names[of_x]), dt.check(names[of_dt]), b.check(names[of_b]), c.check(names[of_c]);
        z.check(names[of_z]), states.check(names[of_states]);
        A.check_guards(names[of_A]), D.check_guards(names[of_D]), dt_bias.check_guards(names[of_bias]);
    }
};

template <typename T>
void check_shape(const Setting& setting, const Shape& shape, double tolerance) {
    Numbers numbers(shape.length);
    const std::int64_t batch = shape.batch;
    const bool softplus_too = shape.options & with_softplus, states_too = shape.options & with_states;
    const SsdScanSizes sizes{batch,        shape.length, shape.heads, shape.head_dim,
                             shape.groups, shape.state,  softplus_too};
    const Inputs in = drawn_inputs<T>(shape, numbers);
    Stored<T> inputs(shape, in), grads(shape, in);
    inputs.set();
    Rows<T> y(batch, shape.length, shape.heads, shape.head_dim);
    Rows<T> grad_y(batch, shape.length, shape.heads, shape.head_dim);
    Rows<float> states(batch, shape.heads, shape.head_dim, shape.state);
    Rows<float> grad_states(batch, shape.heads, shape.head_dim, shape.state);
    const StridedRows states_view = states_too ? inputs.strided(states) : StridedRows{};
    const StridedRows grad_states_view = states_too ? inputs.strided(grad_states) : StridedRows{};
    const Values of_y = drawn<T>(y.size(), -1, 1, numbers), of_final = drawn<float>(states.size(), -1, 1, numbers);
    grad_y.set(of_y);
    grad_states.set(of_final);

    ssd_scan(sizes, inputs.tensors(), inputs.parameters(), inputs.strided(y), states_view, setting.isa,
             setting.threads);
    const Scanned wanted = scan(shape, in);
    y.check("y");
    states.check("final states");
    expect_near(y.values(), wanted.y, tolerance, "y");
    if (states_too) expect_near(states.values(), wanted.states, 2e-5, "final states");

    ssd_scan_backward(sizes, inputs.tensors(), inputs.parameters(), inputs.strided(grad_y), grad_states_view,
                      grads.tensors(), grads.parameters(), setting.isa, setting.threads);
    inputs.check();
    grads.check();
    const Inputs kept = inputs.values(), found = grads.values();
    const auto loss = [&](const Inputs& moved) {
        const Scanned scanned = scan(shape, moved);
        return product(scanned.y, of_y) + (states_too ? product(scanned.states, of_final) : 0);
    };
    for (int which = 0; which < inputs_count; ++which) {
        if (in[which].empty()) continue;
        expect(kept[which] == in[which], names[which], ": written to");
        expect_gradient(names[which], loss, in, which, found[which], tolerance, numbers);
    }
}

void ssd_scan_all(const Setting& setting) {
    for (const Shape& shape : shapes) {
        check_shape<float>(setting, shape, 2e-5);
        check_shape<std::uint16_t>(setting, shape, 1e-2);
    }
}

const Registered check("ssd_scan", ssd_scan_all);

}  // namespace
}  // namespace medsora::check
