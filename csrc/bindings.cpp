// The Python face of the native operators. With bindings_spectral.cpp the only files that know pybind11.
//
// Tensors come in as raw addresses with sizes and byte strides, which medsora_ops/<operator>/native.py has checked.
// What could still write outside a tensor, the offsets of a path, is checked here, except on a GPU: reading them would
// make the CPU wait. There MEDSORA_CUDA is defined, as the version of the toolkit, where there was one to build with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "common/path.h"
#include "cpu/fresh_memory.h"
#include "cpu/isa.h"
#include "cpu/measure.h"
#include "cpu/path_scan.h"
#include "cpu/reorder.h"
#include "cpu/reorder_in_blocks.h"
#include "cpu/ssd_scan.h"
#include "cpu/threads.h"
#ifdef MEDSORA_CUDA
#include "cuda/reorder.h"
#endif

namespace py = pybind11;

namespace {

using medsora::Address;
using medsora::element_named;
#ifdef MEDSORA_CUDA
using medsora::stream_at;
using medsora::StreamTuple;
#endif
using Strides2 = std::array<std::int64_t, 2>;  // bytes; a plain tuple in Python
using Strides4 = std::array<std::int64_t, 4>;

medsora::Path checked_path(Address offsets, std::int64_t sequences, std::int64_t length, std::int64_t stride) {
    const auto* table = reinterpret_cast<const std::int32_t*>(offsets);
    const medsora::Path path{table, sequences, length, stride};
    if (sequences < 1 || length < 1 || stride < 0) throw std::invalid_argument("path: wants at least one token");
    const auto [lowest, highest] = std::minmax_element(table, table + length);
    if (*lowest < 0 || *highest + (sequences - 1) * stride >= path.tokens()) {
        throw std::invalid_argument("offsets: reach tokens " + std::to_string(*lowest) + " to " +
                                    std::to_string(*highest + (sequences - 1) * stride) + ", wants 0 to " +
                                    std::to_string(path.tokens() - 1));
    }
    return path;
}

void gather(Address x, Address y, Address offsets, std::int64_t sequences, std::int64_t length, std::int64_t stride,
            std::int64_t videos, std::int64_t row_bytes, const Strides2& x_strides, int threads) {
    const medsora::Path path = checked_path(offsets, sequences, length, stride);
    const medsora::Isa isa = medsora::isa_in_use();  // reads the environment, so before others may run
    py::gil_scoped_release release;
    medsora::gather(reinterpret_cast<const char*>(x), {x_strides[0], x_strides[1]}, reinterpret_cast<char*>(y), path,
                    videos, row_bytes, isa, threads);
}

void merge(Address y, Address x, Address offsets, std::int64_t sequences, std::int64_t length, std::int64_t stride,
           std::int64_t videos, std::int64_t channels, const Strides4& y_strides, std::string_view dtype,
           int threads) {
    const medsora::Path path = checked_path(offsets, sequences, length, stride);
    const medsora::Element element = element_named(dtype);
    const medsora::Isa isa = medsora::isa_in_use();
    py::gil_scoped_release release;
    medsora::merge(reinterpret_cast<const char*>(y), {y_strides[0], y_strides[1], y_strides[2], y_strides[3]},
                   reinterpret_cast<char*>(x), path, videos, channels, element, isa, threads);
}

int gather_in_blocks(Address x, Address y, Address offsets, std::int64_t sequences, std::int64_t length,
                     std::int64_t stride, std::int64_t videos, std::int64_t row_bytes, const Strides2& x_strides) {
    const medsora::Path path = checked_path(offsets, sequences, length, stride);
    return medsora::gather_in_blocks_on_cpu(reinterpret_cast<const char*>(x), {x_strides[0], x_strides[1]},
                                            reinterpret_cast<char*>(y), path, videos, row_bytes);
}

int merge_in_blocks(Address y, Address x, Address offsets, std::int64_t sequences, std::int64_t length,
                    std::int64_t stride, std::int64_t videos, std::int64_t channels, const Strides4& y_strides,
                    std::string_view dtype) {
    const medsora::Path path = checked_path(offsets, sequences, length, stride);
    return medsora::merge_in_blocks_on_cpu(reinterpret_cast<const char*>(y),
                                           {y_strides[0], y_strides[1], y_strides[2], y_strides[3]},
                                           reinterpret_cast<char*>(x), path, videos, channels, element_named(dtype));
}

#ifdef MEDSORA_CUDA

void cuda_gather(Address x, Address y, Address offsets, std::int64_t sequences, std::int64_t length,
                 std::int64_t stride, std::int64_t videos, std::int64_t row_bytes, const Strides2& x_strides,
                 const StreamTuple& stream) {
    const medsora::Path path{reinterpret_cast<const std::int32_t*>(offsets), sequences, length, stride};
    py::gil_scoped_release release;
    medsora::cuda::gather(reinterpret_cast<const char*>(x), {x_strides[0], x_strides[1]}, reinterpret_cast<char*>(y),
                          path, videos, row_bytes, stream_at(stream));
}

void cuda_merge(Address y, Address x, Address offsets, std::int64_t sequences, std::int64_t length,
                std::int64_t stride, std::int64_t videos, std::int64_t channels, const Strides4& y_strides,
                std::string_view dtype, const StreamTuple& stream) {
    const medsora::Path path{reinterpret_cast<const std::int32_t*>(offsets), sequences, length, stride};
    const medsora::Element element = element_named(dtype);
    py::gil_scoped_release release;
    medsora::cuda::merge(reinterpret_cast<const char*>(y), {y_strides[0], y_strides[1], y_strides[2], y_strides[3]},
                         reinterpret_cast<char*>(x), path, videos, channels, element, stream_at(stream));
}

#endif

template <double (*measured)(double, medsora::Isa, int)>
double limit(double seconds, int threads) {
    const medsora::Isa isa = medsora::isa_in_use();  // reads the environment, so before others may run
    py::gil_scoped_release release;
    return measured(seconds, isa, threads);
}

using RowStrides = std::array<std::int64_t, 2>;  // elements: between videos, between tokens

std::vector<medsora::Path> checked_paths(const std::vector<Address>& offsets, const std::vector<std::int64_t>& lengths,
                                         const std::vector<std::int64_t>& strides, std::int64_t tokens) {
    std::vector<medsora::Path> paths;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
        const std::int64_t length = lengths.at(i);
        if (length < 1 || tokens % length) throw std::invalid_argument("offsets: their number must divide the tokens");
        paths.push_back(checked_path(offsets[i], tokens / length, length, strides.at(i)));
    }
    return paths;
}

std::vector<medsora::TokenRows> rows_at(const std::vector<Address>& data, const std::vector<RowStrides>& strides) {
    std::vector<medsora::TokenRows> rows;
    for (std::size_t i = 0; i < data.size(); ++i) {
        rows.push_back({reinterpret_cast<void*>(data[i]), strides.at(i)[0], strides.at(i)[1]});
    }
    return rows;
}

medsora::PathScanParameters parameters_at(const std::array<Address, 6>& data) {
    const auto at = [&](int i) { return reinterpret_cast<float*>(data[i]); };
    return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

medsora::PathScanSizes path_scan_sizes(std::int64_t videos, const std::array<int, 5>& sizes, bool bidirectional,
                                       float eps, int norm_group_size, std::string_view dtype) {
    return {videos, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], bidirectional, eps, norm_group_size,
            element_named(dtype)};
}

void path_scan(const std::array<Address, 6>& parameters, Address rows, const RowStrides& row_strides,
               const std::vector<Address>& outs, const std::vector<RowStrides>& out_strides,
               const std::vector<Address>& offsets, const std::vector<std::int64_t>& lengths,
               const std::vector<std::int64_t>& strides, std::int64_t videos, std::int64_t tokens,
               const std::array<int, 5>& sizes, bool bidirectional, float eps, int norm_group_size,
               std::string_view dtype, int threads) {
    const auto paths = checked_paths(offsets, lengths, strides, tokens);
    const auto call = path_scan_sizes(videos, sizes, bidirectional, eps, norm_group_size, dtype);
    const medsora::Isa isa = medsora::isa_in_use();
    const auto out = rows_at(outs, out_strides);
    const medsora::TokenRows in{reinterpret_cast<void*>(rows), row_strides[0], row_strides[1]};
    py::gil_scoped_release release;
    medsora::path_scan(call, parameters_at(parameters), in, paths, out, isa, threads);
}

void path_scan_backward(const std::array<Address, 6>& parameters, Address rows, const RowStrides& row_strides,
                        const std::vector<Address>& grads, const std::vector<RowStrides>& grad_strides,
                        Address grad_rows, const RowStrides& grad_row_strides,
                        const std::array<Address, 6>& grad_parameters,
                        const std::vector<Address>& offsets, const std::vector<std::int64_t>& lengths,
                        const std::vector<std::int64_t>& strides, std::int64_t videos, std::int64_t tokens,
                        const std::array<int, 5>& sizes, bool bidirectional, float eps, int norm_group_size,
                        std::string_view dtype, int threads) {
    const auto paths = checked_paths(offsets, lengths, strides, tokens);
    const auto call = path_scan_sizes(videos, sizes, bidirectional, eps, norm_group_size, dtype);
    const medsora::Isa isa = medsora::isa_in_use();
    const auto grad = rows_at(grads, grad_strides);
    const medsora::TokenRows in{reinterpret_cast<void*>(rows), row_strides[0], row_strides[1]};
    const medsora::TokenRows to{reinterpret_cast<void*>(grad_rows), grad_row_strides[0], grad_row_strides[1]};
    py::gil_scoped_release release;
    medsora::path_scan_backward(call, parameters_at(parameters), in, paths, grad, to,
                                parameters_at(grad_parameters), isa, threads);
}

// Address (0: not given), dtype, and strides in elements.
using StridedRowsTuple = std::tuple<Address, std::string, std::array<std::int64_t, 3>>;

medsora::StridedRows strided_rows_at(const StridedRowsTuple& rows) {
    const auto& [address, dtype, strides] = rows;
    return {reinterpret_cast<void*>(address), element_named(dtype), {strides[0], strides[1], strides[2]}};
}

medsora::SsdScanTensors ssd_scan_tensors(const std::array<StridedRowsTuple, 6>& tensors) {
    const auto at = [&](int i) { return strided_rows_at(tensors[i]); };
    return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

medsora::SsdScanParameters ssd_scan_parameters(const std::array<Address, 3>& data) {
    const auto at = [&](int i) { return reinterpret_cast<float*>(data[i]); };
    return {at(0), at(1), at(2)};
}

medsora::SsdScanSizes ssd_scan_sizes(const std::array<int, 6>& sizes, bool dt_softplus) {
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], dt_softplus};
}

void ssd_scan(const std::array<StridedRowsTuple, 6>& tensors, const std::array<Address, 3>& parameters,
              const StridedRowsTuple& y, const StridedRowsTuple& final_states, const std::array<int, 6>& sizes,
              bool dt_softplus, int threads) {
    const auto inputs = ssd_scan_tensors(tensors);
    const auto out = strided_rows_at(y), states = strided_rows_at(final_states);
    const medsora::Isa isa = medsora::isa_in_use();
    py::gil_scoped_release release;
    medsora::ssd_scan(ssd_scan_sizes(sizes, dt_softplus), inputs, ssd_scan_parameters(parameters), out, states, isa,
                      threads);
}

void ssd_scan_backward(const std::array<StridedRowsTuple, 6>& tensors, const std::array<Address, 3>& parameters,
                       const StridedRowsTuple& grad_y, const StridedRowsTuple& grad_final_states,
                       const std::array<StridedRowsTuple, 6>& grad_tensors,
                       const std::array<Address, 3>& grad_parameters, const std::array<int, 6>& sizes,
                       bool dt_softplus, int threads) {
    const auto inputs = ssd_scan_tensors(tensors), grads = ssd_scan_tensors(grad_tensors);
    const auto grad = strided_rows_at(grad_y), states = strided_rows_at(grad_final_states);
    const medsora::Isa isa = medsora::isa_in_use();
    py::gil_scoped_release release;
    medsora::ssd_scan_backward(ssd_scan_sizes(sizes, dt_softplus), inputs, ssd_scan_parameters(parameters), grad,
                               states, grads, ssd_scan_parameters(grad_parameters), isa, threads);
}

std::vector<std::string> names_of(const std::vector<medsora::Isa>& isas) {
    std::vector<std::string> names;
    for (medsora::Isa isa : isas) names.emplace_back(medsora::name_of(isa));
    return names;
}

py::dict build_info() {
    py::dict info;
    info["version"] = MEDSORA_VERSION;
#if defined(__clang__)
    info["compiler"] = "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
    info["compiler"] = "g++ " __VERSION__;
#else
    info["compiler"] = "unknown";
#endif
    info["cpp_standard"] = static_cast<long>(__cplusplus);
    info["openmp"] = medsora::openmp_version();
    info["isa_compiled"] = names_of(medsora::compiled_isas());
    info["isa_supported"] = names_of(medsora::supported_isas());
#ifdef MEDSORA_CUDA
    info["cuda"] = MEDSORA_CUDA;
    info["cuda_architectures"] = std::vector<int>{MEDSORA_CUDA_ARCHITECTURES};
#else
    info["cuda"] = py::none();
    info["cuda_architectures"] = std::vector<int>{};
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Native operators of medsora_ops. Import torch first: OpenMP then binds to torch's thread pool.";
    module.def("build_info", &build_info, "What this extension was built with and for: a dict of plain values.");
    module.def("isa_in_use", [] { return std::string(medsora::name_of(medsora::isa_in_use())); },
               "The instruction set of this call: the best one, or what MEDSORA_ISA names (ValueError if not there).");
    module.def("threads_seen", &medsora::threads_seen, py::arg("wanted"), py::call_guard<py::gil_scoped_release>(),
               "How many threads a parallel region asking for `wanted` really gets.");

    module.def("measure_fma", &limit<medsora::measure_fma>, py::arg("seconds"), py::arg("threads"),
               "The most float32 operations a second, a multiply-add counting as two.");
    module.def("measure_exp", &limit<medsora::measure_exp>, py::arg("seconds"), py::arg("threads"),
               "The most float32 exponentials a second, by vectorised polynomials on cached operands.");
    module.def("measure_copy", &limit<medsora::measure_copy>, py::arg("seconds"), py::arg("threads"),
               "The most bytes a second that a copy beyond the caches reads and writes together.");

    module.def("back_by_huge_pages", [](Address start, std::int64_t bytes) {
        medsora::back_by_huge_pages(reinterpret_cast<void*>(start), bytes);
    }, py::arg("start"), py::arg("bytes"), "Advice for fresh memory; see csrc/cpu/fresh_memory.h.");

    module.def("gather", &gather, py::arg("x"), py::arg("y"), py::arg("offsets"), py::kw_only(), py::arg("sequences"),
               py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("row_bytes"), py::arg("x_strides"),
               py::arg("threads"), "x in grid order to y in scan order, forward and reversed; see csrc/cpu/reorder.h.");
    module.def("merge", &merge, py::arg("y"), py::arg("x"), py::arg("offsets"), py::kw_only(), py::arg("sequences"),
               py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("channels"), py::arg("y_strides"),
               py::arg("dtype"), py::arg("threads"), "Both directions of y added into x; see csrc/cpu/reorder.h.");

    module.def("gather_in_blocks", &gather_in_blocks, py::arg("x"), py::arg("y"), py::arg("offsets"), py::kw_only(),
               py::arg("sequences"), py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("row_bytes"),
               py::arg("x_strides"), "For tests: gather as a GPU does it; see csrc/cpu/reorder_in_blocks.h.");
    module.def("merge_in_blocks", &merge_in_blocks, py::arg("y"), py::arg("x"), py::arg("offsets"), py::kw_only(),
               py::arg("sequences"), py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("channels"),
               py::arg("y_strides"), py::arg("dtype"),
               "For tests: merge as a GPU does it; see csrc/cpu/reorder_in_blocks.h.");
#ifdef MEDSORA_CUDA
    module.def("cuda_unusable", &medsora::cuda::unusable,
               "Empty if the CUDA runtime in this extension can use the driver that is here, else why not.");
    module.def("cuda_gather", &cuda_gather, py::arg("x"), py::arg("y"), py::arg("offsets"), py::kw_only(),
               py::arg("sequences"), py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("row_bytes"),
               py::arg("x_strides"), py::arg("stream"), "gather on a GPU; see csrc/cuda/reorder.h.");
    module.def("cuda_merge", &cuda_merge, py::arg("y"), py::arg("x"), py::arg("offsets"), py::kw_only(),
               py::arg("sequences"), py::arg("length"), py::arg("stride"), py::arg("videos"), py::arg("channels"),
               py::arg("y_strides"), py::arg("dtype"), py::arg("stream"), "merge on a GPU; see csrc/cuda/reorder.h.");
#endif

    def_spectral(module);

    module.def("path_scan", &path_scan, py::arg("parameters"), py::arg("rows"), py::arg("row_strides"),
               py::arg("outs"), py::arg("out_strides"), py::arg("offsets"), py::kw_only(), py::arg("lengths"),
               py::arg("strides"), py::arg("videos"), py::arg("tokens"), py::arg("sizes"), py::arg("bidirectional"),
               py::arg("eps"), py::arg("norm_group_size"), py::arg("dtype"), py::arg("threads"),
               "One output a path; see csrc/cpu/path_scan.h.");
    module.def("path_scan_backward", &path_scan_backward, py::arg("parameters"), py::arg("rows"),
               py::arg("row_strides"), py::arg("grads"), py::arg("grad_strides"), py::arg("grad_rows"),
               py::arg("grad_row_strides"), py::arg("grad_parameters"), py::arg("offsets"), py::kw_only(),
               py::arg("lengths"), py::arg("strides"), py::arg("videos"), py::arg("tokens"), py::arg("sizes"),
               py::arg("bidirectional"), py::arg("eps"), py::arg("norm_group_size"), py::arg("dtype"),
               py::arg("threads"), "Gradients of rows and parameters; see csrc/cpu/path_scan.h.");

    module.def("ssd_scan", &ssd_scan, py::arg("tensors"), py::arg("parameters"), py::arg("y"),
               py::arg("final_states"), py::kw_only(), py::arg("sizes"), py::arg("dt_softplus"), py::arg("threads"),
               "y and, if asked for, the final states; see csrc/cpu/ssd_scan.h.");
    module.def("ssd_scan_backward", &ssd_scan_backward, py::arg("tensors"), py::arg("parameters"), py::arg("grad_y"),
               py::arg("grad_final_states"), py::arg("grad_tensors"), py::arg("grad_parameters"), py::kw_only(),
               py::arg("sizes"), py::arg("dt_softplus"), py::arg("threads"),
               "Gradients of all that was given; see csrc/cpu/ssd_scan.h.");
}
