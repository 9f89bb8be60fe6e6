// path_scan against the recurrence, one token and one state at a time in double precision; its gradients against the
// slope of that along directions drawn at random.
#include "../cpu/path_scan.h"

#include "rows.h"
#include "slopes.h"

namespace medsora::check {
namespace {

struct Shape {
    std::int64_t frames, height, width;
    const char* kinds;  // one path each
    int heads, head_dim, groups, state, taps;
    bool bidirectional, norm_by_group;
    std::int64_t tokens() const { return frames * height * width; }
};

// Packed, alone in a tile and longer than one; sizes that fill registers and sizes that do not.
const Shape shapes[] = {
    {1, 1, 1, "a", 1, 1, 1, 1, 1, true, false},
    {3, 4, 5, "f", 2, 8, 1, 16, 4, true, false},
    {3, 4, 5, "hs", 3, 5, 3, 7, 3, true, true},
    {2, 3, 5, "t", 2, 32, 2, 16, 4, true, true},
    {5, 3, 3, "tf", 1, 33, 1, 17, 4, false, false},
    {7, 3, 2, "a", 2, 64, 1, 32, 4, true, false},
    {1, 13, 10, "s", 4, 16, 2, 16, 2, true, false},
    {3, 10, 11, "a", 2, 16, 1, 16, 4, true, false},
    {9, 3, 11, "a", 1, 3, 1, 5, 4, false, false},
};

PathScanSizes sizes_of(const Shape& shape, Element element) {
    const int width = shape.heads * shape.head_dim;
    return {2,           shape.heads,         shape.head_dim, shape.groups, shape.state,
            shape.taps,  shape.bidirectional, 1e-5f,          shape.norm_by_group ? width / shape.groups : width,
            element};
}

// What a scan is a function of: the rows, then the parameters in the order of PathScanParameters.
constexpr const char* names[] = {"zxbcdt", "conv_weight", "conv_bias", "dt_bias", "A", "D", "norm_weight"};

// One sequence in one direction: `tokens` in the order of the walk; adds to out (tokens, width).
void scan(const PathScanSizes& sizes, const Inputs& inputs, const std::vector<std::int64_t>& tokens, Values& out) {
    const int width = sizes.width(), mixed = sizes.mixed(), heads = sizes.heads, N = sizes.state, P = sizes.head_dim;
    const auto row = [&](std::size_t step) { return inputs[0].data() + tokens[step] * sizes.channels(); };
    Values state(std::size_t(width) * N), conv(mixed), y(width);
    for (std::size_t step = 0; step < tokens.size(); ++step) {
        for (int c = 0; c < mixed; ++c) {
            double sum = inputs[2][c];
            for (int tap = 0; tap < sizes.taps && tap <= static_cast<int>(step); ++tap) {
                sum += inputs[1][(sizes.taps - 1 - tap) * mixed + c] * row(step - tap)[width + c];
            }
            conv[c] = silu(sum);
        }
        for (int head = 0; head < heads; ++head) {
            const double dt = softplus(row(step)[width + mixed + head] + inputs[3][head]);
            const double decay = std::exp(dt * inputs[4][head]);
            const double* B = conv.data() + width + head / (heads / sizes.groups) * N;
            const double* C = B + sizes.groups * N;
            for (int p = head * P; p < (head + 1) * P; ++p) {
                y[p] = conv[p] * inputs[5][head];
                for (int n = 0; n < N; ++n) {
                    double& h = state[std::size_t(p) * N + n];
                    h = decay * h + dt * conv[p] * B[n];
                    y[p] += h * C[n];
                }
                y[p] *= silu(row(step)[p]);
            }
        }
        for (int first = 0; first < width; first += sizes.norm_group_size) {
            double squares = 0;
            for (int p = first; p < first + sizes.norm_group_size; ++p) squares += y[p] * y[p];
            const double scale = 1 / std::sqrt(squares / sizes.norm_group_size + sizes.eps);
            for (int p = first; p < first + sizes.norm_group_size; ++p) {
                out[tokens[step] * width + p] += y[p] * scale * inputs[6][p];
            }
        }
    }
}

Values scan_along(const PathScanSizes& sizes, const Inputs& inputs, const Path& path) {
    Values out(sizes.videos * path.tokens() * sizes.width());
    for (std::int64_t i = 0; i < sizes.videos * path.sequences; ++i) {
        std::vector<std::int64_t> tokens;
        for (std::int64_t s = 0; s < path.length; ++s) {
            tokens.push_back(i / path.sequences * path.tokens() + path.token(i % path.sequences, s));
        }
        scan(sizes, inputs, tokens, out);
        if (!sizes.bidirectional) continue;
        std::reverse(tokens.begin(), tokens.end());
        scan(sizes, inputs, tokens, out);
    }
    return out;
}

template <typename T>
TokenRows view(Rows<T>& rows) {
    return {rows.data(), rows.strides[0], rows.strides[1]};
}

template <typename T>
Inputs drawn_inputs(const PathScanSizes& sizes, std::int64_t tokens, Numbers& numbers) {
    const std::int64_t mixed = sizes.mixed(), heads = sizes.heads;
    return {drawn<T>(sizes.videos * tokens * sizes.channels(), -1.5, 1.5, numbers),
            drawn<float>(sizes.taps * mixed, -0.7, 0.7, numbers),
            drawn<float>(mixed, -0.5, 0.5, numbers),
            drawn<float>(heads, -1, 1, numbers),
            drawn<float>(heads, -1.5, -0.1, numbers),
            drawn<float>(heads, -1, 1, numbers),
            drawn<float>(sizes.width(), 0.5, 1.5, numbers)};
}

template <typename T>
void check_shape(const Setting& setting, const Shape& shape, Element element, double tolerance) {
    Numbers numbers(shape.tokens());
    const PathScanSizes sizes = sizes_of(shape, element);
    const std::int64_t tokens = shape.tokens();
    std::vector<std::unique_ptr<Walk>> walks;
    std::vector<Path> paths;
    for (const char* kind = shape.kinds; *kind; ++kind) {
        walks.push_back(std::make_unique<Walk>(*kind, shape.frames, shape.height, shape.width, numbers));
        paths.push_back(walks.back()->path());
    }
    const Inputs inputs = drawn_inputs<T>(sizes, tokens, numbers);
    std::vector<std::unique_ptr<Guarded<float>>> memory;
    for (std::size_t i = 1; i < inputs.size(); ++i) {
        memory.push_back(std::make_unique<Guarded<float>>(inputs[i].size(), i % 3));
        std::copy(inputs[i].begin(), inputs[i].end(), memory.back()->data());
    }
    const auto at = [&](int i) { return memory[i]->data(); };
    const PathScanParameters parameters{at(0), at(1), at(2), at(3), at(4), at(5)};
    Rows<T> rows(sizes.videos, tokens, 1, sizes.channels()), grad_rows(sizes.videos, tokens, 1, sizes.channels());
    rows.set(inputs[0]);

    std::vector<std::unique_ptr<Rows<T>>> outs, grads;
    std::vector<TokenRows> out_views, grad_views;
    std::vector<Values> grad_values;
    for (std::size_t i = 0; i < paths.size(); ++i) {
        outs.push_back(std::make_unique<Rows<T>>(sizes.videos, tokens, 1, sizes.width()));
        grads.push_back(std::make_unique<Rows<T>>(sizes.videos, tokens, 1, sizes.width()));
        grad_values.push_back(drawn<T>(sizes.videos * tokens * sizes.width(), -1, 1, numbers));
        grads.back()->set(grad_values.back());
        out_views.push_back(view(*outs.back()));
        grad_views.push_back(view(*grads.back()));
    }
    path_scan(sizes, parameters, view(rows), paths, out_views, setting.isa, setting.threads);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        outs[i]->check("out");
        expect_near(outs[i]->values(), scan_along(sizes, inputs, paths[i]), tolerance, "out");
    }

    Guarded<float> grad_parameters(parameter_floats(sizes));
    path_scan_backward(sizes, parameters, view(rows), paths, grad_views, view(grad_rows), grad_parameters.data(),
                       setting.isa, setting.threads);
    grad_rows.check("grad_rows");
    grad_parameters.check_guards("grad_parameters");
    rows.check("rows");
    expect(rows.values() == inputs[0], "rows: written to");
    const auto loss = [&](const Inputs& moved) {
        double sum = 0;
        for (std::size_t i = 0; i < paths.size(); ++i) {
            sum += product(scan_along(sizes, moved, paths[i]), grad_values[i]);
        }
        return sum;
    };
    expect_gradient(names[0], loss, inputs, 0, grad_rows.values(), tolerance, numbers);
    const float* from = grad_parameters.data();
    for (std::size_t i = 1; i < inputs.size(); ++i) {
        memory[i - 1]->check_guards(names[i]);
        const Values found(from, from + inputs[i].size());
        expect_gradient(names[i], loss, inputs, i, found, tolerance, numbers);
        from += inputs[i].size();
    }
}

void path_scan_all(const Setting& setting) {
    for (const Shape& shape : shapes) {
        check_shape<float>(setting, shape, Element::float32, 2e-5);
        check_shape<std::uint16_t>(setting, shape, Element::bfloat16, 1e-2);
    }
}

const Registered check("path_scan", path_scan_all);

}  // namespace
}  // namespace medsora::check
