// The Python module: plain integers in, nothing out, the GIL released. Arrays are allocated by the caller.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1")  // it unpacks arguments: there is nothing to gain, and pybind11 takes a quarter longer with more
#endif
#include <pybind11/pybind11.h>

#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "check.h"
#include "cpu/kernels.h"
#include "gather_binding.h"

namespace py = pybind11;

namespace fairkern {
namespace {

// Raised by one whenever an entry point changes, so that Python notices a stale build.
constexpr int kInterface = 9;

template <class T>
T* pointer(std::int64_t address, const char* name) {
  require_pointer(address, name);
  return reinterpret_cast<T*>(address);
}

void require_element(int element) { require(element >= 0 && element <= 3, "element is ", element, "; expected 0 to 3"); }

void require_network_limit(std::int64_t limit) {
  require(limit >= 0 && limit <= kLongestNetwork, "network_limit is ", limit, "; expected 0 to ", kLongestNetwork);
}

void py_class_wasserstein(int element, std::int64_t x, std::int64_t stride_n, std::int64_t stride_c,
                          std::int64_t stride_p, std::int64_t units, std::int64_t projections, std::int64_t rows,
                          std::int64_t offsets, std::int64_t classes, int reduce, std::int64_t out, int threads,
                          int isa, std::int64_t directions, std::int64_t positions, std::int64_t network_limit,
                          std::int64_t begins, std::int64_t places, std::int64_t per_set) {
  require_element(element);
  require((begins == 0) == (places == 0), "begins and places are given together, or neither");
  require(begins == 0 || (directions != 0 && per_set >= 1 && units % per_set == 0), "rows of positions need directions, ",
          "and ", units, " units in sets of ", per_set, " each");
  require(reduce >= 0 && reduce <= 2, "reduce is ", reduce, "; expected 0 (max), 1 (mean) or 2 (pairs)");
  require(units >= 1 && projections >= 1, "x has ", units, " units and ", projections, " projections; needs 1 of each");
  require(directions == 0 || positions >= 1, "there are ", positions, " positions to project; at least 1 is needed");
  require(classes >= 2, "there are ", classes, " classes; at least 2 are needed");
  require_network_limit(network_limit);
  require_threads(threads);
  ClassWassersteinArgs args{pointer<void>(x, "x"),
                            stride_n,
                            stride_c,
                            stride_p,
                            units,
                            projections,
                            reinterpret_cast<const void*>(directions),
                            positions,
                            pointer<std::int64_t>(rows, "rows"),
                            pointer<std::int64_t>(offsets, "offsets"),
                            classes,
                            static_cast<Reduce>(reduce),
                            network_limit,
                            pointer<void>(out, "out"),
                            threads,
                            resolve_isa(isa),
                            reinterpret_cast<const std::int64_t*>(begins),
                            reinterpret_cast<const std::int64_t*>(places),
                            per_set};
  py::gil_scoped_release release;
  class_wasserstein(static_cast<Element>(element), args);
}

void py_wasserstein_1d(int element, std::int64_t x, std::int64_t x_stride_n, std::int64_t x_stride_c, std::int64_t n,
                       std::int64_t y, std::int64_t y_stride_n, std::int64_t y_stride_c, std::int64_t m,
                       std::int64_t columns, int power, std::int64_t network_limit, std::int64_t out, int threads,
                       int isa) {
  require_element(element);
  require(n >= 1 && m >= 1 && columns >= 1, "x is [", n, ", ", columns, "] and y [", m, ", ", columns, "]; empty");
  require(power == 1 || power == 2, "power is ", power, "; expected 1 or 2");
  require_network_limit(network_limit);
  require_threads(threads);
  Wasserstein1dArgs args{pointer<void>(x, "x"), x_stride_n,    x_stride_c, n, pointer<void>(y, "y"), y_stride_n,
                         y_stride_c,            m,             columns,    power, network_limit,
                         pointer<void>(out, "out"), threads, resolve_isa(isa)};
  py::gil_scoped_release release;
  wasserstein_1d(static_cast<Element>(element), args);
}

void py_project(int element, std::int64_t x, std::int64_t stride_n, std::int64_t stride_c, std::int64_t stride_d,
                std::int64_t rows, std::int64_t samples, std::int64_t channels, std::int64_t positions,
                std::int64_t directions, std::int64_t projections, std::int64_t out, int threads, int isa) {
  require_element(element);
  require(samples >= 1 && channels >= 1 && positions >= 1 && projections >= 1, "samples, channels, positions and ",
          "projections are ", samples, ", ", channels, ", ", positions, " and ", projections, "; needs 1 of each");
  require_threads(threads);
  ProjectArgs args{pointer<void>(x, "x"),
                   stride_n,
                   stride_c,
                   stride_d,
                   reinterpret_cast<const std::int64_t*>(rows),
                   samples,
                   channels,
                   positions,
                   pointer<void>(directions, "directions"),
                   projections,
                   pointer<void>(out, "out"),
                   threads,
                   resolve_isa(isa)};
  py::gil_scoped_release release;
  project(static_cast<Element>(element), args);
}

std::int64_t py_gram(int element, std::int64_t x, std::int64_t stride_c, std::int64_t stride_outer,
                     std::int64_t stride_inner, std::int64_t channels, std::int64_t outer, std::int64_t inner,
                     std::int64_t rows, std::int64_t out, std::int64_t shift, std::int64_t total, double least,
                     double most, int threads, int isa) {
  require_element(element);
  require(channels >= 1 && outer >= 1 && inner >= 1, "channels, outer and inner are ", channels, ", ", outer, " and ",
          inner, "; needs 1 of each");
  require(most == 0 || total != 0, "bounds are given without sums");
  require(rows >= 16 && rows % 16 == 0, "rows is ", rows, "; expected a multiple of 16");
  require_threads(threads);
  GramArgs args{pointer<void>(x, "x"), stride_c, stride_outer, stride_inner, channels, outer, inner, rows,
                pointer<double>(out, "out"), reinterpret_cast<const void*>(shift), reinterpret_cast<double*>(total),
                least, most, threads, resolve_isa(isa)};
  py::gil_scoped_release release;
  return gram(static_cast<Element>(element), args);
}

void py_taylor(int element, std::int64_t act, std::int64_t grad, std::int64_t samples, std::int64_t before,
               std::int64_t channels, std::int64_t after, std::int64_t signed_sum, std::int64_t per_sample,
               std::int64_t activation, bool wide, bool accumulate, double scale, int threads, int isa) {
  require_element(element);
  require(samples >= 1 && before >= 1 && channels >= 1 && after >= 1, "shape [", samples, ", ", before, ", ", channels,
          ", ", after, "] is empty");
  require_threads(threads);
  TaylorArgs args{pointer<void>(act, "act"),
                  pointer<void>(grad, "grad"),
                  samples,
                  before,
                  channels,
                  after,
                  pointer<void>(signed_sum, "signed_sum"),
                  pointer<void>(per_sample, "per_sample"),
                  pointer<void>(activation, "activation"),
                  wide,
                  accumulate,
                  scale,
                  threads,
                  resolve_isa(isa)};
  py::gil_scoped_release release;
  taylor(static_cast<Element>(element), args);
}

void py_tod_curves(std::int64_t u, std::int64_t r, std::int64_t sizes, std::int64_t groups, std::int64_t out,
                   int threads) {
  require(groups >= 1, "groups is ", groups, "; at least 1 is needed");
  require_threads(threads);
  TodCurvesArgs args{pointer<double>(u, "u"), pointer<double>(r, "r"), pointer<std::int64_t>(sizes, "sizes"), groups,
                     pointer<double>(out, "out"), threads};
  py::gil_scoped_release release;
  tod_curves(args);
}

// `table` is an int64 array [views, 12]: the fields of EliminateView in order, addresses and sizes.
void py_eliminate_steps(int element, std::int64_t table, std::int64_t count, std::int64_t units, std::int64_t steps,
                        std::int64_t chosen, std::int64_t added, int threads, int isa) {
  constexpr std::int64_t kWidth = 12;
  require(element == 0 || element == 1, "element is ", element, "; expected 0 (float32) or 1 (float64)");
  require(count >= 1, "there are ", count, " views; at least 1 is needed");
  require(steps >= 1 && steps <= units, "steps is ", steps, "; expected 1 to the number of units, ", units);
  require_threads(threads);
  const std::int64_t* row = pointer<std::int64_t>(table, "table");
  std::vector<EliminateView> views;
  for (std::int64_t v = 0; v < count; ++v, row += kWidth)
    views.push_back({pointer<void>(row[0], "inverse"), pointer<void>(row[1], "output"), row[2], row[3], row[4],
                     pointer<std::int64_t>(row[5], "rows"), pointer<double>(row[6], "noise"),
                     pointer<double>(row[7], "alive"), pointer<double>(row[8], "inverse_diagonal"),
                     pointer<double>(row[9], "output_diagonal"), pointer<double>(row[10], "half"),
                     pointer<double>(row[11], "mixed")});
  const EliminateArgs args{views.data(), count, units, steps, pointer<std::int64_t>(chosen, "chosen"),
                           pointer<double>(added, "added"), threads, resolve_isa(isa)};
  py::gil_scoped_release release;
  eliminate_steps(static_cast<Element>(element), args);
}

// `table` is an int64 array [count, 4]: covariance, output, positions, rows.
std::int64_t py_eliminate_small(std::int64_t table, std::int64_t count, std::int64_t units, std::int64_t most,
                                double rounding, std::int64_t chosen, std::int64_t added, std::int64_t off, int isa) {
  constexpr std::int64_t kWidth = 4;
  require(count >= 1, "there are ", count, " views; at least 1 is needed");
  require(units >= 1 && most >= 0 && most <= units, "most is ", most, "; expected 0 to the number of units, ", units);
  const std::int64_t* row = pointer<std::int64_t>(table, "table");
  std::vector<EliminateSmallView> views;
  for (std::int64_t v = 0; v < count; ++v, row += kWidth)
    views.push_back({pointer<double>(row[0], "covariance"), pointer<double>(row[1], "output"), row[2],
                     pointer<std::int64_t>(row[3], "rows")});
  const EliminateSmallArgs args{views.data(), count, units, most, rounding, pointer<std::int64_t>(chosen, "chosen"),
                                pointer<double>(added, "added"), pointer<double>(off, "off"), resolve_isa(isa)};
  py::gil_scoped_release release;
  return eliminate_small(args);
}

// Reads a job of `py_gather` and returns where the next one begins. Whole neighbours that are one run in memory are
// one dimension, and a whole dimension of length 1 is none.
const std::int64_t* read_job(const std::int64_t* row, std::int64_t number, GatherJob& job) {
  const std::int64_t size = row[2], dims = row[3];
  require(dims >= 0 && dims <= kGatherDims, "job ", number, " has ", dims, " dims; at most ", kGatherDims,
          " are supported");
  job.source = reinterpret_cast<const char*>(row[0]);
  job.target = reinterpret_cast<char*>(row[1]);
  job.element_size = size;
  job.dims = 0;
  bool empty = false;
  for (std::int64_t d = 0; d < dims; ++d) {
    const std::int64_t length = row[4 + d], stride = row[4 + dims + d] * size;
    const auto* index = reinterpret_cast<const std::int64_t*>(row[4 + 2 * dims + d]);
    require(length >= 0, "job ", number, ", dim ", d, " has length ", length);
    empty = empty || length == 0;
    if (index == nullptr && length == 1) continue;
    const std::int64_t before = job.dims - 1;
    if (index == nullptr && before >= 0 && job.index[before] == nullptr && job.strides[before] == stride * length) {
      job.shape[before] *= length;
      job.strides[before] = stride;
      continue;
    }
    job.shape[job.dims] = length;
    job.strides[job.dims] = stride;
    job.index[job.dims++] = index;
  }
  require(empty || (row[0] != 0 && row[1] != 0), "job ", number, " has a null pointer");
  return row + 4 + 3 * dims;
}

// `table`: int64, one job after the other: source, target, element size, dims, then the result's length in every
// dimension, the source's stride in elements, and the address of the index or 0.
void py_gather(std::int64_t table, std::int64_t jobs, int threads) {
  require(jobs >= 0, "jobs is ", jobs, "; expected 0 or more");
  require_threads(threads);
  if (jobs == 0) return;
  const std::int64_t* row = pointer<std::int64_t>(table, "table");
  std::vector<GatherJob> list(jobs);
  for (std::int64_t j = 0; j < jobs; ++j) row = read_job(row, j, list[j]);
  py::gil_scoped_release release;
  for (const GatherJob& job : list) gather(job, threads);
}

const char* compiler_name() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict py_build() {
  py::dict build;
  build["compiler"] = compiler_name();
  build["cxx"] = static_cast<long>(__cplusplus);
  build["isa"] = name_of(best_isa());
#ifdef _OPENMP
  build["openmp"] = static_cast<int>(_OPENMP);
  build["openmp_threads"] = omp_get_max_threads();
#else
  build["openmp"] = py::none();
  build["openmp_threads"] = 1;
#endif
  return build;
}

}  // namespace
}  // namespace fairkern

PYBIND11_MODULE(_extension_cpu, module) {
  using namespace fairkern;
  module.doc() = "CPU kernels of fairkern. Called through fairkern.ops, which checks and allocates.";
  module.attr("INTERFACE") = kInterface;
  module.attr("GATHER_DIMS") = kGatherDims;
  module.def("class_wasserstein", &py_class_wasserstein, py::arg("element"), py::arg("x"), py::arg("stride_n"),
             py::arg("stride_c"), py::arg("stride_p"), py::arg("units"), py::arg("projections"), py::arg("rows"),
             py::arg("offsets"), py::arg("classes"), py::arg("reduce"), py::arg("out"), py::arg("threads"),
             py::arg("isa"), py::arg("directions"), py::arg("positions"), py::arg("network_limit"),
             py::arg("begins"), py::arg("places"), py::arg("per_set"));
  module.def("wasserstein_1d", &py_wasserstein_1d, py::arg("element"), py::arg("x"), py::arg("x_stride_n"),
             py::arg("x_stride_c"), py::arg("n"), py::arg("y"), py::arg("y_stride_n"), py::arg("y_stride_c"),
             py::arg("m"), py::arg("columns"), py::arg("power"), py::arg("network_limit"), py::arg("out"),
             py::arg("threads"), py::arg("isa"));
  module.def("project", &py_project, py::arg("element"), py::arg("x"), py::arg("stride_n"), py::arg("stride_c"),
             py::arg("stride_d"), py::arg("rows"), py::arg("samples"), py::arg("channels"), py::arg("positions"),
             py::arg("directions"), py::arg("projections"), py::arg("out"), py::arg("threads"), py::arg("isa"));
  module.def("gram", &py_gram, py::arg("element"), py::arg("x"), py::arg("stride_c"), py::arg("stride_outer"),
             py::arg("stride_inner"), py::arg("channels"), py::arg("outer"), py::arg("inner"), py::arg("rows"),
             py::arg("out"), py::arg("shift"), py::arg("total"), py::arg("least"), py::arg("most"),
             py::arg("threads"), py::arg("isa"));
  module.def("taylor", &py_taylor, py::arg("element"), py::arg("act"), py::arg("grad"), py::arg("samples"),
             py::arg("before"), py::arg("channels"), py::arg("after"), py::arg("signed_sum"), py::arg("per_sample"),
             py::arg("activation"), py::arg("wide"), py::arg("accumulate"), py::arg("scale"), py::arg("threads"),
             py::arg("isa"));
  module.def("tod_curves", &py_tod_curves, py::arg("u"), py::arg("r"), py::arg("sizes"), py::arg("groups"),
             py::arg("out"), py::arg("threads"));
  module.def("eliminate_steps", &py_eliminate_steps, py::arg("element"), py::arg("table"), py::arg("count"),
             py::arg("units"), py::arg("steps"), py::arg("chosen"), py::arg("added"), py::arg("threads"),
             py::arg("isa"));
  module.def("eliminate_small", &py_eliminate_small, py::arg("table"), py::arg("count"), py::arg("units"),
             py::arg("most"), py::arg("rounding"), py::arg("chosen"), py::arg("added"), py::arg("off"),
             py::arg("isa"));
  module.def("gather", &py_gather, py::arg("table"), py::arg("jobs"), py::arg("threads"));
  bind_gather_plan(module);
  module.def("build", &py_build);
}
