// eliminate_steps: a block of exact steps of backward elimination, units of one position each.
//
// The matrices are those of the block's begin, lower halves; what its steps make of them is in `half` and `mixed`, of
// which a column is made when its unit goes. Diagonals are kept up to date. Every sum runs over the steps in order, so
// that the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kStretch = 512;            // positions that are gone through at a time: a page
constexpr std::int64_t kSerialPositions = 4096;  // below this, starting threads costs more than reading

// Column `row` of a symmetric matrix whose lower half is there, from `begin` on.
template <class S>
void copy_column(const S* matrix, std::int64_t stride, std::int64_t row, std::int64_t begin, std::int64_t end,
                 double* out) {
  for (std::int64_t p = begin; p < std::min(end, row + 1); ++p) out[p] = matrix[row * stride + p];
  for (std::int64_t p = std::max(begin, row + 1); p < end; ++p) out[p] = matrix[p * stride + row];
}

template <class S>
void give_up(const EliminateView& view, std::int64_t unit, std::int64_t step, std::int64_t units, int threads,
             decltype(Inner<double>::eliminate) stretch, std::vector<double>& own, std::vector<double>& others) {
  const std::int64_t n = view.positions, row = view.rows[unit];
  double* made = view.half + step * n;
  double* read = view.mixed + step * n;
  for (std::int64_t j = 0; j < step; ++j) {
    own[j] = view.half[j * n + row];
    others[j] = view.mixed[j * n + row];
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (n >= kSerialPositions && threads > 1)
  for (std::int64_t begin = 0; begin < n; begin += kStretch) {
    const std::int64_t end = std::min(n, begin + kStretch);
    copy_column(static_cast<const S*>(view.inverse), view.inverse_stride, row, begin, end, made);
    copy_column(static_cast<const S*>(view.output), view.output_stride, row, begin, end, read);
    stretch(view.half + begin, view.mixed + begin, n, step, own.data(), others.data(), end - begin, made + begin,
            read + begin);
  }
  const double root = std::sqrt(view.inverse_diagonal[unit]), power = view.output_diagonal[unit];
  for (std::int64_t p = 0; p < n; ++p) {
    const double half = view.alive[p] * made[p] / root;
    read[p] = view.alive[p] * (0.5 * power * half / root - read[p]) / root;
    made[p] = half;
  }
  view.alive[row] = made[row] = read[row] = 0;
  for (std::int64_t u = 0; u < units; ++u) {
    const double half = made[view.rows[u]], mixed = read[view.rows[u]];
    view.inverse_diagonal[u] -= half * half;
    view.output_diagonal[u] += 2 * half * mixed;
  }
  view.inverse_diagonal[unit] = 1;
  view.output_diagonal[unit] = 0;
}

template <class S>
void run(const EliminateArgs& args) {
  const auto stretch = inner_of<double>(args.isa).eliminate;
  std::vector<double> costs(args.units), off(args.units), gone(args.units), own(args.steps), others(args.steps);
  for (std::int64_t step = 0; step < args.steps; ++step) {
    costs = gone;
    std::fill(off.begin(), off.end(), 0.0);
    for (std::int64_t v = 0; v < args.count; ++v) {
      const EliminateView& view = args.views[v];
      for (std::int64_t u = 0; u < args.units; ++u) {
        costs[u] += view.output_diagonal[u] / view.inverse_diagonal[u];
        off[u] += view.output_diagonal[u] * view.noise[view.rows[u]];
      }
    }
    const std::int64_t least = std::min_element(costs.begin(), costs.end()) - costs.begin();
    std::int64_t unit = 0;
    while (unit != least && !(costs[unit] <= costs[least] + std::max(off[unit], off[least]))) ++unit;
    args.chosen[step] = unit;
    args.added[step] = costs[unit];
    gone[unit] = std::numeric_limits<double>::infinity();
    for (std::int64_t v = 0; v < args.count; ++v)
      give_up<S>(args.views[v], unit, step, args.units, args.threads, stretch, own, others);
  }
}

}  // namespace

void eliminate_steps(Element element, const EliminateArgs& args) {
  for (std::int64_t v = 0; v < args.count; ++v)
    for (std::int64_t u = 0; u < args.units; ++u) {
      const std::int64_t row = args.views[v].rows[u];
      require(row >= 0 && row < args.views[v].positions, "unit ", u, " of view ", v, " lies at ", row, "; there are ",
              args.views[v].positions, " positions");
    }
  element == Element::float64 ? run<double>(args) : run<float>(args);
}

}  // namespace fairkern
