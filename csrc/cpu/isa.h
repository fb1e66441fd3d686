// Which instruction set a kernel runs on: chosen at run time, overridable for tests.
#pragma once

#include "check.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FAIRKERN_X86 1
#else
#define FAIRKERN_X86 0
#endif

namespace fairkern {

enum class Isa : int { best = 0, baseline = 1, avx2 = 2, avx512 = 3 };

inline Isa best_isa() {
#if FAIRKERN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
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

}  // namespace fairkern
