// The Python face of the frequency operators: on the CPU, on a GPU, and on the CPU as a GPU does them.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "bindings.h"
#include "cpu/isa.h"
#include "cpu/spectral.h"
#include "cpu/spectral_in_blocks.h"
#ifdef MEDSORA_CUDA
#include "cuda/spectral.h"
#endif

namespace py = pybind11;

namespace {

using medsora::Address;
using medsora::element_named;
#ifdef MEDSORA_CUDA
using medsora::stream_at;
using medsora::StreamTuple;
#endif

// Address, sizes and strides (bytes) of the leading dimensions, and bytes between rows.
using ImagesTuple = std::tuple<Address, std::vector<std::int64_t>, std::vector<std::int64_t>, std::int64_t>;

medsora::Images images_at(const ImagesTuple& images) {
    const auto& [address, sizes, strides, row] = images;
    if (sizes.size() != strides.size()) throw std::invalid_argument("images: wants a stride for each size");
    return {reinterpret_cast<char*>(address), sizes, strides, row};
}

using Sides = std::array<int, 2>;  // height, width

void spectral_filter(const ImagesTuple& x, Address weight, const ImagesTuple& y, std::int64_t channels,
                     const Sides& sides, std::string_view dtype, int threads) {
    const auto tables = medsora::spectral_plan(sides[0], sides[1]);
    const medsora::Element element = element_named(dtype);
    const medsora::Isa isa = medsora::isa_in_use();
    py::gil_scoped_release release;
    medsora::spectral_filter(tables->plan, element, images_at(x), reinterpret_cast<const float*>(weight), images_at(y),
                             channels, isa, threads);
}

void spectral_filter_backward(const ImagesTuple& grad, const ImagesTuple& x, Address weight, const ImagesTuple& grad_x,
                              Address grad_weight, std::int64_t channels, const Sides& sides, std::string_view dtype,
                              int threads) {
    const auto tables = medsora::spectral_plan(sides[0], sides[1]);
    const medsora::Element element = element_named(dtype);
    const medsora::Isa isa = medsora::isa_in_use();
    py::gil_scoped_release release;
    medsora::spectral_filter_backward(tables->plan, element, images_at(grad), images_at(x),
                                      reinterpret_cast<const float*>(weight), images_at(grad_x),
                                      reinterpret_cast<float*>(grad_weight), channels, isa, threads);
}

double focal_loss(const ImagesTuple& pred, const ImagesTuple& target, float alpha, bool logarithm,
                  bool largest_of_all, const Sides& sides, std::string_view dtype, int threads) {
    const auto tables = medsora::spectral_plan(sides[0], sides[1]);
    const medsora::FocalCall call{tables->plan, element_named(dtype), images_at(pred), images_at(target),
                                  {alpha, logarithm}, largest_of_all, medsora::isa_in_use(), threads};
    py::gil_scoped_release release;
    return medsora::focal_loss(call);
}

void focal_gradient(const ImagesTuple& pred, const ImagesTuple& target, const ImagesTuple& grad_pred, double scale,
                    float alpha, bool logarithm, bool largest_of_all, const Sides& sides, std::string_view dtype,
                    int threads) {
    const auto tables = medsora::spectral_plan(sides[0], sides[1]);
    const medsora::FocalCall call{tables->plan, element_named(dtype), images_at(pred), images_at(target),
                                  {alpha, logarithm}, largest_of_all, medsora::isa_in_use(), threads};
    const medsora::Images out = images_at(grad_pred);
    py::gil_scoped_release release;
    medsora::focal_gradient(call, scale, out);
}

// Address (0: not there), sizes and strides (bytes) of three leading dimensions, and bytes between rows.
using BlockImagesTuple = std::tuple<Address, std::array<std::int64_t, 3>, std::array<std::int64_t, 3>, std::int64_t>;
using ChipTuple = std::array<int, 2>;  // shared memory of a block in bytes, multiprocessors

medsora::ImageTensor image_tensor_at(const BlockImagesTuple& images) {
    const auto& [address, sizes, strides, row] = images;
    medsora::ImageTensor found{reinterpret_cast<char*>(address), {}, {}, row};
    std::copy_n(sizes.begin(), 3, found.sizes);
    std::copy_n(strides.begin(), 3, found.strides);
    return found;
}

medsora::Chip chip_at(const ChipTuple& chip) { return {chip[0], chip[1]}; }

medsora::FilterCall filter_call(const BlockImagesTuple& x, Address weight, const BlockImagesTuple& y, bool wide,
                                const Sides& sides, std::string_view dtype, const ChipTuple& chip) {
    return {sides[0], sides[1], element_named(dtype), image_tensor_at(x), {}, image_tensor_at(y),
            reinterpret_cast<const float*>(weight), wide, nullptr, chip_at(chip)};
}

medsora::FilterCall filter_gradient_call(const BlockImagesTuple& grad, const BlockImagesTuple& x, Address weight,
                                         const BlockImagesTuple& grad_x, Address scratch, bool wide,
                                         const Sides& sides, std::string_view dtype, const ChipTuple& chip) {
    return {sides[0], sides[1], element_named(dtype), image_tensor_at(x), image_tensor_at(grad),
            image_tensor_at(grad_x), reinterpret_cast<const float*>(weight), wide, reinterpret_cast<float*>(scratch),
            chip_at(chip)};
}

medsora::FocalTask focal_task_named(std::string_view task) {
    if (task == "largest") return medsora::FocalTask::largest;
    if (task == "loss") return medsora::FocalTask::loss;
    if (task == "gradient") return medsora::FocalTask::gradient;
    throw std::invalid_argument("task: got " + std::string(task) + ", wants largest, loss or gradient");
}

medsora::FocalCallInBlocks focal_call(const BlockImagesTuple& pred, const BlockImagesTuple& target,
                                      const BlockImagesTuple& grad_pred, float alpha, bool logarithm, Address largest,
                                      Address found, Address grad, std::string_view grad_dtype, double scale,
                                      const Sides& sides, std::string_view dtype, const ChipTuple& chip) {
    return {sides[0], sides[1], element_named(dtype), image_tensor_at(pred), image_tensor_at(target),
            image_tensor_at(grad_pred), alpha, logarithm, reinterpret_cast<double*>(largest),
            reinterpret_cast<double*>(found), reinterpret_cast<const void*>(grad), element_named(grad_dtype), scale,
            chip_at(chip)};
}

medsora::FocalMeanJob focal_mean_job(Address found, std::int64_t blocks, double scale, Address loss,
                                     std::string_view dtype) {
    return {reinterpret_cast<const double*>(found), blocks, scale, reinterpret_cast<void*>(loss),
            element_named(dtype)};
}

std::int64_t spectral_filter_in_blocks(const BlockImagesTuple& x, Address weight, const BlockImagesTuple& y, bool wide,
                                       const Sides& sides, std::string_view dtype, const ChipTuple& chip) {
    return medsora::spectral_filter_in_blocks_on_cpu(filter_call(x, weight, y, wide, sides, dtype, chip));
}

std::int64_t spectral_filter_backward_in_blocks(const BlockImagesTuple& grad, const BlockImagesTuple& x,
                                                Address weight, const BlockImagesTuple& grad_x, Address grad_weight,
                                                Address scratch, bool wide, const Sides& sides, std::string_view dtype,
                                                const ChipTuple& chip) {
    return medsora::spectral_filter_backward_in_blocks_on_cpu(
        filter_gradient_call(grad, x, weight, grad_x, scratch, wide, sides, dtype, chip),
        reinterpret_cast<float*>(grad_weight));
}

std::int64_t focal_in_blocks(const BlockImagesTuple& pred, const BlockImagesTuple& target,
                             const BlockImagesTuple& grad_pred, std::string_view task, float alpha, bool logarithm,
                             Address largest, Address found, Address grad, std::string_view grad_dtype, double scale,
                             const Sides& sides, std::string_view dtype, const ChipTuple& chip) {
    return medsora::focal_in_blocks_on_cpu(focal_call(pred, target, grad_pred, alpha, logarithm, largest, found, grad,
                                                      grad_dtype, scale, sides, dtype, chip),
                                           focal_task_named(task));
}

void focal_mean_in_blocks(Address found, std::int64_t blocks, double scale, Address loss, std::string_view dtype) {
    medsora::focal_mean_on_cpu(focal_mean_job(found, blocks, scale, loss, dtype));
}

std::int64_t spectral_shared_bytes(const Sides& sides) {
    return medsora::spectral_shared_bytes(sides[0], sides[1]);
}

std::int64_t spectral_filter_scratch(const Sides& sides, std::int64_t channels, std::int64_t channel_images,
                                     const ChipTuple& chip) {
    return medsora::filter_scratch(sides[0], sides[1], channels, channel_images, chip_at(chip));
}

std::int64_t focal_blocks(const Sides& sides, std::int64_t images, const ChipTuple& chip) {
    return medsora::focal_blocks(sides[0], sides[1], images, chip_at(chip));
}

#ifdef MEDSORA_CUDA

ChipTuple cuda_chip(int device) {
    const medsora::Chip chip = medsora::cuda::chip(device);
    return {chip.shared_bytes, chip.multiprocessors};
}

void cuda_spectral_filter(const BlockImagesTuple& x, Address weight, const BlockImagesTuple& y, bool wide,
                          const Sides& sides, std::string_view dtype, const ChipTuple& chip,
                          const StreamTuple& stream) {
    const auto call = filter_call(x, weight, y, wide, sides, dtype, chip);
    py::gil_scoped_release release;
    medsora::cuda::spectral_filter(call, stream_at(stream));
}

void cuda_spectral_filter_backward(const BlockImagesTuple& grad, const BlockImagesTuple& x, Address weight,
                                   const BlockImagesTuple& grad_x, Address grad_weight, Address scratch, bool wide,
                                   const Sides& sides, std::string_view dtype, const ChipTuple& chip,
                                   const StreamTuple& stream) {
    const auto call = filter_gradient_call(grad, x, weight, grad_x, scratch, wide, sides, dtype, chip);
    py::gil_scoped_release release;
    medsora::cuda::spectral_filter_backward(call, reinterpret_cast<float*>(grad_weight), stream_at(stream));
}

void cuda_focal(const BlockImagesTuple& pred, const BlockImagesTuple& target, const BlockImagesTuple& grad_pred,
                std::string_view task, float alpha, bool logarithm, Address largest, Address found, Address grad,
                std::string_view grad_dtype, double scale, const Sides& sides, std::string_view dtype,
                const ChipTuple& chip, const StreamTuple& stream) {
    const auto call = focal_call(pred, target, grad_pred, alpha, logarithm, largest, found, grad, grad_dtype, scale,
                                 sides, dtype, chip);
    const medsora::FocalTask named = focal_task_named(task);
    py::gil_scoped_release release;
    medsora::cuda::focal(call, named, stream_at(stream));
}

void cuda_focal_mean(Address found, std::int64_t blocks, double scale, Address loss, std::string_view dtype,
                     const StreamTuple& stream) {
    const auto job = focal_mean_job(found, blocks, scale, loss, dtype);
    py::gil_scoped_release release;
    medsora::cuda::focal_mean(job, stream_at(stream));
}

#endif

// The frequency operators on the CPU in place of a GPU, or on one; they differ in what comes last.
template <typename Filter, typename FilterBackward, typename Focal, typename FocalMean, typename... Last>
void def_frequency_operators(py::module_& module, const char* filter_name, Filter filter, const char* backward_name,
                             FilterBackward backward, const char* focal_name, Focal focal, const char* mean_name,
                             FocalMean mean, const char* what, const Last&... last) {
    module.def(filter_name, filter, py::arg("x"), py::arg("weight"), py::arg("y"), py::kw_only(), py::arg("wide"),
               py::arg("sides"), py::arg("dtype"), py::arg("chip"), last..., what);
    module.def(backward_name, backward, py::arg("grad"), py::arg("x"), py::arg("weight"), py::arg("grad_x"),
               py::arg("grad_weight"), py::kw_only(), py::arg("scratch"), py::arg("wide"), py::arg("sides"),
               py::arg("dtype"), py::arg("chip"), last..., what);
    module.def(focal_name, focal, py::arg("pred"), py::arg("target"), py::arg("grad_pred"), py::kw_only(),
               py::arg("task"), py::arg("alpha"), py::arg("logarithm"), py::arg("largest"), py::arg("found"),
               py::arg("grad"), py::arg("grad_dtype"), py::arg("scale"), py::arg("sides"), py::arg("dtype"),
               py::arg("chip"), last..., what);
    module.def(mean_name, mean, py::arg("found"), py::kw_only(), py::arg("blocks"), py::arg("scale"), py::arg("loss"),
               py::arg("dtype"), last..., what);
}

}  // namespace

void def_spectral(py::module_& module) {
    module.def("spectral_filter", &spectral_filter, py::arg("x"), py::arg("weight"), py::arg("y"), py::kw_only(),
               py::arg("channels"), py::arg("sides"), py::arg("dtype"), py::arg("threads"),
               "Images filtered by one spectrum a channel; see csrc/cpu/spectral.h.");
    module.def("spectral_filter_backward", &spectral_filter_backward, py::arg("grad"), py::arg("x"), py::arg("weight"),
               py::arg("grad_x"), py::arg("grad_weight"), py::kw_only(), py::arg("channels"), py::arg("sides"),
               py::arg("dtype"), py::arg("threads"), "Gradients of x and weight; see csrc/cpu/spectral.h.");
    module.def("focal_loss", &focal_loss, py::arg("pred"), py::arg("target"), py::kw_only(), py::arg("alpha"),
               py::arg("logarithm"), py::arg("largest_of_all"), py::arg("sides"), py::arg("dtype"), py::arg("threads"),
               "The focal frequency loss; see csrc/cpu/spectral.h.");
    module.def("focal_gradient", &focal_gradient, py::arg("pred"), py::arg("target"), py::arg("grad_pred"),
               py::kw_only(), py::arg("scale"), py::arg("alpha"), py::arg("logarithm"), py::arg("largest_of_all"),
               py::arg("sides"), py::arg("dtype"), py::arg("threads"),
               "Its gradient with respect to pred; see csrc/cpu/spectral.h.");

    module.def("spectral_shared_bytes", &spectral_shared_bytes, py::arg("sides"),
               "The least shared memory of a block that serves the frequency operators; ValueError for other sides.");
    module.def("spectral_filter_scratch", &spectral_filter_scratch, py::arg("sides"), py::arg("channels"),
               py::arg("channel_images"), py::arg("chip"), "float32 numbers that a gradient takes beside its results.");
    module.def("focal_blocks", &focal_blocks, py::arg("sides"), py::arg("images"), py::arg("chip"),
               "float64 numbers that the focal loss takes beside its results.");
    def_frequency_operators(module, "spectral_filter_in_blocks", &spectral_filter_in_blocks,
                            "spectral_filter_backward_in_blocks", &spectral_filter_backward_in_blocks,
                            "focal_in_blocks", &focal_in_blocks, "focal_mean_in_blocks", &focal_mean_in_blocks,
                            "For tests, as a GPU does it: see csrc/cpu/spectral_in_blocks.h.");
#ifdef MEDSORA_CUDA
    module.def("cuda_chip", &cuda_chip, py::arg("device"), "(shared memory of a block, multiprocessors)");
    def_frequency_operators(module, "cuda_spectral_filter", &cuda_spectral_filter, "cuda_spectral_filter_backward",
                            &cuda_spectral_filter_backward, "cuda_focal", &cuda_focal, "cuda_focal_mean",
                            &cuda_focal_mean, "On a GPU: see csrc/cuda/spectral.h.", py::arg("stream"));
#endif
}
