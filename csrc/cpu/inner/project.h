// project: one block of rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/inner.h"
#include "cpu/inner/project_rows.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

template <class S>
FAIRKERN_KERNEL_INLINE const S* row_of(const ProjectArgs& args, std::int64_t row) {
  const std::int64_t sample = row / args.channels;
  return static_cast<const S*>(args.x) + (args.rows ? args.rows[sample] : sample) * args.stride_n +
         row % args.channels * args.stride_c;
}

// Elements `step` apart, widened.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void widened(const S* from, std::int64_t step, std::int64_t count, T* to) {
  constexpr int W = width_of<T>();
  std::int64_t i = 0;
  if (step == 1)
    for (; i + W <= count; i += W) store(to + i, load_wide(from + i));
  for (; i < count; ++i) to[i] = widen(from[i * step]);
}

template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void block_of_rows(const ProjectArgs& args, const ProjectBlocks& blocks, const Panels<T>& panels,
                                   std::int64_t number, const ProjectWork<T>& work) {
  constexpr int L = lanes_of<T>();
  std::int64_t first = number * kBlockRows;
  std::int64_t count = std::min<std::int64_t>(kBlockRows, args.samples * args.channels - first);
  std::int64_t step = 1;
  const T* heads[kBlockRows];
  if (blocks.channels_innermost) {
    const std::int64_t channel = number % blocks.per_sample * kBlockRows;
    first = number / blocks.per_sample * args.channels + channel;
    count = std::min<std::int64_t>(kBlockRows, args.channels - channel);
    step = kBlockRows;
    const S* from = row_of<S>(args, first);
    for (std::int64_t d = 0; d < args.positions; ++d)
      widened<S>(from + d * args.stride_d, args.stride_c, count, work.values + d * kBlockRows);
    for (std::int64_t r = 0; r < count; ++r) heads[r] = work.values + r;
  } else {
    for (std::int64_t r = 0; r < count; ++r) {
      const S* from = row_of<S>(args, first + r);
      heads[r] = work.values + r * args.positions;
      if constexpr (std::is_same_v<S, T>)
        if (args.stride_d == 1) {
          heads[r] = from;
          continue;
        }
      widened<S>(from, args.stride_d, args.positions, work.values + r * args.positions);
    }
  }

  const std::int64_t width = kPanel * L, padded = panels.vectors * L;
  T* out = static_cast<T*>(args.out) + first * args.projections;
  const bool direct = padded == args.projections;
  for (std::int64_t v = 0; v < panels.vectors; v += kPanel) {
    const T* panel = panels.values.data() + v / kPanel * args.positions * width;
    const std::int64_t vectors = std::min<std::int64_t>(kPanel, panels.vectors - v);
    for (std::int64_t d = 0; d < args.positions; d += kDepth) {
      const std::int64_t depth = std::min(kDepth, args.positions - d);
      for (std::int64_t r = 0; r < count; r += kProjectRows) {
        const Target<T> target{(direct ? out : work.sums) + r * padded + v * L, padded, L, d > 0};
        const T* values[kProjectRows];
        const std::int64_t together = std::min<std::int64_t>(kProjectRows, count - r);
        for (std::int64_t i = 0; i < together; ++i) values[i] = heads[r + i] + d * step;
        project_some<T>(together, values, step, depth, panel + d * width, width, vectors, target);
      }
    }
  }
  if (!direct)
    for (std::int64_t r = 0; r < count; ++r)
      std::copy_n(work.sums + r * padded, args.projections, out + r * args.projections);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
