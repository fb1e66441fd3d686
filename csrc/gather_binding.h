// The entry points for planning and walking a launch on the host, in whichever module is built.
#pragma once

#include <pybind11/pybind11.h>

#include "gather_plan.h"

namespace fairkern {

// `table`: int64 [jobs, TASK_COLUMNS]; `tasks`: TASK_BYTES · jobs bytes. Returns the number of blocks.
inline std::int64_t py_gather_plan(std::int64_t table, std::int64_t jobs, std::int64_t tasks) {
  require(jobs >= 0, "jobs is ", jobs, "; expected 0 or more");
  if (jobs == 0) return 0;
  require_pointer(table, "table");
  require_pointer(tasks, "tasks");
  return plan_gather(reinterpret_cast<const std::int64_t*>(table), jobs, reinterpret_cast<GatherTask*>(tasks));
}

inline void py_gather_emulate(std::int64_t tasks, std::int64_t jobs, std::int64_t blocks) {
  require(blocks == 0 || tasks != 0, "tasks is a null pointer");
  pybind11::gil_scoped_release release;
  emulate_gather(reinterpret_cast<const GatherTask*>(tasks), jobs, blocks);
}

// (task, item, source offset in bytes, target offset in bytes) of a thread's i-th item; item -1 if there is none.
inline pybind11::tuple py_gather_offsets(std::int64_t tasks, std::int64_t jobs, std::int64_t block,
                                         std::int64_t thread, std::int64_t i) {
  require_pointer(tasks, "tasks");
  require(jobs >= 1, "jobs is ", jobs, "; expected 1 or more");
  const auto* all = reinterpret_cast<const GatherTask*>(tasks);
  const std::int64_t which = task_of(all, jobs, block), item = item_of(all[which], block, thread, i);
  if (item >= all[which].items) return pybind11::make_tuple(which, -1, 0, 0);
  const GatherTask& task = all[which];
  return pybind11::make_tuple(which, item, source_offset(task, row_of(task, item * task.pack), 0),
                              item * task.pack * task.unit);
}

inline void bind_gather_plan(pybind11::module_& module) {
  namespace py = pybind11;
  module.attr("TASK_COLUMNS") = kTaskColumns;
  module.attr("TASK_BYTES") = static_cast<std::int64_t>(sizeof(GatherTask));
  module.attr("TASK_DIMS") = kTaskDims;
  module.attr("BLOCK_ITEMS") = kGatherThreads * kGatherItems;
  module.def("gather_plan", &py_gather_plan, py::arg("table"), py::arg("jobs"), py::arg("tasks"));
  module.def("gather_emulate", &py_gather_emulate, py::arg("tasks"), py::arg("jobs"), py::arg("blocks"));
  module.def("gather_offsets", &py_gather_offsets, py::arg("tasks"), py::arg("jobs"), py::arg("block"),
             py::arg("thread"), py::arg("i"));
}

}  // namespace fairkern
