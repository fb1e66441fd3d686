// gram: vectors brought into a panel, and 16 rows of the matrix.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/inner.h"
#include "cpu/inner/distance_tile.h"
#include "cpu/inner/project_rows.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// Of two rows, blocks of `Distance` lanes: the upper ones of the first change places with the lower ones of the second.
template <int Distance, class V, int... Lane>
FAIRKERN_KERNEL_INLINE void exchange_blocks(V& first, V& second, std::integer_sequence<int, Lane...>) {
  constexpr int W = sizeof...(Lane);
  const V a = first, b = second;
#ifdef __clang__
  first = __builtin_shufflevector(a, b, ((Lane & Distance) ? W + Lane - Distance : Lane)...);
  second = __builtin_shufflevector(a, b, ((Lane & Distance) ? W + Lane : Lane + Distance)...);
#else
  using Places = decltype(a < b);  // integers as wide as the elements
  first = __builtin_shuffle(a, b, Places{((Lane & Distance) ? W + Lane - Distance : Lane)...});
  second = __builtin_shuffle(a, b, Places{((Lane & Distance) ? W + Lane : Lane + Distance)...});
#endif
}

// As many rows as a vector has lanes, turned round: lane i of row r becomes lane r of row i.
template <int Distance, class V, int W>
FAIRKERN_KERNEL_INLINE void turn_round(V (&rows)[W]) {
  if constexpr (Distance > 0) {
    for (int r = 0; r < W; ++r)
      if (!(r & Distance))
        exchange_blocks<Distance>(rows[r], rows[r + Distance], std::make_integer_sequence<int, W>{});
    turn_round<Distance / 2>(rows);
  }
}

// Σ a and Σ a² of each of the first `channels` of a panel, a multiple of the lanes of a line, over `count` vectors.
template <class T>
FAIRKERN_KERNEL_INLINE void panel_sums(const T* packed, std::int64_t count, std::int64_t channels, PanelSums<T>& sums) {
  using V = VectorOf<T>;
  constexpr int W = width_of<T>(), kTogether = lanes_of<T>() / W;
  constexpr std::int64_t width = kPanel * lanes_of<T>();
  for (std::int64_t c = 0; c < channels; c += kTogether * W) {
    V values[kTogether] = {}, squares[kTogether] = {};
    for (std::int64_t i = 0; i < count; ++i)
      for (int v = 0; v < kTogether; ++v) {
        const V a = load<V>(packed + i * width + c + v * W);
        values[v] += a;
        squares[v] = fused(a, a, squares[v]);
      }
    for (int v = 0; v < kTogether; ++v) {
      store(sums.values + c + v * W, values[v]);
      store(sums.squares + c + v * W, squares[v]);
    }
  }
}

// Channels from `channel` on, at most a panel of them, of `count` vectors from `begin` on, less `shift`: [vector][channel
// of the panel], zeros up to a whole line where there is no channel; and their sums.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void gram_pack(const GramArgs& args, const T* shift, std::int64_t channel, std::int64_t begin,
                               std::int64_t count, T* to, PanelSums<T>& sums) {
  using V = VectorOf<T>;
  constexpr int W = width_of<T>(), L = lanes_of<T>();
  const std::int64_t width = kPanel * L, here = std::min(width, args.channels - channel);
  const S* corner = static_cast<const S*>(args.x) + channel * args.stride_c;
  const std::int64_t filled = (here + L - 1) / L * L;
  shift += channel;
  for (std::int64_t i = 0; here < filled && i < count; ++i) std::fill(to + i * width + here, to + i * width + filled, T(0));
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t outer = (begin + done) / args.inner, inner = (begin + done) % args.inner;
    const std::int64_t run = std::min(args.inner - inner, count - done);
    const S* from = corner + outer * args.stride_outer + inner * args.stride_inner;
    if (args.stride_c == 1) {
      for (std::int64_t i = 0; i < run; ++i) {
        const S* vector = from + i * args.stride_inner;
        T* line = to + (done + i) * width;
        std::int64_t c = 0;
        for (; c + W <= here; c += W) store(line + c, V(load_wide(vector + c) - load<V>(shift + c)));
        for (; c < here; ++c) line[c] = widen(vector[c]) - shift[c];
      }
    } else {
      std::int64_t c = 0;
      for (; args.stride_inner == 1 && c + W <= here; c += W) {
        const S* rows_of = from + c * args.stride_c;
        const V off = load<V>(shift + c);
        T* line = to + done * width + c;
        std::int64_t i = 0;
        for (; i + W <= run; i += W) {
          V rows[W];
          for (int r = 0; r < W; ++r) rows[r] = load_wide(rows_of + r * args.stride_c + i);
          turn_round<W / 2>(rows);
          for (int r = 0; r < W; ++r) store(line + (i + r) * width, V(rows[r] - off));
        }
        for (; i < run; ++i)
          for (int r = 0; r < W; ++r) line[i * width + r] = widen(rows_of[r * args.stride_c + i]) - shift[c + r];
      }
      for (; c < here; ++c)
        for (std::int64_t i = 0; i < run; ++i)
          to[(done + i) * width + c] = widen(from[c * args.stride_c + i * args.stride_inner]) - shift[c];
    }
    done += run;
  }
  if (args.total) panel_sums<T>(to, count, filled, sums);
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
