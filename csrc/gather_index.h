// Where gather reads and writes: the same arithmetic on the device and on the host, which walks it for the tests.
//
// A task is one tensor: a contiguous target of `dims` dimensions, counted in units of 1 to 16 bytes. A launch is a row
// of blocks, each of one task; a thread of a block moves kGatherItems items of `pack` neighbouring units.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FAIRKERN_BOTH __host__ __device__ inline
#else
#define FAIRKERN_BOTH inline
#endif

namespace fairkern {

constexpr int kTaskDims = 12;
constexpr int kGatherThreads = 256;
constexpr int kGatherItems = 8;

// Division of 0 … 2³¹ − 1 by a number as a multiplication (Granlund and Montgomery 1994).
struct Divisor {
  std::int64_t value, magic, shift;
};

struct GatherTask {
  std::int64_t source, target;     // addresses
  std::int64_t unit, pack;         // bytes per unit; units per item, which share a row
  std::int64_t dims, items;
  std::int64_t small;              // whether all unit numbers are below 2³¹
  std::int64_t first_block;
  std::int64_t own;                // whether an index has a row of its own for every position of dimension 0
  Divisor below_first;             // units per position of dimension 0
  Divisor shape[kTaskDims];        // of the target
  std::int64_t stride[kTaskDims];  // of the source, in bytes
  std::int64_t index[kTaskDims];   // address of int64 positions, or 0: every position
  std::int64_t step[kTaskDims];    // from one row of the index to the next: 0 where all share one
};

FAIRKERN_BOTH std::int64_t quotient(std::int64_t number, const Divisor& by, bool small) {
  if (!small) return number / by.value;
  const std::uint32_t n = static_cast<std::uint32_t>(number);
#ifdef __CUDA_ARCH__
  const std::uint32_t high = __umulhi(n, static_cast<std::uint32_t>(by.magic));
#else
  const std::uint32_t high =
      static_cast<std::uint32_t>((static_cast<std::uint64_t>(n) * static_cast<std::uint64_t>(by.magic)) >> 32);
#endif
  return (high + n) >> static_cast<std::uint32_t>(by.shift);
}

FAIRKERN_BOTH std::int64_t place(const GatherTask& task, std::int64_t dim, std::int64_t digit, std::int64_t first) {
  const std::int64_t* index = reinterpret_cast<const std::int64_t*>(task.index[dim]);
  return (index ? index[first * task.step[dim] + digit] : digit) * task.stride[dim];
}

// Unit number `at` of the target, taken apart: its column, its position in dimension 0, and the byte offset of its row.
struct GatherRow {
  std::int64_t column, first, offset;
};

FAIRKERN_BOTH GatherRow row_of(const GatherTask& task, std::int64_t at) {
  const bool small = task.small != 0;
  GatherRow row{0, task.own ? quotient(at, task.below_first, small) : 0, 0};
#ifdef __CUDA_ARCH__
#pragma unroll 2  // two index reads under way; more than that spills registers, and is most of what ptxas takes
#endif
  for (std::int64_t d = task.dims - 1; d >= 0; --d) {
    const std::int64_t rest = quotient(at, task.shape[d], small), digit = at - rest * task.shape[d].value;
    if (d == task.dims - 1)
      row.column = digit;
    else
      row.offset += place(task, d, digit, row.first);
    at = rest;
  }
  return row;
}

FAIRKERN_BOTH std::int64_t source_offset(const GatherTask& task, const GatherRow& row, std::int64_t k) {
  return row.offset + (task.dims ? place(task, task.dims - 1, row.column + k, row.first) : 0);
}

FAIRKERN_BOTH std::int64_t item_of(const GatherTask& task, std::int64_t block, std::int64_t thread, std::int64_t i) {
  return ((block - task.first_block) * kGatherItems + i) * kGatherThreads + thread;
}

// The task of a block: the last one that does not begin after it. Tasks without items begin where the next one does.
FAIRKERN_BOTH std::int64_t task_of(const GatherTask* tasks, std::int64_t jobs, std::int64_t block) {
  std::int64_t low = 0, high = jobs;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (tasks[middle].first_block <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

}  // namespace fairkern
