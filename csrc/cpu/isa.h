// Which instruction set a kernel runs on: chosen at run time, overridable for tests.
#pragma once

#include <cstddef>
#include <cstring>

#include "check.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FAIRKERN_X86 1
#define FAIRKERN_AVX2 __attribute__((target("avx2")))
#define FAIRKERN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#else
#define FAIRKERN_X86 0
#define FAIRKERN_AVX2
#define FAIRKERN_AVX512
#endif

#define FAIRKERN_INLINE inline __attribute__((always_inline))

namespace fairkern {

enum class Isa : int { best = 0, baseline = 1, avx2 = 2, avx512 = 3 };

inline Isa best_isa() {
#if FAIRKERN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2")) return Isa::avx2;
#endif
  return Isa::baseline;
}

inline const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::baseline: return "baseline";
    default: return "best";
  }
}

inline Isa resolve_isa(int asked) {
  require(asked >= 0 && asked <= 3, "isa is ", asked, "; expected 0 (best), 1 (baseline), 2 (avx2) or 3 (avx512)");
  const Isa best = best_isa();
  if (asked == 0) return best;
  require(asked <= static_cast<int>(best), "isa ", name_of(static_cast<Isa>(asked)),
          " was asked for; this processor has ", name_of(best));
  return static_cast<Isa>(asked);
}

// One cache line of lanes, whatever the instruction set: sums keep the same order on all of them.
constexpr int kLineBytes = 64;

template <class T, int Bytes>
struct VectorOf;
#define FAIRKERN_VECTOR(T, B)                            \
  template <>                                            \
  struct VectorOf<T, B> {                                \
    typedef T type __attribute__((vector_size(B)));      \
  };
FAIRKERN_VECTOR(float, 16)
FAIRKERN_VECTOR(float, 32)
FAIRKERN_VECTOR(float, 64)
FAIRKERN_VECTOR(double, 16)
FAIRKERN_VECTOR(double, 32)
FAIRKERN_VECTOR(double, 64)
FAIRKERN_VECTOR(double, 128)
#undef FAIRKERN_VECTOR

template <class V, class T>
FAIRKERN_INLINE V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class T>
FAIRKERN_INLINE void store(T* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

}  // namespace fairkern
