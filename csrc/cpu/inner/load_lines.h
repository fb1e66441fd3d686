// Brings samples into lines, and marks where they are NaN.
#pragma once

#include <algorithm>

#include "cpu/inner/vectors.h"
#include "cpu/lines.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// NaN becomes +inf, so that it can be sorted. Returns where it was.
template <class T, class V>
FAIRKERN_KERNEL_INLINE auto store_marked(V value, T* target) {
  using Mask = decltype(V{} < V{});
  const Mask infinite = reinterpret_cast<Mask>(V{} + std::numeric_limits<T>::infinity());
  const Mask bits = reinterpret_cast<Mask>(value), missing = is_nan(value);
  store(target, Mask((missing & infinite) | (~missing & bits)));
  return missing;
}

template <class T>
FAIRKERN_KERNEL_INLINE bool any_set(const Flag<T>* nan, std::int64_t length) {
  Flag<T> any = 0;
  for (std::int64_t lane = 0; lane < length; ++lane) any |= nan[lane];
  return any != 0;
}

// The samples `rows[0 … count)`, or 0 … count where `rows` is null. Lanes that are not columns are 0. `nan`,
// [vector][lane], is set where a column holds NaN; returns whether any does.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE bool load_lines(const Columns<S>& columns, const std::int64_t* rows, std::int64_t count,
                                       T* lines, Flag<T>* nan) {
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  std::fill(nan, nan + columns.vectors * L, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    const S* row = columns.corner + (rows ? rows[i] : i) * columns.stride_n;
    for (std::int64_t v = 0; v < columns.vectors; ++v) {
      const S* source = row + v * columns.stride_v;
      const std::int64_t filled = columns.filled(v, L);
      S gathered[L] = {};
      if (filled < L || columns.stride_l != 1) {
        for (std::int64_t lane = 0; lane < filled; ++lane) gathered[lane] = source[lane * columns.stride_l];
        source = gathered;
      }
      T* target = lines + (v * count + i) * L;
      for (int lane = 0; lane < L; lane += W) {
        auto missing = store_marked<T>(load_wide(source + lane), target + lane);
        using Mask = decltype(missing);
        store(nan + v * L + lane, Mask(load<Mask>(nan + v * L + lane) | missing));
      }
    }
  }
  return any_set<T>(nan, columns.vectors * L);
}

// Puts NaN into the first of the sorted lines of a vector, where its column held one: what is compared with it is NaN.
template <class T>
FAIRKERN_KERNEL_INLINE void restore_nan(const Flag<T>* nan, T* line) {
  for (int lane = 0; lane < lanes_of<T>(); ++lane)
    if (nan[lane]) line[lane] = std::numeric_limits<T>::quiet_NaN();
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
