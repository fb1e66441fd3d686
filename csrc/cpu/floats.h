// Element types as plain integers, and their conversion to the type that sums are kept in.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"

namespace fairkern {

enum class Element : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

FAIRKERN_INLINE float widen(float value) { return value; }
FAIRKERN_INLINE double widen(double value) { return value; }

FAIRKERN_INLINE float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

FAIRKERN_INLINE float widen(BFloat16 value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

// The exponent is moved by a multiplication, which also makes subnormals right.
FAIRKERN_INLINE float widen(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  std::uint32_t bits;
  const float scaled = from_bits(magnitude) * from_bits(0x77800000u);
  std::memcpy(&bits, &scaled, sizeof(bits));
  bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : bits;
  return from_bits(bits | sign);
}

// Unsigned integers beside a vector of `Width` bytes of float: `full` as wide, `half` with 16 bits a lane.
template <int Width>
struct Bits;
template <>
struct Bits<16> {
  typedef std::uint16_t half __attribute__((vector_size(8)));
  typedef std::uint32_t full __attribute__((vector_size(16)));
};
template <>
struct Bits<32> {
  typedef std::uint16_t half __attribute__((vector_size(16)));
  typedef std::uint32_t full __attribute__((vector_size(32)));
};
template <>
struct Bits<64> {
  typedef std::uint16_t half __attribute__((vector_size(32)));
  typedef std::uint32_t full __attribute__((vector_size(64)));
};

// A vector of elements, widened to the type that sums are kept in.
template <int Width>
FAIRKERN_INLINE typename VectorOf<float, Width>::type load_wide(const float* from) {
  return load<typename VectorOf<float, Width>::type>(from);
}
template <int Width>
FAIRKERN_INLINE typename VectorOf<double, Width>::type load_wide(const double* from) {
  return load<typename VectorOf<double, Width>::type>(from);
}
template <int Width>
FAIRKERN_INLINE typename VectorOf<float, Width>::type load_wide(const BFloat16* from) {
  using Full = typename Bits<Width>::full;
  const Full bits = __builtin_convertvector(load<typename Bits<Width>::half>(from), Full) << 16;
  return reinterpret_cast<typename VectorOf<float, Width>::type>(bits);
}
template <int Width>
FAIRKERN_INLINE typename VectorOf<float, Width>::type load_wide(const Float16* from) {
  using Full = typename Bits<Width>::full;
  using V = typename VectorOf<float, Width>::type;
  const Full half = __builtin_convertvector(load<typename Bits<Width>::half>(from), Full);
  const Full magnitude = (half & 0x7fffu) << 13;
  const V scaled = reinterpret_cast<V>(magnitude) * from_bits(0x77800000u);
  const Full finite = reinterpret_cast<Full>(scaled);
  const Full special = 0u - ((0x0f7fffffu - magnitude) >> 31);  // all bits: infinity or NaN
  return reinterpret_cast<V>((finite & ~special) | ((magnitude | 0x7f800000u) & special) | ((half & 0x8000u) << 16));
}

// |value| by clearing the sign bit; NaN stays NaN.
template <class V>
FAIRKERN_INLINE V absolute(V value) {
  using Mask = decltype(value < value);  // integers as wide as the elements
  const Mask sign = reinterpret_cast<Mask>(-V{});
  return reinterpret_cast<V>(reinterpret_cast<Mask>(value) & ~sign);
}

// All bits of a lane set where it is NaN. By subtraction: a comparison whose result is not used to select at once
// is taken apart into scalars.
template <class V>
FAIRKERN_INLINE auto is_nan(V value) {
  using T = std::decay_t<decltype(value[0])>;
  using Mask = decltype(value < value);
  const Mask infinite = reinterpret_cast<Mask>(V{} + std::numeric_limits<T>::infinity());
  return (infinite - reinterpret_cast<Mask>(absolute(value))) >> (8 * static_cast<int>(sizeof(T)) - 1);
}

}  // namespace fairkern
