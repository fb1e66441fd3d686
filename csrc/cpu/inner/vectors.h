// Vectors as wide as the registers of the instruction set that this is compiled for.
//
// Every function that holds a vector names the set itself: in a function that does not, the compiler takes wide vectors
// apart before it is inlined into one that does.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/floats.h"
#include "cpu/fused.h"
#include "cpu/isa.h"

#if FAIRKERN_X86
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FAIRKERN_KERNEL FAIRKERN_TARGET
#define FAIRKERN_KERNEL_INLINE inline __attribute__((always_inline)) FAIRKERN_TARGET
#define FAIRKERN_KERNEL_SHARED __attribute__((noinline)) FAIRKERN_TARGET  // compiled once for all elements

namespace fairkern::FAIRKERN_ISA {
namespace {

constexpr int kWidth = FAIRKERN_WIDTH;  // bytes of a vector

// How many T a vector holds.
template <class T>
constexpr int width_of() {
  return kWidth / static_cast<int>(sizeof(T));
}

template <class T>
struct VectorType;
template <>
struct VectorType<float> {
  typedef float type __attribute__((vector_size(kWidth)));
  typedef float part __attribute__((vector_size(kWidth / 2)));  // as many lanes as a vector of double
};
template <>
struct VectorType<double> {
  typedef double type __attribute__((vector_size(kWidth)));
  typedef type part;
};
template <class T>
using VectorOf = typename VectorType<T>::type;

// Unsigned integers beside a vector of float: `Full` as wide, `Half` with 16 bits a lane.
typedef std::uint16_t Half __attribute__((vector_size(kWidth / 2)));
typedef std::uint32_t Full __attribute__((vector_size(kWidth)));

template <class V, class T>
FAIRKERN_KERNEL_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T>
FAIRKERN_KERNEL_INLINE void store(T* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// The same value in a register of its own, of which the compiler knows nothing.
template <class V>
FAIRKERN_KERNEL_INLINE V opaque(V value) {
#if FAIRKERN_X86
  __asm__("" : "+v"(value));
#endif
  return value;
}

// a · b + c, rounded once on every instruction set: the one product whose sums may depend on nothing else.
FAIRKERN_KERNEL_INLINE VectorOf<float> fused(VectorOf<float> a, VectorOf<float> b, VectorOf<float> c) {
#if FAIRKERN_X86 && FAIRKERN_WIDTH == 64
  return reinterpret_cast<VectorOf<float>>(_mm512_fmadd_ps(a, b, c));
#elif FAIRKERN_X86 && FAIRKERN_WIDTH == 32
  return reinterpret_cast<VectorOf<float>>(_mm256_fmadd_ps(a, b, c));
#elif defined(__aarch64__)
  return reinterpret_cast<VectorOf<float>>(vfmaq_f32(c, a, b));
#else
  for (int lane = 0; lane < width_of<float>(); ++lane) c[lane] = fused_one(a[lane], b[lane], c[lane]);
  return c;
#endif
}

FAIRKERN_KERNEL_INLINE VectorOf<double> fused(VectorOf<double> a, VectorOf<double> b, VectorOf<double> c) {
#if FAIRKERN_X86 && FAIRKERN_WIDTH == 64
  return reinterpret_cast<VectorOf<double>>(_mm512_fmadd_pd(a, b, c));
#elif FAIRKERN_X86 && FAIRKERN_WIDTH == 32
  return reinterpret_cast<VectorOf<double>>(_mm256_fmadd_pd(a, b, c));
#elif defined(__aarch64__)
  return reinterpret_cast<VectorOf<double>>(vfmaq_f64(c, a, b));
#else
  for (int lane = 0; lane < width_of<double>(); ++lane) c[lane] = fused_one(a[lane], b[lane], c[lane]);
  return c;
#endif
}

// `low` and `high` become the lower and the higher lanes of both; equal ones (0 and -0) stay where they are. Two
// instructions: of one comparison that is seen twice the compiler makes a mask and two blends.
template <class V>
FAIRKERN_KERNEL_INLINE void order(V& low, V& high) {
  const V a = low, b = high;
  low = a < b ? a : b;
  const V again = opaque(b);
  high = a < again ? again : a;
}

// A vector of elements, widened to the type that sums are kept in.
FAIRKERN_KERNEL_INLINE VectorOf<float> load_wide(const float* from) { return load<VectorOf<float>>(from); }
FAIRKERN_KERNEL_INLINE VectorOf<double> load_wide(const double* from) { return load<VectorOf<double>>(from); }
FAIRKERN_KERNEL_INLINE VectorOf<float> load_wide(const BFloat16* from) {
  return reinterpret_cast<VectorOf<float>>(__builtin_convertvector(load<Half>(from), Full) << 16);
}
FAIRKERN_KERNEL_INLINE VectorOf<float> load_wide(const Float16* from) {
  using V = VectorOf<float>;
  const Full half = __builtin_convertvector(load<Half>(from), Full);
  const Full magnitude = (half & 0x7fffu) << 13;
  const V scaled = reinterpret_cast<V>(magnitude) * from_bits(0x77800000u);
  const Full finite = reinterpret_cast<Full>(scaled);
  const Full special = 0u - ((0x0f7fffffu - magnitude) >> 31);  // all bits: infinity or NaN
  return reinterpret_cast<V>((finite & ~special) | ((magnitude | 0x7f800000u) & special) | ((half & 0x8000u) << 16));
}

// |value| by clearing the sign bit; NaN stays NaN.
template <class V>
FAIRKERN_KERNEL_INLINE V absolute(V value) {
  using Mask = decltype(value < value);  // integers as wide as the elements
  const Mask sign = reinterpret_cast<Mask>(-V{});
  return reinterpret_cast<V>(reinterpret_cast<Mask>(value) & ~sign);
}

// All bits of a lane set where it is NaN. By subtraction: a comparison whose result is not used to select at once
// is taken apart into scalars.
template <class V>
FAIRKERN_KERNEL_INLINE auto is_nan(V value) {
  using T = std::decay_t<decltype(value[0])>;
  using Mask = decltype(value < value);
  const Mask infinite = reinterpret_cast<Mask>(V{} + std::numeric_limits<T>::infinity());
  return (infinite - reinterpret_cast<Mask>(absolute(value))) >> (8 * static_cast<int>(sizeof(T)) - 1);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
