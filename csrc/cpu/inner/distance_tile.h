// Distances of sorted lines: tiles of classes are compared as a matrix product would be, with |a - b| in place of a · b.
#pragma once

#include <algorithm>

#include "cpu/inner.h"
#include "cpu/inner/vectors.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// In parts, because a vector of doubles that is wider than a register is taken apart into scalars.
template <class T>
FAIRKERN_KERNEL_INLINE void add_widened(double* sums, VectorOf<T> value) {
  using V = VectorOf<double>;
  using Part = typename VectorType<T>::part;
  constexpr int W = width_of<double>();
  T lanes[width_of<T>()];
  store(lanes, opaque(value));  // what is taken apart here may not be a sum's register: it would be kept in memory
  for (int lane = 0; lane < width_of<T>(); lane += W)
    store(sums + lane, V(load<V>(sums + lane) + __builtin_convertvector(load<Part>(lanes + lane), V)));
}

constexpr std::int64_t kFlush = 256;  // terms summed in T before they are added to a double

template <int Power, class V>
FAIRKERN_KERNEL_INLINE V gap(V difference) {
  if constexpr (Power == 2) return difference * difference;
  return absolute<V>(difference);
}

// sums[a][b][lane] = Σ over depth of |x_a - y_b|^Power: the register tile.
template <class T, int A, int B, int Power = 1>
FAIRKERN_KERNEL_INLINE void equal_tile(const T* const* x, const T* const* y, std::int64_t depth, double* sums) {
  using V = VectorOf<T>;
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  for (std::int64_t begin = 0; begin < depth; begin += kFlush) {
    const std::int64_t end = std::min(begin + kFlush, depth);
    for (int lane = 0; lane < L; lane += W) {
      V total[A][B] = {};
      for (std::int64_t d = begin; d < end; ++d) {
        V left[A];
        for (int a = 0; a < A; ++a) left[a] = load<V>(x[a] + d * L + lane);
        for (int b = 0; b < B; ++b) {
          const V right = load<V>(y[b] + d * L + lane);
          for (int a = 0; a < A; ++a) total[a][b] += gap<Power, V>(left[a] - right);
        }
      }
      for (int a = 0; a < A; ++a)
        for (int b = 0; b < B; ++b) add_widened<T>(sums + (a * kTile + b) * L + lane, total[a][b]);
    }
  }
}

// Different numbers of samples n and m: ∫|F⁻¹ - G⁻¹|^Power is a sum over the common refinement of the grids i/n and j/m,
// walked in units of 1/(n·m). Scaled by n so that the caller divides both kinds of tile by the first count.
template <class T, int A, int B, int Power = 1>
FAIRKERN_KERNEL_INLINE void unequal_tile(const T* const* x, const T* const* y, std::int64_t n, std::int64_t m,
                                         std::int64_t vectors, double* sums) {
  using V = VectorOf<T>;
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  const T unit = static_cast<T>(1) / static_cast<T>(m);
  for (std::int64_t v = 0; v < vectors; ++v) {
    for (int lane = 0; lane < L; lane += W) {
      std::int64_t i = 0, j = 0, at = 0;
      while (i < n) {
        V total[A][B] = {};
        for (std::int64_t terms = 0; terms < kFlush && i < n; ++terms) {
          const std::int64_t next_i = (i + 1) * m, next_j = (j + 1) * n;
          const std::int64_t next = std::min(next_i, next_j);
          const T weight = static_cast<T>(next - at) * unit;
          V left[A];
          for (int a = 0; a < A; ++a) left[a] = load<V>(x[a] + (v * n + i) * L + lane);
          for (int b = 0; b < B; ++b) {
            const V right = load<V>(y[b] + (v * m + j) * L + lane);
            for (int a = 0; a < A; ++a) total[a][b] += weight * gap<Power, V>(left[a] - right);
          }
          at = next;
          i += next == next_i;
          j += next == next_j;
        }
        for (int a = 0; a < A; ++a)
          for (int b = 0; b < B; ++b) add_widened<T>(sums + (a * kTile + b) * L + lane, total[a][b]);
      }
    }
  }
}

template <class T, int A>
FAIRKERN_KERNEL_INLINE void tile_row(const T* const* x, const T* const* y, const Run& left, const Run& right,
                                     std::int64_t vectors, double* sums) {
#define FAIRKERN_TILE(B)                                                              \
  left.count == right.count ? equal_tile<T, A, B>(x, y, left.count* vectors, sums)    \
                            : unequal_tile<T, A, B>(x, y, left.count, right.count, vectors, sums)
  switch (right.size) {
    case 1: FAIRKERN_TILE(1); break;
    case 2: FAIRKERN_TILE(2); break;
    case 3: FAIRKERN_TILE(3); break;
    default: FAIRKERN_TILE(4); break;
  }
#undef FAIRKERN_TILE
}

// Registers hold 4 × 4 sums in AVX-512, 2 × 4 in the narrower sets; the tile is walked in parts of that size.
template <class T>
FAIRKERN_KERNEL_SHARED void tile(const T* const* x, const T* const* y, const Run& left, const Run& right,
                                 std::int64_t vectors, double* sums) {
  constexpr int L = lanes_of<T>();
  constexpr int kRows = kWidth == kLineBytes ? kTile : 2;
  for (std::int64_t a = 0; a < left.size; a += kRows) {
    double* at = sums + a * kTile * L;
    switch (std::min<std::int64_t>(kRows, left.size - a)) {
      case 1: tile_row<T, 1>(x + a, y, left, right, vectors, at); break;
      case 2: tile_row<T, 2>(x + a, y, left, right, vectors, at); break;
      case 3: tile_row<T, kRows == 4 ? 3 : 2>(x + a, y, left, right, vectors, at); break;
      default: tile_row<T, kRows>(x + a, y, left, right, vectors, at); break;
    }
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
