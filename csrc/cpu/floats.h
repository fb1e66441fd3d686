// Element types as plain integers, and their conversion to the type that sums are kept in.
#pragma once

#include <cstdint>
#include <cstring>

#define FAIRKERN_INLINE inline __attribute__((always_inline))

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

// What elements are widened to.
template <class S>
using Wide = decltype(widen(S{}));

// The one dispatch over element types: run(S{}).
template <class Run>
void for_element(Element element, const Run& run) {
  switch (element) {
    case Element::float32: return run(float{});
    case Element::float64: return run(double{});
    case Element::bfloat16: return run(BFloat16{});
    case Element::float16: return run(Float16{});
  }
}

}  // namespace fairkern
