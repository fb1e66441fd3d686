// The inner parts of the operators for AVX2, with its fused multiply-add.
#include "cpu/isa.h"

#if FAIRKERN_X86
#define FAIRKERN_ISA avx2
#define FAIRKERN_WIDTH 32
#define FAIRKERN_TARGET __attribute__((target("avx2,fma")))

#include "cpu/inner/table.h"
#endif
