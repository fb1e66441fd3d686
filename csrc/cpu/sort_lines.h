// Sorts the lanes of lines: by a network of vector min and max over whole lines, or, for many samples, each column by
// itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/lines.h"
#include "cpu/radix_sort.h"
#include "cpu/sort_registers.h"

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

template <class T, int Width>
FAIRKERN_INLINE void sort_by_network(T* lines, std::int64_t count, const Network& network) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  if constexpr (Width > 16)  // too few registers otherwise
    if (count == 16 || count == 32) {
      for (int lane = 0; lane < L; lane += W)
        count == 16 ? sort_in_registers<T, Width, L, 1>(lines + lane) : sort_in_registers<T, Width, L, 2>(lines + lane);
      return;
    }
  for (const Comparator& pair : network) {
    T* low = reinterpret_cast<T*>(reinterpret_cast<char*>(lines) + pair.low);
    T* high = reinterpret_cast<T*>(reinterpret_cast<char*>(lines) + pair.high);
    for (int lane = 0; lane < L; lane += W) {
      const V a = load<V>(low + lane), b = load<V>(high + lane);
      store(low + lane, V(a < b ? a : b));
      store(high + lane, V(a < b ? b : a));
    }
  }
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

// The first `filled` lanes. Lines are turned into columns a tile at a time, so that each is read once.
template <class T>
void sort_by_column(T* lines, std::int64_t count, std::int64_t filled, ColumnKeys<T>& room) {
  constexpr int L = lanes_of<T>();
  constexpr std::int64_t kTurn = 64;  // lines of a tile
  for (std::int64_t begin = 0; begin < count; begin += kTurn)
    for (std::int64_t lane = 0; lane < filled; ++lane)
      for (std::int64_t i = begin; i < std::min(begin + kTurn, count); ++i)
        room.keys[lane * count + i] = to_key(lines[i * L + lane]);
  for (std::int64_t lane = 0; lane < filled; ++lane) {
    RadixKey<T>* column = room.keys.data() + lane * count;
    const RadixKey<T>* sorted = radix_sort(column, room.spare.data(), count);
    if (sorted != column) std::copy_n(sorted, count, column);
  }
  for (std::int64_t begin = 0; begin < count; begin += kTurn)
    for (std::int64_t lane = 0; lane < filled; ++lane)
      for (std::int64_t i = begin; i < std::min(begin + kTurn, count); ++i)
        lines[i * L + lane] = from_key<T>(room.keys[lane * count + i]);
}

// `filled` lanes of `count` lines; `network` is null for sorting column by column.
template <class T, int Width>
FAIRKERN_INLINE void sort_lines(T* lines, std::int64_t count, std::int64_t filled, const Network* network,
                                ColumnKeys<T>& room) {
  if (network)
    sort_by_network<T, Width>(lines, count, *network);
  else
    sort_by_column<T>(lines, count, filled, room);
}

}  // namespace fairkern
