// eliminate_small: backward elimination as a whole, of matrices that a cache holds: inverted, and units of one position
// each given up one after the other, in one call, since starting single products costs more than making them.
//
// Both go in blocks of steps: a column is made when its position goes, from what the steps of its block have made, and
// the matrices take in a block at once. Every sum runs over the steps in order.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kLine = 8;     // doubles
constexpr std::int64_t kNarrow = 96;  // positions up to which blocks are of half as many steps
constexpr std::int64_t kSteps = 32;   // of a block

using Doubles = std::vector<double>;

// Rows of a panel lie an odd number of lines apart: else those of one column share few places of the cache.
std::int64_t pitch_of(std::int64_t n) { return (n + 2 * kLine - 1) / (2 * kLine) * 2 * kLine + kLine; }

std::int64_t depth_of(std::int64_t n) { return n <= kNarrow ? kSteps / 2 : kSteps; }

// Column `at` of a symmetric matrix whose lower half is there.
void copy_column(const double* matrix, std::int64_t stride, std::int64_t n, std::int64_t at, double* out) {
  std::copy(matrix + at * stride, matrix + at * stride + at + 1, out);
  for (std::int64_t p = at + 1; p < n; ++p) out[p] = matrix[p * stride + at];
}

// The inverse of a positive definite matrix in its place, lower halves; whether it is definite, to rounding. By sweeps:
// a position's column `c` turns into `c / d`, its own entry `d` into `−1 / d`, and the rest loses `c cᵀ / d`.
bool invert(double* matrix, std::int64_t n, const Inner<double>& inner) {
  const std::int64_t pitch = pitch_of(n), depth = depth_of(n);
  Doubles half(depth * pitch), minus(depth * pitch), own(depth);
  for (std::int64_t first = 0; first < n; first += depth) {
    const std::int64_t count = std::min(depth, n - first);
    for (std::int64_t step = 0; step < count; ++step) {
      const std::int64_t at = first + step;
      double* column = half.data() + step * pitch;
      for (std::int64_t j = 0; j < step; ++j) own[j] = half[j * pitch + at];
      copy_column(matrix, n, n, at, column);
      inner.swept(half.data(), pitch, step, own.data(), n, column);
      const double d = column[at], one = 1 / d, root = 1 / std::sqrt(d);
      if (!(d > 0) || !std::isfinite(d)) return false;
      for (std::int64_t p = 0; p < at; ++p) matrix[at * n + p] = column[p] * one;
      matrix[at * n + at] = -one;
      for (std::int64_t p = at + 1; p < n; ++p) matrix[p * n + at] = column[p] * one;
      for (std::int64_t p = 0; p < n; ++p) column[p] *= root;
      for (std::int64_t j = 0; j <= step; ++j) half[j * pitch + at] = 0;  // it starts anew from what was written
    }
    for (std::int64_t k = 0; k < count * pitch; ++k) minus[k] = -half[k];
    inner.add_lower(matrix, n, n, minus.data(), half.data(), pitch, count);
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t p = 0; p <= i; ++p) matrix[i * n + p] = -matrix[i * n + p];
  return true;
}

// One view while units go. The matrices keep their strides, and what has gone leaves them after every block.
struct Left {
  double *inverse, *output;
  std::int64_t stride, n, pitch;
  std::vector<std::int64_t> rows;  // by unit that is left
  Doubles noise, alive, inverse_diagonal, output_diagonal;  // by position that is left
  Doubles half, minus;  // [steps, pitch]: half, mixed, and half again, so that one product takes in both; −half

  Left(const EliminateSmallView& view, const EliminateSmallArgs& args, std::int64_t depth, const Doubles& variances)
      : inverse(view.covariance), output(view.output), stride(view.positions), n(view.positions),
        pitch(pitch_of(view.positions)), rows(view.rows, view.rows + args.units), noise(variances), alive(n, 1.0),
        inverse_diagonal(n), output_diagonal(n), half(3 * depth * pitch), minus(depth * pitch) {
    for (std::int64_t p = 0; p < n; ++p) {
      noise[p] *= args.rounding;
      inverse_diagonal[p] = inverse[p * stride + p];
      output_diagonal[p] = output[p * stride + p];
    }
  }

  double* mixed_of(std::int64_t count) { return half.data() + count * pitch; }
};

void give_up(Left& left, std::int64_t row, std::int64_t step, std::int64_t count, const Inner<double>& inner,
             Doubles& own, Doubles& others) {
  double* const mixed = left.mixed_of(count);
  double *made = left.half.data() + step * left.pitch, *read = mixed + step * left.pitch;
  for (std::int64_t j = 0; j < step; ++j) {
    own[j] = left.half[j * left.pitch + row];
    others[j] = mixed[j * left.pitch + row];
  }
  copy_column(left.inverse, left.stride, left.n, row, made);
  copy_column(left.output, left.stride, left.n, row, read);
  inner.eliminated(left.half.data(), mixed, left.pitch, step, own.data(), others.data(), left.n, made, read);
  const double root = 1 / std::sqrt(left.inverse_diagonal[row]), power = 0.5 * left.output_diagonal[row] * root;
  left.alive[row] = 0;
  for (std::int64_t p = 0; p < left.n; ++p) {
    const double half = left.alive[p] * made[p] * root, crossed = left.alive[p] * (power * half - read[p]) * root;
    made[p] = half;
    read[p] = crossed;
    left.inverse_diagonal[p] -= half * half;
    left.output_diagonal[p] += 2 * half * crossed;
  }
  left.inverse_diagonal[row] = 1;
  left.output_diagonal[row] = 0;
}

void squeeze(double* matrix, std::int64_t stride, const std::vector<std::int64_t>& kept) {
  for (std::size_t i = 0; i < kept.size(); ++i)
    for (std::size_t p = 0; p <= i; ++p) matrix[i * stride + p] = matrix[kept[i] * stride + kept[p]];
}

// Both matrices take in a block of steps, and lose the positions that went in it.
void settle(Left& left, std::int64_t count, const std::vector<std::int64_t>& stays, const Inner<double>& inner) {
  const std::int64_t size = count * left.pitch;
  std::copy(left.half.begin(), left.half.begin() + size, left.half.begin() + 2 * size);
  for (std::int64_t k = 0; k < size; ++k) left.minus[k] = -left.half[k];
  inner.add_lower(left.inverse, left.stride, left.n, left.minus.data(), left.half.data(), left.pitch, count);
  inner.add_lower(left.output, left.stride, left.n, left.half.data(), left.mixed_of(count), left.pitch, 2 * count);
  std::vector<std::int64_t> kept, place(left.n);
  for (std::int64_t p = 0; p < left.n; ++p) {
    place[p] = static_cast<std::int64_t>(kept.size());
    if (left.alive[p] != 0) kept.push_back(p);
  }
  squeeze(left.inverse, left.stride, kept);
  squeeze(left.output, left.stride, kept);
  left.n = static_cast<std::int64_t>(kept.size());
  for (Doubles* values : {&left.noise, &left.inverse_diagonal, &left.output_diagonal})
    for (std::int64_t p = 0; p < left.n; ++p) (*values)[p] = (*values)[kept[p]];
  std::fill(left.alive.begin(), left.alive.end(), 1.0);
  for (std::size_t u = 0; u < stays.size(); ++u) left.rows[u] = place[left.rows[stays[u]]];
  left.rows.resize(stays.size());
}

// What each unit that is left would add, and how far off that may be.
void price(const std::vector<Left>& views, Doubles& costs, Doubles& off) {
  std::fill(off.begin(), off.end(), 0.0);
  for (const Left& view : views)
    for (std::size_t u = 0; u < view.rows.size(); ++u) {
      const std::int64_t p = view.rows[u];
      costs[u] += view.output_diagonal[p] / view.inverse_diagonal[p];
      off[u] += view.output_diagonal[p] * view.noise[p];
    }
}

// Of those whose costs rounding may tell apart the first, among units that have not gone: whatever the costs are (NaN is
// less than nothing), there is one.
std::int64_t first_of_least(const Doubles& costs, const Doubles& off, const std::vector<char>& gone) {
  const std::int64_t units = static_cast<std::int64_t>(costs.size());
  std::int64_t least = -1;
  for (std::int64_t u = 0; u < units; ++u)
    if (!gone[u] && (least < 0 || costs[u] < costs[least])) least = u;
  for (std::int64_t u = 0; u < least; ++u)
    if (!gone[u] && costs[u] <= costs[least] + std::max(off[u], off[least])) return u;
  return least;
}

}  // namespace

std::int64_t eliminate_small(const EliminateSmallArgs& args) {
  const Inner<double> inner = inner_of<double>(args.isa);
  std::int64_t widest = 0;
  for (std::int64_t v = 0; v < args.count; ++v) {
    const EliminateSmallView& view = args.views[v];
    widest = std::max(widest, view.positions);
    for (std::int64_t u = 0; u < args.units; ++u)
      require(view.rows[u] >= 0 && view.rows[u] < view.positions, "unit ", u, " of view ", v, " lies at ",
              view.rows[u], "; there are ", view.positions, " positions");
  }
  const std::int64_t depth = depth_of(widest);
  std::vector<Left> views;
  for (std::int64_t v = 0; v < args.count; ++v) {
    const EliminateSmallView& view = args.views[v];
    Doubles variances(view.positions);
    for (std::int64_t p = 0; p < view.positions; ++p) variances[p] = view.covariance[p * view.positions + p];
    if (!invert(view.covariance, view.positions, inner)) return v;
    views.emplace_back(view, args, depth, variances);
  }
  std::vector<std::int64_t> left(args.units), stays;
  std::iota(left.begin(), left.end(), 0);
  Doubles costs, off, own(depth), others(depth);
  std::vector<char> gone;
  for (std::int64_t done = 0; done < args.most;) {
    const std::int64_t count = std::min(depth, args.most - done);
    gone.assign(left.size(), false);
    off.resize(left.size());
    for (std::int64_t step = 0; step < count; ++step, ++done) {
      costs.assign(left.size(), 0.0);
      price(views, costs, off);
      const std::int64_t unit = first_of_least(costs, off, gone);
      args.chosen[done] = left[unit];
      args.added[done] = costs[unit];
      gone[unit] = true;
      for (Left& view : views) give_up(view, view.rows[unit], step, count, inner, own, others);
    }
    stays.clear();
    for (std::size_t u = 0; u < left.size(); ++u)
      if (!gone[u]) stays.push_back(static_cast<std::int64_t>(u));
    for (Left& view : views) settle(view, count, stays, inner);
    for (std::size_t u = 0; u < stays.size(); ++u) left[u] = left[stays[u]];
    left.resize(stays.size());
  }
  costs.assign(left.size(), 0.0);
  off.resize(left.size());
  price(views, costs, off);
  for (std::size_t u = 0; u < left.size(); ++u) {
    args.chosen[args.most + static_cast<std::int64_t>(u)] = left[u];
    args.added[args.most + static_cast<std::int64_t>(u)] = costs[u];
    args.off[u] = off[u];
  }
  return -1;
}

}  // namespace fairkern
