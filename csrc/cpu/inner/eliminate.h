// eliminate: what the steps of a block have made of a stretch of two columns, and of whole matrices.
#pragma once

#include <algorithm>
#include <cmath>

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

// column[p] −= Σ half[j · stride] · half[j, p], j ascending: what sweeps of a block have made of one column.
FAIRKERN_KERNEL void swept(const double* half, std::int64_t stride, std::int64_t steps, const double* own,
                           std::int64_t length, double* column) {
  using V = VectorOf<double>;
  constexpr int W = width_of<double>();
  std::int64_t p = 0;
  for (; p + 2 * W <= length; p += 2 * W) {
    V a = load<V>(column + p), b = load<V>(column + p + W);
    for (std::int64_t j = 0; j < steps; ++j) {
      const V by = V{} - own[j];
      a = fused(by, load<V>(half + j * stride + p), a);
      b = fused(by, load<V>(half + j * stride + p + W), b);
    }
    store(column + p, a);
    store(column + p + W, b);
  }
  for (; p < length; ++p)
    for (std::int64_t j = 0; j < steps; ++j) column[p] = std::fma(-own[j], half[j * stride + p], column[p]);
}

// The same of two columns: inverse −= Σ own · half, output += Σ own · mixed + others · half.
FAIRKERN_KERNEL void eliminated(const double* half, const double* mixed, std::int64_t stride, std::int64_t steps,
                                const double* own, const double* others, std::int64_t length, double* inverse,
                                double* output) {
  using V = VectorOf<double>;
  constexpr int W = width_of<double>();
  std::int64_t p = 0;
  for (; p + 2 * W <= length; p += 2 * W) {
    V a = load<V>(inverse + p), b = load<V>(inverse + p + W), c = load<V>(output + p), d = load<V>(output + p + W);
    for (std::int64_t j = 0; j < steps; ++j) {
      const V x = load<V>(half + j * stride + p), y = load<V>(half + j * stride + p + W);
      const V mine = V{} + own[j], other = V{} + others[j];
      a = fused(-mine, x, a);
      b = fused(-mine, y, b);
      c = fused(other, x, fused(mine, load<V>(mixed + j * stride + p), c));
      d = fused(other, y, fused(mine, load<V>(mixed + j * stride + p + W), d));
    }
    store(inverse + p, a);
    store(inverse + p + W, b);
    store(output + p, c);
    store(output + p + W, d);
  }
  for (; p < length; ++p)
    for (std::int64_t j = 0; j < steps; ++j) {
      const double x = half[j * stride + p];
      inverse[p] = std::fma(-own[j], x, inverse[p]);
      output[p] = std::fma(others[j], x, std::fma(own[j], mixed[j * stride + p], output[p]));
    }
}

// matrix[i, j] += Σ left[k, i] · right[k, j] for j ≤ i, k ascending. Above the diagonal something is written too, but
// nothing behind the `n` columns. left, right: [depth, pitch].
FAIRKERN_KERNEL void add_lower(double* matrix, std::int64_t stride, std::int64_t n, const double* left,
                               const double* right, std::int64_t pitch, std::int64_t depth) {
  using V = VectorOf<double>;
  constexpr int W = width_of<double>(), kRows = kWidth == 64 ? 8 : 4;
  for (std::int64_t j = 0; j < n; j += 2 * W) {
    const bool fits = j + 2 * W <= n;
    std::int64_t i = j / kRows * kRows;
    for (; i + kRows <= n && fits; i += kRows) {
      V low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) {
        low[r] = load<V>(matrix + (i + r) * stride + j);
        high[r] = load<V>(matrix + (i + r) * stride + j + W);
      }
      for (std::int64_t k = 0; k < depth; ++k) {
        const V x = load<V>(right + k * pitch + j), y = load<V>(right + k * pitch + j + W);
        for (int r = 0; r < kRows; ++r) {
          const V by = V{} + left[k * pitch + i + r];
          low[r] = fused(by, x, low[r]);
          high[r] = fused(by, y, high[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        store(matrix + (i + r) * stride + j, low[r]);
        store(matrix + (i + r) * stride + j + W, high[r]);
      }
    }
    for (; i < n; ++i)  // what no whole tile covers
      for (std::int64_t p = j; p <= std::min(i, j + 2 * W - 1); ++p) {
        double sum = matrix[i * stride + p];
        for (std::int64_t k = 0; k < depth; ++k) sum = std::fma(left[k * pitch + i], right[k * pitch + p], sum);
        matrix[i * stride + p] = sum;
      }
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
