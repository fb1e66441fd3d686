// class_wasserstein: one block of columns.
#pragma once

#include <algorithm>

#include "cpu/inner.h"
#include "cpu/inner/distance_tile.h"
#include "cpu/inner/load_lines.h"
#include "cpu/inner/project_rows.h"
#include "cpu/inner/sort_lines.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

// One class of one unit, projected: [vector][sample][lane].
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE bool project_class(const ClassWassersteinArgs& args, const ClassLayout& layout,
                                          std::int64_t unit, const ClassBlock& group, const ClassWork<T>& work,
                                          T* scratch) {
  constexpr int L = lanes_of<T>(), W = width_of<T>();
  const S* x = static_cast<const S*>(args.x);
  const std::int64_t* rows = args.rows + group.begin;
  if (args.places)
    project_placed<S>(x + unit % args.per_set * args.stride_c, args.stride_n, rows, group.count,
                      args.begins + unit / args.per_set * args.offsets[args.classes], args.places, work.directions,
                      layout.vectors, scratch);
  else
    project_rows<S>(x + unit * args.stride_c, rows, group.count, args.stride_n, args.stride_p, args.positions,
                    work.directions, layout.vectors, work.values, scratch);
  using V = VectorOf<T>;
  for (std::int64_t v = 0; v < layout.vectors; ++v)
    for (int lane = 0; lane < L; lane += W) {
      auto missing = V{} < V{};
      T* line = scratch + v * group.count * L + lane;
      for (std::int64_t i = 0; i < group.count; ++i, line += L) missing |= store_marked<T>(load<V>(line), line);
      store(work.nan + v * L + lane, missing);
    }
  return any_set<T>(work.nan, layout.vectors * L);
}

// The columns of a block: the projections of one unit, or one projection of several units per vector.
template <class S, class T = Wide<S>>
Columns<S> columns_of(const ClassWassersteinArgs& args, const ClassLayout& layout, std::int64_t block) {
  constexpr int L = lanes_of<T>();
  const std::int64_t unit = layout.lanes_are_projections ? block : block * L;
  const S* corner = static_cast<const S*>(args.x) + unit * args.stride_c;
  if (layout.lanes_are_projections)
    return {corner, args.stride_n, args.stride_p * L, args.stride_p, layout.vectors, args.projections, L};
  return {corner, args.stride_n, args.stride_p, args.stride_c, layout.vectors, args.units - unit, 0};
}

// Row of the pair (low, high) among all pairs in lexicographic order.
std::int64_t pair_number(std::int64_t low, std::int64_t high, std::int64_t classes) {
  return low * (2 * classes - low - 1) / 2 + (high - low - 1);
}

template <class T>
FAIRKERN_KERNEL_INLINE void reduce_pair(const ClassWassersteinArgs& args, const ClassLayout& layout,
                                        std::int64_t block, std::int64_t pair, double scale, double* sums,
                                        double* best) {
  constexpr int L = lanes_of<T>();
  int lanes = L;
  if (layout.lanes_are_projections) {
    double total = 0;
    for (int lane = 0; lane < L; ++lane) total += sums[lane];
    sums[0] = total;
    lanes = 1;
  }
  if (args.reduce == Reduce::pairs) {
    T* out = static_cast<T*>(args.out) + pair * args.units + block * layout.lanes;
    const std::int64_t units = std::min<std::int64_t>(lanes, args.units - block * layout.lanes);
    for (std::int64_t lane = 0; lane < units; ++lane) out[lane] = static_cast<T>(sums[lane] * scale);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    const double value = sums[lane] * scale;
    if (args.reduce == Reduce::mean)
      best[lane] += value;
    else
      best[lane] = value > best[lane] || value != value ? value : best[lane];  // NaN, once in, stays
  }
}

template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void block_of_columns(const ClassWassersteinArgs& args, const ClassLayout& layout, std::int64_t block,
                                      const std::vector<ClassBlock>& classes, const std::vector<Run>& runs,
                                      const ClassWork<T>& work) {
  constexpr int L = lanes_of<T>();
  const std::int64_t line = layout.vectors * L;
  const Columns<S> columns = columns_of<S>(args, layout, block);
  std::int64_t loaded = 0;
  for (const ClassBlock& group : classes) {
    T* lines = work.scratch + loaded * line;
    const bool any_nan =
        work.directions
            ? project_class<S>(args, layout, block, group, work, lines)
            : load_lines<S>(columns, args.rows + group.begin, group.count, lines, work.nan);
    for (std::int64_t v = 0; v < layout.vectors; ++v) {
      T* vector = lines + v * group.count * L;
      sort_lines<T>(vector, group.count, columns.filled(v, L), group.network, *work.room);
      if (any_nan) restore_nan<T>(work.nan + v * L, vector);
    }
    loaded += group.count;
  }

  std::fill(work.best, work.best + L, 0.0);
  double sums[kTile * kTile * L];
  const T *x[kTile], *y[kTile];
  std::int64_t left_rows = 0;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const Run& left = runs[r];
    for (std::int64_t a = 0; a < left.size; ++a) x[a] = work.scratch + (left_rows + a * left.count) * line;
    std::int64_t right_rows = left_rows;
    for (std::size_t s = r; s < runs.size(); ++s) {
      const Run& right = runs[s];
      for (std::int64_t b = 0; b < right.size; ++b) y[b] = work.scratch + (right_rows + b * right.count) * line;
      std::fill(sums, sums + kTile * kTile * L, 0.0);
      if (!(r == s && left.size == 1)) tile<T>(x, y, left, right, layout.vectors, sums);
      const double scale = 1.0 / (static_cast<double>(left.count) * static_cast<double>(args.projections));
      for (std::int64_t a = 0; a < left.size; ++a)
        for (std::int64_t b = r == s ? a + 1 : 0; b < right.size; ++b) {
          const std::int64_t j = classes[left.first + a].id, k = classes[right.first + b].id;
          reduce_pair<T>(args, layout, block, pair_number(std::min(j, k), std::max(j, k), args.classes), scale,
                         sums + (a * kTile + b) * L, work.best);
        }
      right_rows += right.size * right.count;
    }
    left_rows += left.size * left.count;
  }

  if (args.reduce == Reduce::pairs) return;
  const double scale = args.reduce == Reduce::mean ? 2.0 / (static_cast<double>(args.classes) * (args.classes - 1)) : 1;
  T* out = static_cast<T*>(args.out) + block * layout.lanes;
  const std::int64_t units = std::min<std::int64_t>(layout.lanes, args.units - block * layout.lanes);
  for (std::int64_t lane = 0; lane < units; ++lane) out[lane] = static_cast<T>(work.best[lane] * scale);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
