// wasserstein_1d: one line of columns.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/inner.h"
#include "cpu/inner/distance_tile.h"
#include "cpu/inner/load_lines.h"
#include "cpu/inner/sort_lines.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void sorted_line(const void* samples, std::int64_t stride_n, std::int64_t stride_c,
                                        std::int64_t count, std::int64_t column, std::int64_t columns,
                                        const Network* network, T* lines, const PairWork<T>& work) {
  const S* corner = static_cast<const S*>(samples) + column * stride_c;
  const Columns<S> here{corner, stride_n, 0, stride_c, 1, columns - column, 0};
  const bool any_nan = load_lines<S>(here, nullptr, count, lines, work.nan);
  sort_lines<T>(lines, count, here.filled(0, lanes_of<T>()), network, *work.room);
  if (any_nan) restore_nan<T>(work.nan, lines);
}

template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void line_of_columns(const Wasserstein1dArgs& args, std::int64_t line, const PairNetworks& networks,
                                     const PairWork<T>& work) {
  constexpr int L = lanes_of<T>();
  const std::int64_t column = line * L;
  sorted_line<S>(args.x, args.x_stride_n, args.x_stride_c, args.n, column, args.columns, networks.x, work.x,
                           work);
  sorted_line<S>(args.y, args.y_stride_n, args.y_stride_c, args.m, column, args.columns, networks.y, work.y,
                           work);
  double sums[L] = {};
  if (args.n == args.m)
    args.power == 1 ? equal_tile<T, 1, 1, 1>(&work.x, &work.y, args.n, sums)
                    : equal_tile<T, 1, 1, 2>(&work.x, &work.y, args.n, sums);
  else
    args.power == 1 ? unequal_tile<T, 1, 1, 1>(&work.x, &work.y, args.n, args.m, 1, sums)
                    : unequal_tile<T, 1, 1, 2>(&work.x, &work.y, args.n, args.m, 1, sums);
  T* out = static_cast<T*>(args.out) + column;
  for (std::int64_t lane = 0; lane < std::min<std::int64_t>(L, args.columns - column); ++lane) {
    const double mean = sums[lane] / static_cast<double>(args.n);
    out[lane] = static_cast<T>(args.power == 1 ? mean : std::sqrt(mean));
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
