// Samples of many columns as cache lines, [vector][sample][lane]: a lane holds a column, and no lane looks at another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/floats.h"

namespace fairkern {

template <class T>
using Flag = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
constexpr int lanes_of() {
  return kLineBytes / static_cast<int>(sizeof(T));
}

// Which columns are brought into the lanes of how many vectors: lane l of vector v of sample n is
// corner[n·stride_n + v·stride_v + l·stride_l], and the first filled(v) lanes are columns.
template <class S>
struct Columns {
  const S* corner;
  std::int64_t stride_n, stride_v, stride_l;
  std::int64_t vectors;
  std::int64_t first;  // columns in vector 0 and after it
  std::int64_t step;   // fewer in every vector after that

  std::int64_t filled(std::int64_t vector, int lanes) const {
    return std::min<std::int64_t>(lanes, first - vector * step);
  }
};

// NaN becomes +inf, so that it can be sorted. Returns where it was.
template <class T, class V>
FAIRKERN_INLINE auto store_marked(V value, T* target) {
  using Mask = decltype(V{} < V{});
  const Mask infinite = reinterpret_cast<Mask>(V{} + std::numeric_limits<T>::infinity());
  const Mask bits = reinterpret_cast<Mask>(value), missing = is_nan(value);
  store(target, Mask((missing & infinite) | (~missing & bits)));
  return missing;
}

template <class T>
FAIRKERN_INLINE bool any_set(const Flag<T>* nan, std::int64_t length) {
  Flag<T> any = 0;
  for (std::int64_t lane = 0; lane < length; ++lane) any |= nan[lane];
  return any != 0;
}

// The samples `rows[0 … count)`, or 0 … count where `rows` is null. Lanes that are not columns are 0. `nan`, [vector][lane],
// is set where a column holds NaN; returns whether any does.
template <class S, class T, int Width>
FAIRKERN_INLINE bool load_lines(const Columns<S>& columns, const std::int64_t* rows, std::int64_t count, T* lines,
                                Flag<T>* nan) {
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
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
        auto missing = store_marked<T>(load_wide<Width>(source + lane), target + lane);
        using Mask = decltype(missing);
        store(nan + v * L + lane, Mask(load<Mask>(nan + v * L + lane) | missing));
      }
    }
  }
  return any_set<T>(nan, columns.vectors * L);
}

// Puts NaN into the first of the sorted lines of a vector, where its column held one: what is compared with it is NaN.
template <class T>
FAIRKERN_INLINE void restore_nan(const Flag<T>* nan, T* line) {
  for (int lane = 0; lane < lanes_of<T>(); ++lane)
    if (nan[lane]) line[lane] = std::numeric_limits<T>::quiet_NaN();
}

struct FreeAligned {
  void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t(kLineBytes)); }
};
using AlignedBytes = std::unique_ptr<char[], FreeAligned>;

inline AlignedBytes aligned_bytes(std::size_t bytes) {
  return AlignedBytes(static_cast<char*>(::operator new[](bytes, std::align_val_t(kLineBytes))));
}

inline std::size_t whole_lines(std::size_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

}  // namespace fairkern
