// Sorts 16 or 32 rows of lanes with the rows in registers: few loads and stores where a network that is walked in
// memory has two of each per comparator.
#pragma once

#include <utility>

#include "cpu/inner/vectors.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// Compares row First + i with the one `Distance` below it, for all i whose bit `Distance` is clear: half a merge.
template <int Distance, class V, int N, int... I>
FAIRKERN_KERNEL_INLINE void exchange_all(V (&rows)[N], std::integer_sequence<int, I...>) {
  (order(rows[(I / Distance) * 2 * Distance + I % Distance],
         rows[(I / Distance) * 2 * Distance + I % Distance + Distance]),
   ...);
}

// Compares each run of `Size` rows, two sorted halves, from the outside in: both halves become bitonic.
template <int Size, class V, int N, int... I>
FAIRKERN_KERNEL_INLINE void fold_all(V (&rows)[N], std::integer_sequence<int, I...>) {
  (order(rows[(I / (Size / 2)) * Size + I % (Size / 2)],
         rows[(I / (Size / 2)) * Size + Size - 1 - I % (Size / 2)]),
   ...);
}

template <int Distance, class V, int N>
FAIRKERN_KERNEL_INLINE void bitonic(V (&rows)[N]) {
  if constexpr (Distance > 0) {
    exchange_all<Distance>(rows, std::make_integer_sequence<int, N / 2>{});
    bitonic<Distance / 2>(rows);
  }
}

template <int Size, class V, int N>
FAIRKERN_KERNEL_INLINE void merge_sort(V (&rows)[N]) {
  if constexpr (Size <= N) {
    fold_all<Size>(rows, std::make_integer_sequence<int, N / 2>{});
    bitonic<Size / 4>(rows);
    merge_sort<2 * Size>(rows);
  }
}

// `rows`: 16 · Blocks rows, `Stride` elements apart; Blocks is 1 or 2.
template <class T, int Stride, int Blocks>
FAIRKERN_KERNEL_INLINE void sort_in_registers(T* rows) {
  using V = VectorOf<T>;
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
      held[i] = load<V>(rows + i * Stride);
      V other = load<V>(rows + (2 * kBlock - 1 - i) * Stride);
      order(held[i], other);
      store(rows + (2 * kBlock - 1 - i) * Stride, other);
    }
    bitonic<kBlock / 2>(held);
    for (int i = 0; i < kBlock; ++i) store(rows + i * Stride, held[i]);
    for (int i = 0; i < kBlock; ++i) held[i] = load<V>(rows + (kBlock + i) * Stride);
    bitonic<kBlock / 2>(held);
    for (int i = 0; i < kBlock; ++i) store(rows + (kBlock + i) * Stride, held[i]);
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
