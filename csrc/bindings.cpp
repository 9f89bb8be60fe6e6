// The Python face of the native operators; the only file that knows pybind11.
//
// Tensors come in as raw addresses with sizes and byte strides, which medsora_ops/<operator>/native.py has checked.
// What could still write outside a tensor, the offsets of a path, is checked here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "common/path.h"
#include "cpu/fresh_memory.h"
#include "cpu/isa.h"
#include "cpu/measure.h"
#include "cpu/reorder.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
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

medsora::Element element_named(std::string_view dtype) {
    if (dtype == "float32") return medsora::Element::float32;
    if (dtype == "float64") return medsora::Element::float64;
    if (dtype == "bfloat16") return medsora::Element::bfloat16;
    if (dtype == "float16") return medsora::Element::float16;
    throw std::invalid_argument("dtype: got " + std::string(dtype) + ", wants float32, float64, bfloat16 or float16");
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

template <double (*measured)(double, medsora::Isa, int)>
double limit(double seconds, int threads) {
    const medsora::Isa isa = medsora::isa_in_use();  // reads the environment, so before others may run
    py::gil_scoped_release release;
    return measured(seconds, isa, threads);
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
    info["cuda"] = false;
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
}
