// Sorts 16 or 32 rows of lanes with the rows in registers: few loads and stores where a network that is walked in
// memory has two of each per comparator.
#pragma once

#include <utility>

#include "cpu/isa.h"

namespace fairkern {

template <int Low, int High, class V, int N>
FAIRKERN_INLINE void exchange(V (&rows)[N]) {
  const V a = rows[Low], b = rows[High];
  rows[Low] = a < b ? a : b;
  rows[High] = a < b ? b : a;
}

// Compares row First + i with the one `Distance` below it, for all i whose bit `Distance` is clear: half a merge.
template <int Distance, class V, int N, int... I>
FAIRKERN_INLINE void exchange_all(V (&rows)[N], std::integer_sequence<int, I...>) {
  (exchange<(I / Distance) * 2 * Distance + I % Distance, (I / Distance) * 2 * Distance + I % Distance + Distance>(rows),
   ...);
}

// Compares each run of `Size` rows, two sorted halves, from the outside in: both halves become bitonic.
template <int Size, class V, int N, int... I>
FAIRKERN_INLINE void fold_all(V (&rows)[N], std::integer_sequence<int, I...>) {
  (exchange<(I / (Size / 2)) * Size + I % (Size / 2), (I / (Size / 2)) * Size + Size - 1 - I % (Size / 2)>(rows), ...);
}

template <int Distance, class V, int N>
FAIRKERN_INLINE void bitonic(V (&rows)[N]) {
  if constexpr (Distance > 0) {
    exchange_all<Distance>(rows, std::make_integer_sequence<int, N / 2>{});
    bitonic<Distance / 2>(rows);
  }
}

template <int Size, class V, int N>
FAIRKERN_INLINE void merge_sort(V (&rows)[N]) {
  if constexpr (Size <= N) {
    fold_all<Size>(rows, std::make_integer_sequence<int, N / 2>{});
    bitonic<Size / 4>(rows);
    merge_sort<2 * Size>(rows);
  }
}

// `rows`: 16 · Blocks rows, `Stride` elements apart; Blocks is 1 or 2.
template <class T, int Width, int Stride, int Blocks>
FAIRKERN_INLINE void sort_in_registers(T* rows) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int kBlock = 16;
  V held[kBlock];
  for (int block = 0; block < Blocks; ++block) {
    T* from = rows + block * kBlock * Stride;
    for (int i = 0; i < kBlock; ++i) held[i] = load<V>(from + i * Stride);
    merge_sort<2>(held);
    for (int i = 0; i < kBlock; ++i) store(from + i * Stride, held[i]);
  }
  if constexpr (Blocks == 2) {
    for (int i = 0; i < kBlock; ++i) {
      const V a = load<V>(rows + i * Stride), b = load<V>(rows + (2 * kBlock - 1 - i) * Stride);
      held[i] = a < b ? a : b;
      store(rows + (2 * kBlock - 1 - i) * Stride, V(a < b ? b : a));
    }
    bitonic<kBlock / 2>(held);
    for (int i = 0; i < kBlock; ++i) store(rows + i * Stride, held[i]);
    for (int i = 0; i < kBlock; ++i) held[i] = load<V>(rows + (kBlock + i) * Stride);
    bitonic<kBlock / 2>(held);
    for (int i = 0; i < kBlock; ++i) store(rows + (kBlock + i) * Stride, held[i]);
  }
}

}  // namespace fairkern
