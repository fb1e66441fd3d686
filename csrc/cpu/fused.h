// a · b + c rounded once, where a processor may have no instruction for it.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/floats.h"

namespace fairkern {

// The product of two floats is exact in double. Their sum, rounded to double and then to float, is off only where the
// first lands half-way between two floats, or where floats lie closer together than usual; there the library decides.
FAIRKERN_INLINE float fused_one(float a, float b, float c) {
  constexpr std::uint64_t kBelow = (std::uint64_t(1) << 29) - 1, kHalf = std::uint64_t(1) << 28;
  const double sum = static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c);
  std::uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  const bool tiny = sum != 0 && std::fabs(sum) < static_cast<double>(FLT_MIN);
  return (bits & kBelow) == kHalf || tiny ? std::fma(a, b, c) : static_cast<float>(sum);
}

FAIRKERN_INLINE double fused_one(double a, double b, double c) { return std::fma(a, b, c); }

}  // namespace fairkern
