// Bytes of the fuzzer read as sizes, choices and tensors. Where there are no more bytes, zeros are read.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/floats.h"

namespace fuzz {

using i64 = std::int64_t;

[[noreturn]] inline void wrong(const char* what) {
  std::fprintf(stderr, "WRONG: %s\n", what);
  std::abort();
}

class Given {
 public:
  Given(const std::uint8_t* data, std::size_t size) : at_(data), left_(size) {}

  std::uint8_t byte() {
    if (!left_) return 0;
    --left_;
    return *at_++;
  }

  // 0 … below − 1.
  i64 below(i64 limit) { return (limit > 256 ? byte() * 256 + byte() : byte()) % limit; }

  // low … high.
  i64 between(i64 low, i64 high) { return low + below(high - low + 1); }

  // One in `of`, and never where there are no bytes.
  bool rarely(int of) { return byte() % of == of - 1; }

  template <class T, std::size_t N>
  T one_of(const T (&values)[N]) {
    return values[below(N)];
  }

  std::uint64_t seed() {
    std::uint64_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value * 2 + 1;
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

// Numbers for what is too long to be read byte by byte (xorshift64*).
struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ull;
  }
  i64 below(i64 limit) { return static_cast<i64>(next() >> 33) % limit; }
};

enum class Values { small_whole, any_finite, special };  // whole numbers −8 … 8; small or large; NaN, infinity, zeros too

inline double drawn(Random& random, Values values) {
  if (values == Values::small_whole) return static_cast<double>(random.below(17) - 8);
  if (values == Values::special && random.below(4) == 0) {
    static const double odd[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e-45, -3e38, 3e38, 6e-8, 65504.0};
    return odd[random.below(10)];
  }
  return std::ldexp(static_cast<double>(random.below(1 << 20) - (1 << 19)), static_cast<int>(random.below(24)) - 30);
}

inline void put(float& to, double value) { to = static_cast<float>(value); }
inline void put(double& to, double value) { to = value; }
inline void put(fairkern::BFloat16& to, double value) {
  const float narrow = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  to.bits = static_cast<std::uint16_t>(bits >> 16);  // cut off, not rounded: exact for small whole numbers
}
inline void put(fairkern::Float16& to, double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) {
    to.bits = sign | 0x7e00;
    return;
  }
  int exponent;
  const double fraction = std::frexp(std::fabs(value), &exponent);  // [0.5, 1)
  if (std::isinf(value) || exponent > 16)
    to.bits = sign | 0x7c00;
  else if (value == 0 || exponent < -13)
    to.bits = sign | static_cast<std::uint16_t>(std::ldexp(std::fabs(value), 24));
  else
    to.bits = sign | static_cast<std::uint16_t>((exponent + 14) << 10 | static_cast<int>((fraction * 2 - 1) * 1024));
}

template <class S>
std::vector<S> filled(i64 count, Random& random, Values values) {
  std::vector<S> found(count);
  for (S& element : found) put(element, drawn(random, values));
  return found;
}

// Sizes with strides as a tensor may have: dimensions in any order, gaps, one value for a whole dimension; and storage
// that ends with the last element.
template <int D>
struct Layout {
  i64 sizes[D], strides[D], offset, elements;

  Layout(Given& given, const i64 (&lengths)[D]) : offset(given.rarely(4) ? given.between(1, 5) : 0) {
    int order[D];
    for (int d = 0; d < D; ++d) sizes[d] = lengths[d], order[d] = D - 1 - d;
    for (int d = D - 1; d > 0; --d) std::swap(order[d], order[d - given.below(2) * given.below(d + 1)]);
    i64 step = given.rarely(6) ? 2 : 1;
    for (int d : order) {
      strides[d] = given.rarely(16) ? 0 : step;
      step *= lengths[d] + (given.rarely(8) ? 1 : 0);
    }
    elements = offset + 1;
    for (int d = 0; d < D; ++d) elements += (lengths[d] - 1) * strides[d];
  }
};

inline bool same_bits(double one, double other) {
  return (std::isnan(one) && std::isnan(other)) || std::memcmp(&one, &other, sizeof(one)) == 0;
}

inline bool near(double found, double expected, bool wide) {
  return std::fabs(found - expected) <= (wide ? 1e-11 : 2e-5) * (1 + std::fabs(expected));
}

template <class T>
i64 address(const std::vector<T>& values, i64 offset = 0) {
  return reinterpret_cast<i64>(values.data() + offset);
}

// What an entry point must do with arguments that are not valid.
template <class Call>
void must_refuse(const Call& call, const char* what) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return;
  }
  wrong(what);
}

constexpr i64 kBadCounts[] = {0, -1, INT64_MIN};

}  // namespace fuzz
