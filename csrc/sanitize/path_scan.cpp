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
    bool bidirectional, norm_by_group, bias;
    std::int64_t tokens() const { return frames * height * width; }
};

// Packed, alone in a tile and longer than one, at last with a chunk shorter than the convolution; sizes that fill
// registers and sizes that do not.
const Shape shapes[] = {
    {1, 1, 1, "a", 1, 1, 1, 1, 1, true, false, true},
    {3, 4, 5, "f", 2, 8, 1, 16, 4, true, false, false},
    {3, 4, 5, "hs", 3, 5, 3, 7, 3, true, true, true},
    {2, 3, 5, "t", 2, 32, 2, 16, 4, true, true, true},
    {5, 3, 3, "tf", 1, 33, 1, 17, 4, false, false, true},
    {7, 3, 2, "a", 2, 64, 1, 32, 4, true, false, true},
    {1, 13, 10, "s", 4, 16, 2, 16, 2, true, false, true},
    {3, 10, 11, "a", 2, 16, 1, 16, 4, true, false, true},
    {9, 3, 11, "a", 1, 3, 1, 5, 4, false, false, false},
    {2, 1, 4513, "a", 1, 2, 1, 3, 4, true, false, true},
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
            double sum = inputs[2].empty() ? 0 : inputs[2][c];
            for (int tap = 0; tap < sizes.taps && tap <= static_cast<int>(step); ++tap) {
                sum += inputs[1][c * sizes.taps + sizes.taps - 1 - tap] * row(step - tap)[width + c];
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
Inputs drawn_inputs(const PathScanSizes& sizes, const Shape& shape, Numbers& numbers) {
    const std::int64_t mixed = sizes.mixed(), heads = sizes.heads;
    return {drawn<T>(sizes.videos * shape.tokens() * sizes.channels(), -1.5, 1.5, numbers),
            drawn<float>(sizes.taps * mixed, -0.7, 0.7, numbers),
            drawn<float>(shape.bias ? mixed : 0, -0.5, 0.5, numbers),
            drawn<float>(heads, -1, 1, numbers),
            drawn<float>(heads, -1.5, -0.1, numbers),
            drawn<float>(heads, -1, 1, numbers),
            drawn<float>(sizes.width(), 0.5, 1.5, numbers)};
}

// Memory for the parameters, or for their gradients; conv_bias may be missing.
class Parameters {
public:
    explicit Parameters(const Inputs& inputs) {
        for (std::size_t i = 1; i < inputs.size(); ++i) {
            memory_.push_back(std::make_unique<Guarded<float>>(inputs[i].size(), i % 3));
        }
    }
    PathScanParameters view() const {
        const auto at = [&](int i) { return memory_[i]->size() ? memory_[i]->data() : nullptr; };
        return {at(0), at(1), at(2), at(3), at(4), at(5)};
    }
    void set(const Inputs& inputs) {
        for (std::size_t i = 1; i < inputs.size(); ++i) {
            std::copy(inputs[i].begin(), inputs[i].end(), memory_[i - 1]->data());
        }
    }
    Values values(std::size_t which) const { return values_of(*memory_[which - 1]); }
    void check() {
        for (std::size_t i = 0; i < memory_.size(); ++i) memory_[i]->check_guards(names[i + 1]);
    }

private:
    std::vector<std::unique_ptr<Guarded<float>>> memory_;
};

template <typename T>
void check_shape(const Setting& setting, const Shape& shape, Element element, double tolerance) {
    Numbers numbers(shape.tokens());
    const PathScanSizes sizes = sizes_of(shape, element);
    const std::int64_t tokens = shape.tokens();
    tolerance *= std::sqrt(std::max(1.0, tokens / 500.0));  // sums over tokens round off as a random walk does
    std::vector<std::unique_ptr<Walk>> walks;
    std::vector<Path> paths;
    for (const char* kind = shape.kinds; *kind; ++kind) {
        walks.push_back(std::make_unique<Walk>(*kind, shape.frames, shape.height, shape.width, numbers));
        paths.push_back(walks.back()->path());
    }
    const Inputs inputs = drawn_inputs<T>(sizes, shape, numbers);
    Parameters parameters(inputs), grad_parameters(inputs);
    parameters.set(inputs);
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
    path_scan(sizes, parameters.view(), view(rows), paths, out_views, setting.isa, setting.threads);
    for (std::size_t i = 0; i < paths.size(); ++i) {
        outs[i]->check("out");
        expect_near(outs[i]->values(), scan_along(sizes, inputs, paths[i]), tolerance, "out");
    }

    path_scan_backward(sizes, parameters.view(), view(rows), paths, grad_views, view(grad_rows), grad_parameters.view(),
                       setting.isa, setting.threads);
    grad_rows.check("grad_rows");
    rows.check("rows");
    parameters.check();
    grad_parameters.check();
    expect(rows.values() == inputs[0], "rows: written to");
    const auto loss = [&](const Inputs& moved) {
        double sum = 0;
        for (std::size_t i = 0; i < paths.size(); ++i) {
            sum += product(scan_along(sizes, moved, paths[i]), grad_values[i]);
        }
        return sum;
    };
    expect_gradient(names[0], loss, inputs, 0, grad_rows.values(), tolerance, numbers);
    for (std::size_t i = 1; i < inputs.size(); ++i) {
        if (inputs[i].empty()) continue;
        expect(parameters.values(i) == inputs[i], names[i], ": written to");
        expect_gradient(names[i], loss, inputs, i, grad_parameters.values(i), tolerance, numbers);
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
