// The inner parts of the operators for AVX-512.
#include "cpu/isa.h"

#if FAIRKERN_X86
#define FAIRKERN_ISA avx512
#define FAIRKERN_WIDTH 64
#ifdef __clang__  // which ignores a list of sets with a width in it
#define FAIRKERN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"), min_vector_width(512)))
#else
#define FAIRKERN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif

#include "cpu/inner/table.h"
#endif
