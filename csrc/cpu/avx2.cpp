// The inner parts of the operators for AVX2.
#include "cpu/isa.h"

#if FAIRKERN_X86
#define FAIRKERN_ISA avx2
#define FAIRKERN_WIDTH 32
#define FAIRKERN_TARGET __attribute__((target("avx2")))

#include "cpu/inner/table.h"
#endif
