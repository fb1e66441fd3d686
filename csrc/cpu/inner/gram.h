// gram: vectors brought into a panel, and 16 rows of the matrix.
#pragma once

#include <algorithm>

#include "cpu/inner.h"
#include "cpu/inner/distance_tile.h"
#include "cpu/inner/project_rows.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// Channels from `channel` on, at most a panel of them, of `count` vectors from `begin` on: [vector][channel of the panel].
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void gram_pack(const GramArgs& args, std::int64_t channel, std::int64_t begin, std::int64_t count,
                               T* to) {
  constexpr int W = width_of<T>();
  const std::int64_t width = kPanel * lanes_of<T>(), here = std::min(width, args.channels - channel);
  const S* corner = static_cast<const S*>(args.x) + channel * args.stride_c;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t outer = (begin + done) / args.inner, inner = (begin + done) % args.inner;
    const std::int64_t run = std::min(args.inner - inner, count - done);
    const S* from = corner + outer * args.stride_outer + inner * args.stride_inner;
    if (args.stride_c == 1) {
      for (std::int64_t i = 0; i < run; ++i) {
        const S* vector = from + i * args.stride_inner;
        T* line = to + (done + i) * width;
        std::int64_t c = 0;
        for (; c + W <= here; c += W) store(line + c, load_wide(vector + c));
        for (; c < here; ++c) line[c] = widen(vector[c]);
      }
    } else {
      for (std::int64_t c = 0; c < here; ++c)
        for (std::int64_t i = 0; i < run; ++i)
          to[(done + i) * width + c] = widen(from[c * args.stride_c + i * args.stride_inner]);
    }
    done += run;
  }
}

// Where the elements of a row of the result begin that lie on the columns from the first of its block on.
inline double* row_of(const GramArgs& args, std::int64_t row, std::int64_t& first) {
  double* block = args.out;
  for (first = 0; first + args.rows <= row; first += args.rows) block += args.rows * (args.channels - first);
  return block + (row - first) * (args.channels - first);
}

template <class T>
FAIRKERN_KERNEL_INLINE void add_row(const T* sums, std::int64_t count, double* to) {
  constexpr int W = width_of<T>();
  std::int64_t c = 0;
  for (; c + W <= count; c += W) add_widened<T>(to + c, load<VectorOf<T>>(sums + c));
  for (; c < count; ++c) to[c] += static_cast<double>(sums[c]);
}

// Rows from `row` on, times the panels from their own on, over `depth` packed vectors; `stride` vectors lie in a panel.
template <class T>
FAIRKERN_KERNEL void gram_rows(const GramArgs& args, std::int64_t row, const T* packed, std::int64_t stride,
                               std::int64_t depth) {
  constexpr int L = lanes_of<T>();
  constexpr std::int64_t width = kPanel * L;
  const std::int64_t count = std::min<std::int64_t>(kBlockRows, args.channels - row);
  const T* own = packed + row / width * stride * width + row % width;
  alignas(kLineBytes) T sums[kBlockRows * width];
  for (std::int64_t column = row / L * L; column < args.channels;) {
    const std::int64_t inside = column % width, here = std::min(width - inside, args.channels - column);
    const T* panel = packed + column / width * stride * width + inside;
    const std::int64_t vectors = (here + L - 1) / L;
    for (std::int64_t begin = 0; begin < depth; begin += kGramFlush) {
      const std::int64_t end = std::min(begin + kGramFlush, depth);
      for (std::int64_t d = begin; d < end; d += kDepth) {
        const std::int64_t along = std::min(kDepth, end - d);
        for (std::int64_t r = 0; r < count; r += kProjectRows) {
          const Target<T> target{sums + r * width, width, L, d > begin};
          const T* values[kProjectRows];
          const std::int64_t together = std::min<std::int64_t>(kProjectRows, count - r);
          for (std::int64_t i = 0; i < together; ++i) values[i] = own + d * width + r + i;
          project_some<T>(together, values, width, along, panel + d * width, width, vectors, target);
        }
      }
      for (std::int64_t r = 0; r < count; ++r) {
        std::int64_t first;
        double* to = row_of(args, row + r, first);
        add_row<T>(sums + r * width, here, to + column - first);
      }
    }
    column += here;
  }
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
