// The frequency operators against Fourier sums written out, in double precision.
#include "../cpu/spectral.h"

#include <complex>

#include "check.h"

namespace medsora::check {
namespace {

using Values = std::vector<double>;
using Complex = std::complex<double>;
using Spectrum = std::vector<Complex>;  // (height, width), all of it

// Thin, odd, powers of two, mixed, and with prime factors of their own; the last enough for two threads.
constexpr struct { int height, width; } sides[] = {
    {1, 1}, {1, 6}, {7, 1}, {2, 2}, {3, 5}, {4, 9}, {8, 8}, {10, 16}, {16, 24}, {15, 21}, {26, 22}, {34, 19}, {40, 24},
    {48, 40},
};
// As many images of these as make results pass the caches by, if their rows lie side by side.
constexpr struct { int height, width; std::int64_t gap; } many_of[] = {{15, 21, 0}, {16, 32, 0}, {15, 21, 3}};
constexpr std::int64_t caches_cannot_keep = 13 << 19;  // bytes, to read and as many to write

constexpr std::int64_t videos = 2, channels = 3, frames = 2, images = videos * channels * frames;

// Sums along rows, then along columns; orthonormal. sign: -1 forward, 1 back.
Spectrum transformed(const Spectrum& from, int height, int width, int sign) {
    Spectrum to = from;
    const auto along = [&](int count, int step, int lines, int line_step) {
        const Spectrum source = to;
        for (int line = 0; line < lines; ++line) {
            for (int k = 0; k < count; ++k) {
                Complex sum = 0;
                for (int i = 0; i < count; ++i) {
                    const double turn = 2 * std::acos(-1.0) * (static_cast<std::int64_t>(i) * k % count) / count;
                    sum += source[line * line_step + i * step] * std::polar(1.0, sign * turn);
                }
                to[line * line_step + k * step] = sum / std::sqrt(static_cast<double>(count));
            }
        }
    };
    along(width, 1, height, width);
    along(height, width, width, 1);
    return to;
}

Spectrum spectrum_of(const double* image, int height, int width) {
    return transformed(Spectrum(image, image + height * width), height, width, -1);
}

// The weight of one channel over the whole spectrum: the part of it that leaves real images real.
Spectrum acting(const double* half, int height, int width) {
    const int bins = width / 2 + 1;
    const auto given = [&](int ky, int kx) {
        const double* at = half + 2 * (static_cast<std::int64_t>(ky) * bins + kx);
        return Complex(at[0], at[1]);
    };
    Spectrum weight;
    for (int ky = 0; ky < height; ++ky) {
        const int mirrored = (height - ky) % height;
        for (int kx = 0; kx < width; ++kx) {
            if (kx == 0 || 2 * kx == width) weight.push_back((given(ky, kx) + std::conj(given(mirrored, kx))) / 2.0);
            else weight.push_back(kx < bins ? given(ky, kx) : std::conj(given(mirrored, width - kx)));
        }
    }
    return weight;
}

// The images of (channels, videos, frames) in that order, all frames several times in a row; in memory as (videos,
// channels, frames, rows) with gaps.
template <typename T>
class Stack {
public:
    Stack(int height, int width, std::int64_t copies = 1, std::int64_t gap = 3)
        : height_(height), width_(width), copies_(copies), pitch_(width + gap), plane_(height * pitch_ + 2),
          memory_(images * copies * plane_ - gap - 2), view_{memory_.bytes(), {}, {}, size(pitch_)} {
        const std::int64_t all = frames * copies;
        view_.sizes = {channels, videos, all};
        view_.strides = {size(all * plane_), size(channels * all * plane_), size(plane_)};
    }
    const Images& view() const { return view_; }
    std::int64_t count() const { return images * copies_ * height_ * width_; }
    Values repeated(const Values& once) const {
        const std::int64_t block = frames * height_ * width_;
        Values values;
        for (std::int64_t first = 0; first < images * height_ * width_; first += block) {
            for (std::int64_t copy = 0; copy < copies_; ++copy) {
                values.insert(values.end(), once.begin() + first, once.begin() + first + block);
            }
        }
        return values;
    }
    void fill(const Values& once) {
        const Values values = repeated(once);
        for (std::int64_t i = 0; i < count(); ++i) at(i) = stored_as<T>(values[i]);
    }
    Values values() {
        Values found;
        for (std::int64_t i = 0; i < count(); ++i) found.push_back(value_of(at(i)));
        return found;
    }
    void check(const char* name) {
        memory_.check_guards(name);
        std::vector<bool> between(memory_.size(), true);
        for (std::int64_t i = 0; i < count(); ++i) between[&at(i) - memory_.data()] = false;
        const Guarded<T> fresh(1);
        for (std::int64_t i = 0; i < memory_.size(); ++i) {
            expect(!between[i] || std::memcmp(&memory_[i], &fresh[0], sizeof(T)) == 0, name, ": written between rows");
        }
    }

private:
    static std::int64_t size(std::int64_t count) { return count * static_cast<std::int64_t>(sizeof(T)); }
    T& at(std::int64_t i) {
        const std::int64_t image = i / (height_ * width_), row = i / width_ % height_, column = i % width_;
        return *(reinterpret_cast<T*>(view_.at(image) + row * view_.row) + column);
    }
    std::int64_t height_, width_, copies_, pitch_, plane_;
    Guarded<T> memory_;
    Images view_;
};

template <typename T>
Values drawn(std::int64_t count, Numbers& numbers) {
    Values values(count);
    for (double& value : values) value = value_of(stored_as<T>(numbers.next()));
    return values;
}

struct Filtered {
    Values y, grad_x, grad_weight;
};

Filtered filtered(const Values& x, const Values& grad, const Values& weight, int height, int width) {
    const std::int64_t pixels = height * width, bins = width / 2 + 1, each = 2 * height * bins;
    Filtered wanted{x, grad, Values(channels * each)};
    for (std::int64_t image = 0; image < images; ++image) {
        const std::int64_t channel = image / (videos * frames), first = image * pixels;
        const Spectrum w = acting(weight.data() + channel * each, height, width);
        const Spectrum of_x = spectrum_of(x.data() + first, height, width);
        const Spectrum of_grad = spectrum_of(grad.data() + first, height, width);
        Spectrum there(pixels), back(pixels);
        for (std::int64_t k = 0; k < pixels; ++k) there[k] = w[k] * of_x[k], back[k] = std::conj(w[k]) * of_grad[k];
        there = transformed(there, height, width, 1);
        back = transformed(back, height, width, 1);
        for (std::int64_t i = 0; i < pixels; ++i) {
            wanted.y[first + i] += there[i].real();
            wanted.grad_x[first + i] += back[i].real();
        }
        for (std::int64_t bin = 0; bin < height * bins; ++bin) {
            const std::int64_t kx = bin % bins, k = bin / bins * width + kx;
            const double times = kx == 0 || 2 * kx == width ? 1 : 2;  // how often it stands in the whole spectrum
            const Complex slope = times * std::conj(of_x[k]) * of_grad[k];
            wanted.grad_weight[channel * each + 2 * bin] += slope.real();
            wanted.grad_weight[channel * each + 2 * bin + 1] += slope.imag();
        }
    }
    return wanted;
}

template <typename T>
void check_filter(const Setting& setting, int height, int width, Element element, double tolerance,
                  std::int64_t copies = 1, std::int64_t gap = 3) {
    Numbers numbers(height * 1000 + width);
    const auto tables = spectral_plan(height, width);
    const std::int64_t pixels = height * width;
    const Values weight = drawn<float>(channels * 2 * tables->plan.bins(), numbers);
    const Values x_values = drawn<T>(images * pixels, numbers), grad_values = drawn<T>(images * pixels, numbers);
    Guarded<float> weights(weight.size(), 1), grad_weights(weight.size(), 1);
    std::copy(weight.begin(), weight.end(), weights.data());
    Stack<T> x(height, width, copies), y(height, width, copies, gap);
    Stack<T> grad(height, width, copies), grad_x(height, width, copies, gap);
    x.fill(x_values);
    grad.fill(grad_values);
    spectral_filter(tables->plan, element, x.view(), weights.data(), y.view(), channels, setting.isa, setting.threads);
    spectral_filter_backward(tables->plan, element, grad.view(), x.view(), weights.data(), grad_x.view(),
                             grad_weights.data(), channels, setting.isa, setting.threads);
    for (Stack<T>* stack : {&x, &y, &grad, &grad_x}) stack->check("images");
    weights.check_guards("weight");
    grad_weights.check_guards("gradient of weight");
    expect(x.values() == x.repeated(x_values), "x: written to");
    expect(grad.values() == x.repeated(grad_values), "gradient of y: written to");
    Filtered wanted = filtered(x_values, grad_values, weight, height, width);
    for (double& slope : wanted.grad_weight) slope *= copies;
    const std::string size = " of " + std::to_string(height) + " x " + std::to_string(width);
    expect_near(y.values(), y.repeated(wanted.y), tolerance, "y" + size);
    expect_near(grad_x.values(), y.repeated(wanted.grad_x), tolerance, "gradient of x" + size);
    expect_near(values_of(grad_weights), wanted.grad_weight, 1e-5, "gradient of weight" + size);
}

double focal_weight(double magnitude, FocalWeight how) {
    const double power = std::pow(magnitude, static_cast<double>(how.alpha));
    return how.logarithm ? std::log(power + 1) : power;
}

// The loss, and its gradient as `scale` times the inverse of weight times difference.
struct Focal {
    double loss = 0;
    Values gradient;
};

Focal focal(const Values& difference, FocalWeight how, bool largest_of_all, double scale, int height, int width) {
    const std::int64_t pixels = height * width;
    std::vector<Spectrum> spectra;
    Values largest;
    for (std::int64_t image = 0; image < images; ++image) {
        spectra.push_back(spectrum_of(difference.data() + image * pixels, height, width));
        largest.push_back(0);
        for (const Complex& d : spectra.back()) {
            largest.back() = std::max(largest.back(), focal_weight(std::abs(d), how));
        }
    }
    if (largest_of_all) largest.assign(images, *std::max_element(largest.begin(), largest.end()));
    Focal wanted;
    for (std::int64_t image = 0; image < images; ++image) {
        for (Complex& d : spectra[image]) {
            const double weight = focal_weight(std::abs(d), how) / largest[image];
            wanted.loss += weight * std::norm(d) / (images * pixels);
            d *= weight;
        }
        for (const Complex& d : transformed(spectra[image], height, width, 1)) {
            wanted.gradient.push_back(scale * d.real());
        }
    }
    return wanted;
}

template <typename T>
void check_focal(const Setting& setting, int height, int width, Element element, double tolerance) {
    Numbers numbers(height * 1000 + width);
    const auto tables = spectral_plan(height, width);
    const Values one = drawn<T>(images * height * width, numbers), other = drawn<T>(images * height * width, numbers);
    Values difference = one;
    for (std::size_t i = 0; i < one.size(); ++i) difference[i] -= other[i];
    Stack<T> pred(height, width), target(height, width);
    pred.fill(one);
    target.fill(other);
    const std::string size = " of " + std::to_string(height) + " x " + std::to_string(width);
    for (const FocalWeight how : {FocalWeight{1.0f, false}, FocalWeight{1.0f, true}, FocalWeight{1.5f, false}}) {
        for (bool largest_of_all : {false, true}) {
            const FocalCall call{tables->plan, element, pred.view(), target.view(), how, largest_of_all, setting.isa,
                                 setting.threads};
            constexpr float scale = 0.75f;
            const Focal wanted = focal(difference, how, largest_of_all, scale, height, width);
            Stack<T> grad(height, width);
            focal_gradient(call, scale, grad.view());
            grad.check("gradient");
            expect_near({focal_loss(call)}, {wanted.loss}, 1e-5, "loss" + size);
            expect_near(grad.values(), wanted.gradient, tolerance, "gradient" + size);
        }
    }
    pred.check("pred");
    target.check("target");
    expect(pred.values() == one && target.values() == other, "pred or target: written to");
}

void filter_all(const Setting& setting) {
    for (const auto& side : sides) {
        check_filter<float>(setting, side.height, side.width, Element::float32, 2e-6);
        check_filter<std::uint16_t>(setting, side.height, side.width, Element::bfloat16, 4e-3);
    }
    for (const auto& many : many_of) {
        const std::int64_t pixels = images * many.height * many.width;
        check_filter<float>(setting, many.height, many.width, Element::float32, 2e-6,
                            caches_cannot_keep / (4 * pixels) + 1, many.gap);
        check_filter<std::uint16_t>(setting, many.height, many.width, Element::bfloat16, 4e-3,
                                    caches_cannot_keep / (2 * pixels) + 1, many.gap);
    }
}

void focal_all(const Setting& setting) {
    for (const auto& side : sides) {
        check_focal<float>(setting, side.height, side.width, Element::float32, 1e-5);
        check_focal<std::uint16_t>(setting, side.height, side.width, Element::bfloat16, 4e-3);
    }
}

const Registered filter_check("spectral_filter", filter_all), focal_check("focal_frequency_loss", focal_all);

}  // namespace
}  // namespace medsora::check
