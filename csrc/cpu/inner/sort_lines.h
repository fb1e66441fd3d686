// Sorts the lanes of lines: by a network of vector min and max over whole lines, or, for many samples, each column by
// itself.
#pragma once

#include "cpu/inner/sort_registers.h"
#include "cpu/sorting.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

template <class T>
FAIRKERN_KERNEL_INLINE void sort_by_network(T* lines, std::int64_t count, const Network& network) {
  using V = VectorOf<T>;
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  if constexpr (kWidth > 16)  // too few registers otherwise
    if (count == 16 || count == 32) {
      for (int lane = 0; lane < L; lane += W)
        count == 16 ? sort_in_registers<T, L, 1>(lines + lane) : sort_in_registers<T, L, 2>(lines + lane);
      return;
    }
  for (const Comparator& pair : network) {
    T* low = reinterpret_cast<T*>(reinterpret_cast<char*>(lines) + pair.low);
    T* high = reinterpret_cast<T*>(reinterpret_cast<char*>(lines) + pair.high);
    for (int lane = 0; lane < L; lane += W) {
      V a = load<V>(low + lane), b = opaque(load<V>(high + lane));  // or it would be loaded twice
      order(a, b);
      store(low + lane, a);
      store(high + lane, b);
    }
  }
}

// `filled` lanes of `count` lines; `network` is null for sorting column by column.
template <class T>
FAIRKERN_KERNEL_SHARED void sort_lines(T* lines, std::int64_t count, std::int64_t filled, const Network* network,
                                       ColumnKeys<T>& room) {
  if (network)
    sort_by_network<T>(lines, count, *network);
  else
    sort_by_column<T>(lines, count, filled, room);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
