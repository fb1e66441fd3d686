// The inner parts of the operators for AVX-512.
#include "cpu/isa.h"

#if FAIRKERN_X86
#define FAIRKERN_ISA avx512
#define FAIRKERN_WIDTH 64
#define FAIRKERN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))

#include "cpu/inner/table.h"
#endif
