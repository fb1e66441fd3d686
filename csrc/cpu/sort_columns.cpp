// Sorts lanes column by column. Scalar code: the same for every instruction set.
#include <algorithm>

#include "cpu/sorting.h"

namespace fairkern {

// Lines are turned into columns a tile at a time, so that each is read once.
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

template void sort_by_column(float*, std::int64_t, std::int64_t, ColumnKeys<float>&);
template void sort_by_column(double*, std::int64_t, std::int64_t, ColumnKeys<double>&);

}  // namespace fairkern
