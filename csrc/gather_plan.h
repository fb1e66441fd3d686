// From descriptors to the tasks of a launch, and the launch walked on the host. No CUDA here.
#pragma once

#include <algorithm>
#include <cstring>

#include "check.h"
#include "gather_index.h"

namespace fairkern {

// A row of the table that Python makes: source, target, element size, dims, then per dim shape, stride, index, step.
constexpr std::int64_t kTaskColumns = 4 + 4 * kTaskDims;

inline Divisor divisor(std::int64_t value) {
  Divisor by{value, 0, 0};
  if (value < 1 || value > (std::int64_t{1} << 31) - 1) return by;  // too long: its task is not small
  while ((std::int64_t{1} << by.shift) < value) ++by.shift;
  by.magic = static_cast<std::int64_t>(
      ((std::uint64_t{1} << 32) * ((std::uint64_t{1} << by.shift) - static_cast<std::uint64_t>(value))) /
          static_cast<std::uint64_t>(value) +
      1);
  return by;
}

// The longest unit in which the last dimension, whole and contiguous, can be moved.
inline std::int64_t widest_unit(const std::int64_t* row, std::int64_t dims) {
  const std::int64_t size = row[2], last = dims - 1;
  const std::int64_t *shape = row + 4, *stride = shape + kTaskDims, *index = stride + kTaskDims;
  if (dims == 0 || index[last] != 0 || stride[last] != size) return size;
  for (std::int64_t unit = 16; unit > size; unit /= 2) {
    bool fits = row[0] % unit == 0 && row[1] % unit == 0 && shape[last] * size % unit == 0;
    for (std::int64_t d = 0; d < last; ++d) fits = fits && stride[d] % unit == 0;
    if (fits) return unit;
  }
  return size;
}

// Fills `tasks` and returns the number of blocks.
inline std::int64_t plan_gather(const std::int64_t* table, std::int64_t jobs, GatherTask* tasks) {
  std::int64_t blocks = 0;
  for (std::int64_t j = 0; j < jobs; ++j, table += kTaskColumns) {
    GatherTask& task = tasks[j];
    std::memset(&task, 0, sizeof(task));
    const std::int64_t size = table[2], dims = table[3];
    require(size == 1 || size == 2 || size == 4 || size == 8 || size == 16, "job ", j, ": element size is ", size,
            "; expected 1, 2, 4, 8 or 16 bytes");
    require(dims >= 0 && dims <= kTaskDims, "job ", j, " has ", dims, " dims; at most ", kTaskDims, " are supported");
    task.source = table[0];
    task.target = table[1];
    task.dims = dims;
    task.unit = widest_unit(table, dims);
    std::int64_t units = 1, below = 1;
    for (std::int64_t d = 0; d < dims; ++d) {
      std::int64_t length = table[4 + d], stride = table[4 + kTaskDims + d];
      require(length >= 0, "job ", j, ", dim ", d, " has length ", length);
      if (d == dims - 1 && task.unit != size) {
        length = length * size / task.unit;
        stride = task.unit;
      }
      task.shape[d] = divisor(length);
      task.stride[d] = stride;
      task.index[d] = table[4 + 2 * kTaskDims + d];
      task.step[d] = table[4 + 3 * kTaskDims + d];
      task.own = task.own || task.step[d] != 0;
      units *= length;
      if (d > 0) below *= length;
    }
    require(units == 0 || (task.source != 0 && task.target != 0), "job ", j, " has a null pointer");
    task.below_first = divisor(below);
    task.small = units < (std::int64_t{1} << 31);
    const std::int64_t columns = dims ? task.shape[dims - 1].value : 1, pack = 16 / task.unit;
    task.pack = columns % pack == 0 && task.target % 16 == 0 ? pack : 1;
    task.items = units / task.pack;
    task.first_block = blocks;
    constexpr std::int64_t kPerBlock = std::int64_t{kGatherThreads} * kGatherItems;
    blocks += (task.items + kPerBlock - 1) / kPerBlock;
  }
  return blocks;
}

// What the device does, block by block and thread by thread, on host memory.
inline void emulate_gather(const GatherTask* tasks, std::int64_t jobs, std::int64_t blocks) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    const GatherTask& task = tasks[task_of(tasks, jobs, block)];
    for (std::int64_t thread = 0; thread < kGatherThreads; ++thread)
      for (std::int64_t i = 0; i < kGatherItems; ++i) {
        const std::int64_t item = item_of(task, block, thread, i);
        if (item >= task.items) continue;
        const GatherRow row = row_of(task, item * task.pack);
        char* target = reinterpret_cast<char*>(task.target) + item * task.pack * task.unit;
        for (std::int64_t k = 0; k < task.pack; ++k)
          std::memcpy(target + k * task.unit, reinterpret_cast<const char*>(task.source) + source_offset(task, row, k),
                      task.unit);
      }
  }
}

}  // namespace fairkern
