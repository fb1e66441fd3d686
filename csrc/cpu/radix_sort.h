// Radix sort of one column of floats, by digits of 11 bits from the lowest: for more samples than a network pays off.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/floats.h"

namespace fairkern {

template <class T>
using RadixKey = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// Unsigned integers in the order of the floats: negative ones are turned around, positive ones put above them.
template <class T>
FAIRKERN_INLINE RadixKey<T> to_key(T value) {
  using Key = RadixKey<T>;
  Key bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const Key sign = Key(1) << (8 * sizeof(Key) - 1);
  return bits ^ (bits & sign ? ~Key(0) : sign);
}

template <class T>
FAIRKERN_INLINE T from_key(RadixKey<T> key) {
  using Key = RadixKey<T>;
  const Key sign = Key(1) << (8 * sizeof(Key) - 1);
  const Key bits = key ^ (key & sign ? sign : ~Key(0));
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Sorts `keys[0 … count)`; `spare` has room for as many. Returns where the result is: one of the two.
template <class Key>
inline Key* radix_sort(Key* keys, Key* spare, std::int64_t count) {
  constexpr int kBits = 11, kDigits = (8 * static_cast<int>(sizeof(Key)) + kBits - 1) / kBits;
  constexpr Key kMask = (Key(1) << kBits) - 1;
  std::vector<std::int64_t> counts(kDigits << kBits);
  for (std::int64_t i = 0; i < count; ++i)
    for (int digit = 0; digit < kDigits; ++digit) ++counts[(digit << kBits) + ((keys[i] >> (digit * kBits)) & kMask)];
  for (int digit = 0; digit < kDigits; ++digit) {
    std::int64_t* begin = counts.data() + (digit << kBits);
    const int shift = digit * kBits;
    if (begin[(keys[0] >> shift) & kMask] == count) continue;  // the same digit everywhere
    std::int64_t before = 0;
    for (Key d = 0; d <= kMask; ++d) {
      const std::int64_t here = begin[d];
      begin[d] = before;
      before += here;
    }
    for (std::int64_t i = 0; i < count; ++i) spare[begin[(keys[i] >> shift) & kMask]++] = keys[i];
    std::swap(keys, spare);
  }
  return keys;
}

}  // namespace fairkern
