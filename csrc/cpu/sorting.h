// How lines are sorted: the network of comparators, and what sorting column by column needs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/lines.h"
#include "cpu/radix_sort.h"

namespace fairkern {

struct Comparator {
  std::uint32_t low, high;  // lines, in bytes from the first
};
using Network = std::vector<Comparator>;

// Batcher's merge exchange for any n (Knuth, TAOCP 3, 5.2.2, algorithm M).
inline Network sorting_network(std::int64_t n) {
  Network network;
  if (n < 2) return network;
  const auto line = [](std::int64_t row) { return static_cast<std::uint32_t>(row * kLineBytes); };
  std::int64_t top = 1;
  while (top * 2 < n) top *= 2;
  for (std::int64_t p = top; p > 0; p /= 2) {
    std::int64_t q = top, r = 0, d = p;
    for (;;) {
      for (std::int64_t i = 0; i + d < n; ++i)
        if ((i & p) == r) network.push_back({line(i), line(i + d)});
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
  return network;
}

// How `count` samples are sorted: with a network up to `limit` of them, column by column above.
inline std::unique_ptr<Network> network_for(std::int64_t count, std::int64_t limit) {
  return count <= limit ? std::make_unique<Network>(sorting_network(count)) : nullptr;
}

// What sorting column by column needs: a thread's own, made before threads start.
template <class T>
struct ColumnKeys {
  std::vector<RadixKey<T>> keys, spare;

  void reserve(std::int64_t columns, std::int64_t count) {
    keys.resize(columns * count);
    spare.resize(count);
  }
};

// Sorts the first `filled` lanes of `count` lines, each by itself.
template <class T>
void sort_by_column(T* lines, std::int64_t count, std::int64_t filled, ColumnKeys<T>& room);

}  // namespace fairkern
