// The Python module of the CUDA kernels. Importing it calls nothing of CUDA.
#include "cuda/gather.h"
#include "gather_binding.h"

namespace py = pybind11;

namespace fairkern {
namespace {

constexpr int kCudaInterface = 1;  // raised by one whenever an entry point changes

void py_gather(std::int64_t tasks, std::int64_t jobs, std::int64_t blocks, int device, std::int64_t stream) {
  require(jobs >= 1, "jobs is ", jobs, "; expected 1 or more");
  require(blocks >= 0 && blocks < (std::int64_t{1} << 31), "blocks is ", blocks, "; expected 0 to 2^31 - 1");
  require_pointer(tasks, "tasks");
  py::gil_scoped_release release;
  launch_gather(tasks, jobs, blocks, device, stream);
}

}  // namespace
}  // namespace fairkern

PYBIND11_MODULE(_extension_cuda, module) {
  using namespace fairkern;
  module.doc() = "CUDA kernels of fairkern. Called through fairkern.ops, which checks and allocates.";
  module.attr("INTERFACE") = kCudaInterface;
  module.attr("ARCHITECTURES") = FAIRKERN_ARCHITECTURES;
  bind_gather_plan(module);
  module.def("why_no_device", &why_no_device, py::arg("device"));
  module.def("gather", &py_gather, py::arg("tasks"), py::arg("jobs"), py::arg("blocks"), py::arg("device"),
             py::arg("stream"));
}
