// eliminate: what the steps of a block have made of a stretch of two columns.
#pragma once

#include "cpu/inner.h"
#include "cpu/inner/vectors.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

constexpr int kSteps = 4;  // steps that share one pass over the columns

// inverse[p] −= Σ own[j] · half[j, p] and output[p] += Σ own[j] · mixed[j, p] + others[j] · half[j, p], j ascending.
template <int kCount>
FAIRKERN_KERNEL_INLINE void some_steps(const double* half, const double* mixed, std::int64_t stride, const double* own,
                                       const double* others, std::int64_t length, double* inverse, double* output) {
  using V = VectorOf<double>;
  constexpr int W = width_of<double>();
  std::int64_t p = 0;
  for (; p + W <= length; p += W) {
    V a = load<V>(inverse + p), h = load<V>(output + p);
    for (int j = 0; j < kCount; ++j) {
      const V x = load<V>(half + j * stride + p), y = load<V>(mixed + j * stride + p);
      a -= own[j] * x;
      h += own[j] * y + others[j] * x;
    }
    store(inverse + p, a);
    store(output + p, h);
  }
  for (; p < length; ++p)
    for (int j = 0; j < kCount; ++j) {
      const double x = half[j * stride + p], y = mixed[j * stride + p];
      inverse[p] -= own[j] * x;
      output[p] += own[j] * y + others[j] * x;
    }
}

FAIRKERN_KERNEL void stretch(const double* half, const double* mixed, std::int64_t stride, std::int64_t steps,
                             const double* own, const double* others, std::int64_t length, double* inverse,
                             double* output) {
  std::int64_t j = 0;
  for (; j + kSteps <= steps; j += kSteps)
    some_steps<kSteps>(half + j * stride, mixed + j * stride, stride, own + j, others + j, length, inverse, output);
  for (; j < steps; ++j)
    some_steps<1>(half + j * stride, mixed + j * stride, stride, own + j, others + j, length, inverse, output);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
