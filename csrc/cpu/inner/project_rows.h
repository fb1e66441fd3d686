// Products of positions and directions, summed in registers: for the lines in which class_wasserstein sorts the samples
// of a unit, and for project.
#pragma once

#include <algorithm>

#include "cpu/inner.h"
#include "cpu/inner/vectors.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// Where sums go: row r of vector v at at + r·row + v·vector. `more`: they are added to what is there.
template <class T>
struct Target {
  T* at;
  std::int64_t row, vector;
  bool more;
};

// target[v][r][lane] = Σ_d values[r][d·step] · directions[d][v][lane], summed in the order of d with one rounding for
// each product and its addition, whole tiles and what is left of them alike: a sum depends on its row alone, and all
// instruction sets agree. `padded`: elements from a position's directions to the next's.
template <class T, int Rows, int Vectors>
FAIRKERN_KERNEL_INLINE void project_block(const T* const* values, std::int64_t step, std::int64_t positions,
                                          const T* directions, std::int64_t padded, const Target<T>& target) {
  using V = VectorOf<T>;
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  for (int lane = 0; lane < L; lane += W) {
    T* to = target.at + lane;
    V total[Rows][Vectors] = {};
    if (target.more)
      for (int v = 0; v < Vectors; ++v)
        for (int r = 0; r < Rows; ++r) total[r][v] = load<V>(to + r * target.row + v * target.vector);
    for (std::int64_t d = 0; d < positions; ++d) {
      const T* along = directions + d * padded + lane;
      for (int v = 0; v < Vectors; ++v) {
        const V direction = load<V>(along + v * L);
        for (int r = 0; r < Rows; ++r) total[r][v] = fused(values[r][d * step] - V{}, direction, total[r][v]);
      }
    }
    for (int v = 0; v < Vectors; ++v)
      for (int r = 0; r < Rows; ++r) store(to + r * target.row + v * target.vector, total[r][v]);
  }
}

template <class T, int Rows>
FAIRKERN_KERNEL_INLINE void project_vectors(const T* const* values, std::int64_t step, std::int64_t positions,
                                            const T* directions, std::int64_t padded, std::int64_t vectors,
                                            const Target<T>& target) {
  constexpr int L = lanes_of<T>();
  constexpr int kVectors = kWidth == kLineBytes ? 4 : kWidth == 32 ? 2 : 1;  // as many sums as the registers of the set hold
  Target<T> part = target;
  std::int64_t v = 0;
  for (; v + kVectors <= vectors; v += kVectors, part.at += kVectors * target.vector)
    project_block<T, Rows, kVectors>(values, step, positions, directions + v * L, padded, part);
  if (kVectors > 2 && v + 2 <= vectors) {
    project_block<T, Rows, 2>(values, step, positions, directions + v * L, padded, part);
    v += 2, part.at += 2 * target.vector;
  }
  for (; v < vectors; ++v, part.at += target.vector)
    project_block<T, Rows, 1>(values, step, positions, directions + v * L, padded, part);
}

// As many rows as there are, at most kProjectRows.
template <class T>
FAIRKERN_KERNEL_INLINE void project_some(std::int64_t rows, const T* const* values, std::int64_t step,
                                         std::int64_t positions, const T* directions, std::int64_t padded,
                                         std::int64_t vectors, const Target<T>& target) {
  switch (rows) {
    case 1: project_vectors<T, 1>(values, step, positions, directions, padded, vectors, target); break;
    case 2: project_vectors<T, 2>(values, step, positions, directions, padded, vectors, target); break;
    case 3: project_vectors<T, 3>(values, step, positions, directions, padded, vectors, target); break;
    default: project_vectors<T, 4>(values, step, positions, directions, padded, vectors, target); break;
  }
}

// The samples `rows[0 … count)` of a unit whose position (row, d) is at unit[row·stride_n + d·stride_d]; `target` is
// [vector][sample][lane], `directions` [positions][vector][lane], `values` room for kProjectRows · positions.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void project_rows(const S* unit, const std::int64_t* rows, std::int64_t count,
                                         std::int64_t stride_n, std::int64_t stride_d, std::int64_t positions,
                                         const T* directions, std::int64_t vectors, T* values, T* target) {
  constexpr int L = lanes_of<T>();
  const T* heads[kProjectRows];
  for (std::int64_t r = 0; r < kProjectRows; ++r) heads[r] = values + r * positions;
  for (std::int64_t i = 0; i < count; i += kProjectRows) {
    const std::int64_t together = std::min<std::int64_t>(kProjectRows, count - i);
    for (std::int64_t r = 0; r < together; ++r) {
      const S* source = unit + rows[i + r] * stride_n;
      for (std::int64_t d = 0; d < positions; ++d) values[r * positions + d] = widen(source[d * stride_d]);
    }
    const Target<T> whole{target + i * L, L, count * L, false};
    if (together == kProjectRows) {
      project_vectors<T, kProjectRows>(heads, 1, positions, directions, vectors * L, vectors, whole);
      continue;
    }
    for (std::int64_t r = 0; r < together; ++r)
      project_vectors<T, 1>(heads + r, 1, positions, directions, vectors * L, vectors,
                            {whole.at + r * L, L, count * L, false});
  }
}

// Σ_r values[r·step] · directions[places[r]][v][lane] at `to`, from vector to vector `vector` elements further.
template <class S, int Vectors, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void project_some_places(const S* values, std::int64_t step, const std::int64_t* places,
                                                std::int64_t count, const T* directions, std::int64_t padded, T* to,
                                                std::int64_t vector) {
  using V = VectorOf<T>;
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  for (int lane = 0; lane < L; lane += W) {
    V total[Vectors] = {};
    for (std::int64_t r = 0; r < count; ++r) {
      const T* along = directions + places[r] * padded + lane;
      const V value = widen(values[r * step]) - V{};
      for (int v = 0; v < Vectors; ++v) total[v] = fused(value, load<V>(along + v * L), total[v]);
    }
    for (int v = 0; v < Vectors; ++v) store(to + lane + v * vector, total[v]);
  }
}

// As project_rows, of samples of whose positions some are there and all others zero: of sample n those that lie at
// unit[r·step], of position places[r], for r from begins[n] to begins[n + 1]. In the order of positions the sums are to
// the bit those of project_rows with the zeros.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void project_placed(const S* unit, std::int64_t step, const std::int64_t* rows,
                                           std::int64_t count, const std::int64_t* begins, const std::int64_t* places,
                                           const T* directions, std::int64_t vectors, T* target) {
  constexpr int L = lanes_of<T>();
  constexpr int kVectors = kWidth == 16 ? 2 : 8;
  const std::int64_t padded = vectors * L, vector = count * L;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t first = begins[rows[i]], some = begins[rows[i] + 1] - first;
    const S* values = unit + first * step;
    T* to = target + i * L;
    std::int64_t v = 0;
    for (; v + kVectors <= vectors; v += kVectors)
      project_some_places<S, kVectors>(values, step, places + first, some, directions + v * L, padded, to + v * vector,
                                       vector);
    for (; v < vectors; ++v)
      project_some_places<S, 1>(values, step, places + first, some, directions + v * L, padded, to + v * vector, vector);
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
