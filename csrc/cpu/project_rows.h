// Projects samples of one unit onto directions, into the lines in which class_wasserstein sorts them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/floats.h"

namespace fairkern {

constexpr int kProjectRows = 4;  // samples that share one read of the directions

// target[v][r][lane] = Σ_d values[r][d] · directions[d][v][lane], summed in the order of d with one rounding for each
// product and each sum, so that all instruction sets agree. `line`: elements from a vector's first row to the next's.
template <class T, int Width, int Rows, int Vectors>
FAIRKERN_INLINE void project_block(const T* values, std::int64_t positions, const T* directions, std::int64_t padded,
                                   T* target, std::int64_t line) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int L = kLineBytes / static_cast<int>(sizeof(T)), W = Width / static_cast<int>(sizeof(T));
  for (int lane = 0; lane < L; lane += W) {
    V total[Rows][Vectors] = {};
    for (std::int64_t d = 0; d < positions; ++d) {
      const T* along = directions + d * padded + lane;
      for (int v = 0; v < Vectors; ++v) {
        const V direction = load<V>(along + v * L);
        for (int r = 0; r < Rows; ++r) total[r][v] += direction * values[r * positions + d];
      }
    }
    for (int v = 0; v < Vectors; ++v)
      for (int r = 0; r < Rows; ++r) store(target + v * line + r * L + lane, total[r][v]);
  }
}

template <class T, int Width, int Rows>
FAIRKERN_INLINE void project_vectors(const T* values, std::int64_t positions, const T* directions,
                                     std::int64_t vectors, T* target, std::int64_t line) {
  constexpr int L = kLineBytes / static_cast<int>(sizeof(T));
  constexpr int kVectors = Width == kLineBytes ? 4 : 1;  // as many sums as the registers of the set hold
  std::int64_t v = 0;
  for (; v + kVectors <= vectors; v += kVectors)
    project_block<T, Width, Rows, kVectors>(values, positions, directions + v * L, vectors * L, target + v * line, line);
  for (; v < vectors; ++v)
    project_block<T, Width, Rows, 1>(values, positions, directions + v * L, vectors * L, target + v * line, line);
}

// The samples `rows[0 … count)` of a unit whose position (row, d) is at unit[row·stride_n + d·stride_d]; `target` is
// [vector][sample][lane], `directions` [positions][vector][lane], `values` room for kProjectRows · positions.
template <class S, class T, int Width>
FAIRKERN_INLINE void project_rows(const S* unit, const std::int64_t* rows, std::int64_t count, std::int64_t stride_n,
                                  std::int64_t stride_d, std::int64_t positions, const T* directions,
                                  std::int64_t vectors, T* values, T* target) {
  constexpr int L = kLineBytes / static_cast<int>(sizeof(T));
  for (std::int64_t i = 0; i < count; i += kProjectRows) {
    const std::int64_t together = std::min<std::int64_t>(kProjectRows, count - i);
    for (std::int64_t r = 0; r < together; ++r) {
      const S* source = unit + rows[i + r] * stride_n;
      for (std::int64_t d = 0; d < positions; ++d) values[r * positions + d] = widen(source[d * stride_d]);
    }
    if (together == kProjectRows) {
      project_vectors<T, Width, kProjectRows>(values, positions, directions, vectors, target + i * L, count * L);
      continue;
    }
    for (std::int64_t r = 0; r < together; ++r)
      project_vectors<T, Width, 1>(values + r * positions, positions, directions, vectors, target + (i + r) * L,
                                   count * L);
  }
}

}  // namespace fairkern
