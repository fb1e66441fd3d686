// eliminate_steps: a block of exact steps of backward elimination, units of one position each.
//
// The matrices are those of the block's begin, lower halves; what its steps make of them is in `half` and `mixed`, of
// which a column is made when its unit goes. Diagonals are kept up to date. Every sum runs over the steps in order, and
// every number is made by one thread, so that the result does not depend on how many there are.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

namespace fairkern {
namespace {

constexpr std::int64_t kStretch = 256;           // positions that are gone through at a time
constexpr std::int64_t kUnits = 512;             // units, the same
constexpr std::int64_t kSerialPositions = 1024;  // below this, waiting for each other costs more than reading

std::int64_t pieces_of(std::int64_t count, std::int64_t length) { return (count + length - 1) / length; }

// Column `row` of a symmetric matrix whose lower half is there, from `begin` on.
template <class S>
void copy_column(const S* matrix, std::int64_t stride, std::int64_t row, std::int64_t begin, std::int64_t end,
                 double* out) {
  for (std::int64_t p = begin; p < std::min(end, row + 1); ++p) out[p] = matrix[row * stride + p];
  for (std::int64_t p = std::max(begin, row + 1); p < end; ++p) out[p] = matrix[p * stride + row];
}

// What the steps so far have of the unit that goes, by which a column of a stretch of positions is made.
struct Factors {
  std::vector<double> own, others;
  std::int64_t step = -1;

  explicit Factors(std::int64_t steps) : own(steps), others(steps) {}

  void read(const EliminateView& view, std::int64_t row, std::int64_t now) {
    if (step == now) return;
    for (std::int64_t j = 0; j < now; ++j) {
      own[j] = view.half[j * view.positions + row];
      others[j] = view.mixed[j * view.positions + row];
    }
    step = now;
  }
};

// The columns of a unit that goes, from `begin` on.
template <class S>
void make_columns(const EliminateView& view, std::int64_t unit, std::int64_t begin,
                  decltype(Inner<double>::eliminate) stretch, const Factors& factors) {
  const std::int64_t n = view.positions, row = view.rows[unit], end = std::min(n, begin + kStretch);
  const double root = std::sqrt(view.inverse_diagonal[unit]), power = view.output_diagonal[unit];
  double* made = view.half + factors.step * n;
  double* read = view.mixed + factors.step * n;
  copy_column(static_cast<const S*>(view.inverse), view.inverse_stride, row, begin, end, made);
  copy_column(static_cast<const S*>(view.output), view.output_stride, row, begin, end, read);
  stretch(view.half + begin, view.mixed + begin, n, factors.step, factors.own.data(), factors.others.data(),
          end - begin, made + begin, read + begin);
  for (std::int64_t p = begin; p < end; ++p) {
    const double half = view.alive[p] * made[p] / root;
    read[p] = view.alive[p] * (0.5 * power * half / root - read[p]) / root;
    made[p] = half;
  }
  if (begin <= row && row < end) view.alive[row] = made[row] = read[row] = 0;
}

// What the columns of a unit that went change of the units `first` to `last`.
void update_diagonals(const EliminateView& view, std::int64_t unit, std::int64_t step, std::int64_t first,
                      std::int64_t last) {
  const double* made = view.half + step * view.positions;
  const double* read = view.mixed + step * view.positions;
  for (std::int64_t u = first; u < last; ++u) {
    const double half = made[view.rows[u]], mixed = read[view.rows[u]];
    view.inverse_diagonal[u] -= half * half;
    view.output_diagonal[u] += 2 * half * mixed;
  }
  if (first <= unit && unit < last) {
    view.inverse_diagonal[unit] = 1;
    view.output_diagonal[unit] = 0;
  }
}

// What each unit costs, and how far off that may be.
struct Prices {
  std::vector<double> costs, off, gone;  // gone: infinity where a unit went in this block, else 0
  std::vector<std::int64_t> least;       // the first of the least of each piece

  explicit Prices(std::int64_t units) : costs(units), off(units), gone(units), least(pieces_of(units, kUnits)) {}

  // What is not a number is less than all that are: so it is found wherever it is, and refused.
  bool less(std::int64_t one, std::int64_t other) const {
    return costs[one] < costs[other] || (std::isnan(costs[one]) && !std::isnan(costs[other]));
  }

  void make(const EliminateArgs& args, std::int64_t piece) {
    const std::int64_t first = piece * kUnits, last = std::min(args.units, first + kUnits);
    std::copy(gone.begin() + first, gone.begin() + last, costs.begin() + first);
    std::fill(off.begin() + first, off.begin() + last, 0.0);
    for (std::int64_t v = 0; v < args.count; ++v) {
      const EliminateView& view = args.views[v];
      for (std::int64_t u = first; u < last; ++u) {
        costs[u] += view.output_diagonal[u] / view.inverse_diagonal[u];
        off[u] += view.output_diagonal[u] * view.noise[view.rows[u]];
      }
    }
    least[piece] = first;
    for (std::int64_t u = first + 1; u < last; ++u)
      if (less(u, least[piece])) least[piece] = u;
  }

  // The first of those whose costs rounding cannot tell from the least.
  std::int64_t choose() const {
    std::int64_t lowest = least[0], unit = 0;
    for (std::int64_t u : least)
      if (less(u, lowest)) lowest = u;
    while (unit != lowest && !(costs[unit] <= costs[lowest] + std::max(off[unit], off[lowest]))) ++unit;
    return unit;
  }
};

// The steps of a block. Each is two rounds of pieces: the columns of the unit that goes, of every view, by stretches of
// positions; then what they change of the diagonals, and what every unit costs by now, by stretches of units.
template <class S>
class Block {
 public:
  explicit Block(const EliminateArgs& args)
      : args_(args), stretch_(inner_of<double>(args.isa).eliminate), prices_(args.units), columns_(stretches(args)),
        changes_(pieces_of(args.units, kUnits)) {
    std::int64_t widest = 0;
    for (std::int64_t v = 0; v < args.count; ++v) widest = std::max(widest, args.views[v].positions);
    threads_ = widest < kSerialPositions ? 1 : args.threads;
    factors_.assign(threads_, std::vector<Factors>(args.count, Factors(args.steps)));
  }

  void run() {
    for (std::size_t piece = 0; piece < prices_.least.size(); ++piece) prices_.make(args_, piece);
    together(
        threads_, [&] { lead(); },
        [&](int number) { rounds_.follow([&](int round) { take(round, number); }); });
  }

 private:
  static std::int64_t stretches(const EliminateArgs& args) {
    std::int64_t sum = 0;
    for (std::int64_t v = 0; v < args.count; ++v) sum += pieces_of(args.views[v].positions, kStretch);
    return sum;
  }

  void lead() {
    for (std::int64_t step = 0; step < args_.steps; ++step) {
      args_.chosen[step] = prices_.choose();
      args_.added[step] = prices_.costs[args_.chosen[step]];
      for (const int round : {2 * step + 1, 2 * step + 2}) {
        rounds_.open(round);
        take(round, 0);
        (round % 2 ? columns_ : changes_).wait(step + 1);
      }
    }
    rounds_.open(Rounds::kOver);
  }

  void take(int round, int number) {
    const std::int64_t step = (round - 1) / 2;
    if (round % 2)
      columns_.take(step + 1, number, threads_, [&](std::int64_t piece) { make(step, piece, factors_[number]); });
    else
      changes_.take(step + 1, number, threads_, [&](std::int64_t piece) { change(step, piece); });
  }

  void make(std::int64_t step, std::int64_t piece, std::vector<Factors>& factors) {
    std::int64_t v = 0;
    for (std::int64_t here; piece >= (here = pieces_of(args_.views[v].positions, kStretch)); ++v) piece -= here;
    const EliminateView& view = args_.views[v];
    const std::int64_t unit = args_.chosen[step];
    factors[v].read(view, view.rows[unit], step);
    make_columns<S>(view, unit, piece * kStretch, stretch_, factors[v]);
  }

  void change(std::int64_t step, std::int64_t piece) {
    const std::int64_t first = piece * kUnits, last = std::min(args_.units, first + kUnits), unit = args_.chosen[step];
    for (std::int64_t v = 0; v < args_.count; ++v) update_diagonals(args_.views[v], unit, step, first, last);
    if (first <= unit && unit < last) prices_.gone[unit] = std::numeric_limits<double>::infinity();
    prices_.make(args_, piece);
  }

  const EliminateArgs& args_;
  decltype(Inner<double>::eliminate) stretch_;
  Prices prices_;
  Rounds rounds_;
  Pieces columns_, changes_;
  int threads_;
  std::vector<std::vector<Factors>> factors_;  // by thread and view
};

}  // namespace

void eliminate_steps(Element element, const EliminateArgs& args) {
  for (std::int64_t v = 0; v < args.count; ++v)
    for (std::int64_t u = 0; u < args.units; ++u) {
      const std::int64_t row = args.views[v].rows[u];
      require(row >= 0 && row < args.views[v].positions, "unit ", u, " of view ", v, " lies at ", row, "; there are ",
              args.views[v].positions, " positions");
    }
  element == Element::float64 ? Block<double>(args).run() : Block<float>(args).run();
}

}  // namespace fairkern
