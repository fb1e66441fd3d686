// The table of the inner parts for the instruction set that this is compiled for.
#pragma once

#include "cpu/inner.h"
#include "cpu/inner/class_wasserstein.h"
#include "cpu/inner/eliminate.h"
#include "cpu/inner/gram.h"
#include "cpu/inner/project.h"
#include "cpu/inner/taylor.h"
#include "cpu/inner/wasserstein_1d.h"

namespace fairkern::FAIRKERN_ISA {

template <class S>
Inner<S> inner() {
  return {block_of_columns<S>, line_of_columns<S>, block_of_rows<S>, gram_pack<S>, gram_rows<Wide<S>>,
          piece<S>,            stretch,            swept,            eliminated,   add_lower};
}

template Inner<float> inner();
template Inner<double> inner();
template Inner<BFloat16> inner();
template Inner<Float16> inner();

}  // namespace fairkern::FAIRKERN_ISA
