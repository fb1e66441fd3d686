// The inner parts of the operators for what every processor of an architecture has.
#define FAIRKERN_ISA baseline
#define FAIRKERN_WIDTH 16
#define FAIRKERN_TARGET

#include "cpu/inner/table.h"
