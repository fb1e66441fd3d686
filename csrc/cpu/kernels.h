// The entry points of the CPU kernels: pointers, sizes and strides in, nothing out.
#pragma once

#include <cstdint>

#include "cpu/floats.h"
#include "cpu/isa.h"

namespace fairkern {

enum class Reduce : int { maximum = 0, mean = 1, pairs = 2 };

struct ClassWassersteinArgs {
  const void* x;                  // element (row, unit, projection) at row·stride_n + unit·stride_c + projection·stride_p
  std::int64_t stride_n, stride_c, stride_p;  // in elements
  std::int64_t units, projections;
  const void* directions;         // [positions, projections], type of `out`: the third index of x is then a position,
  std::int64_t positions;         // and its projections are compared; null: x is compared as it is
  const std::int64_t* rows;       // [samples]: row numbers, class after class
  const std::int64_t* offsets;    // [classes + 1]: where each class begins in `rows`
  std::int64_t classes;
  Reduce reduce;
  void* out;                      // [units], or [pairs, units]; float, or double for float64
  int threads;
  Isa isa;
};
void class_wasserstein(Element element, const ClassWassersteinArgs& args);

struct TaylorArgs {
  const void *act, *grad;  // [samples, before, channels, after], contiguous
  std::int64_t samples, before, channels, after;
  void *signed_sum, *per_sample, *activation;  // [channels]; float, or double for float64
  int threads;
  Isa isa;
};
void taylor(Element element, const TaylorArgs& args);

constexpr int kGatherDims = 12;

struct GatherJob {
  const char* source;
  char* target;  // contiguous
  std::int64_t element_size;
  std::int64_t dims;
  std::int64_t shape[kGatherDims];         // of the result
  std::int64_t strides[kGatherDims];       // of the source, in bytes
  const std::int64_t* index[kGatherDims];  // [shape[d]], or null: every position
};
void gather(const GatherJob& job, int threads);

}  // namespace fairkern
