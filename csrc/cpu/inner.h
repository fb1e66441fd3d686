// What the operators hand to their inner parts, which are compiled once for every instruction set (inner/), and the
// table of those parts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/floats.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/lines.h"
#include "cpu/sorting.h"

namespace fairkern {

constexpr int kTile = 4;         // classes per tile side
constexpr int kProjectRows = 4;  // samples that share one read of the directions

struct ClassBlock {
  std::int64_t id, begin, count;  // id: position among the sorted class labels; begin: first row in `rows`
  const Network* network;         // null: sorted column by column
};

// Classes whose number of samples is the same, at most kTile of them: they walk their quantiles in step.
struct Run {
  std::int64_t first, size, count;
};

struct ClassLayout {
  bool lanes_are_projections;
  std::int64_t lanes, vectors, blocks;  // per block of columns: vectors of `lanes`
};

template <class T>
struct ClassWork {
  T* scratch;     // [sample of all classes][vector][lane], class after class
  Flag<T>* nan;   // [vector][lane]: set where a sample is NaN
  double* best;   // [lane]
  T* values;      // positions of a few samples, widened
  const T* directions;  // [position][vector][lane], or null: columns are compared as they are
  ColumnKeys<T>* room;
};

template <class T>
struct PairWork {
  T *x, *y;      // [sample][lane]
  Flag<T>* nan;  // [lane]
  ColumnKeys<T>* room;
};

struct PairNetworks {
  const Network *x, *y;  // null: sorted column by column
};

constexpr int kBlockRows = 16;           // of a block of project
constexpr int kPanel = 4;                // vectors of a panel
constexpr std::int64_t kDepth = 64;      // positions that are multiplied before the next rows

template <class T>
struct Panels {
  std::vector<T> values;  // [panel][position][kPanel · L], zeros where there is no direction
  std::int64_t vectors;

  explicit Panels(const ProjectArgs& args) {
    constexpr int L = lanes_of<T>();
    vectors = (args.projections + L - 1) / L;
    const std::int64_t width = kPanel * L, count = (vectors + kPanel - 1) / kPanel;
    values.resize(count * args.positions * width);
    const T* given = static_cast<const T*>(args.directions);
    for (std::int64_t panel = 0; panel < count; ++panel) {
      const std::int64_t here = std::min(width, args.projections - panel * width);
      for (std::int64_t d = 0; d < args.positions; ++d)
        std::copy_n(given + d * args.projections + panel * width, here,
                    values.data() + (panel * args.positions + d) * width);
    }
  }
};

constexpr std::int64_t kGramFlush = 256;  // vectors summed in T before they are added to a double

// Of the vectors of a piece of a panel, per channel.
template <class T>
struct PanelSums {
  T values[kPanel * lanes_of<T>()], squares[kPanel * lanes_of<T>()];
};

template <class T>
struct ProjectWork {
  T* values;  // [kBlockRows][position] or [position][kBlockRows], widened
  T* sums;    // [kBlockRows][vector][lane]
};

// How rows are counted: all of them, or, channels being innermost, those of a sample.
struct ProjectBlocks {
  bool channels_innermost;
  std::int64_t per_sample, count;

  explicit ProjectBlocks(const ProjectArgs& args)
      : channels_innermost(args.stride_c < args.stride_d),
        per_sample((args.channels + kBlockRows - 1) / kBlockRows),
        count(channels_innermost ? args.samples * per_sample
                                 : (args.samples * args.channels + kBlockRows - 1) / kBlockRows) {}
};

constexpr std::int64_t kDotPiece = 1 << 15;  // positions of one channel per piece of taylor
constexpr std::int64_t kLanePiece = 1 << 9;  // rows of channels per piece
constexpr std::int64_t kLaneBlock = 256;     // channels that are summed together
constexpr std::int64_t kShort = 1 << 10;     // positions up to which the lanes of several channels are added up together
constexpr std::int64_t kShortPiece = 16;     // samples per piece then
constexpr std::int64_t kShortChannels = 256;  // and channels

// How the work of taylor is cut: `parts` rows of results, each [channels], `pieces` of them to a sample. Where
// every row of the input is a sample, or channels have few positions, parts are pieces of the samples, and their
// magnitudes are summed on the way (`of_samples`).
struct Cut {
  bool by_lanes, few_positions, of_samples;
  std::int64_t length, size, pieces, parts, together, tasks;

  explicit Cut(const TaylorArgs& args)
      : by_lanes(args.after == 1),
        few_positions(!by_lanes && args.before == 1 && args.after <= kShort),
        of_samples(few_positions || (by_lanes && args.before == 1)),
        length(of_samples ? args.samples : by_lanes ? args.before : args.after),
        size(few_positions ? kShortPiece : by_lanes ? kLanePiece : kDotPiece),
        pieces((length + size - 1) / size),
        parts(of_samples ? pieces : args.samples * pieces),
        together(few_positions ? kShortChannels : by_lanes ? kLaneBlock : 1),  // channels of a task
        tasks(parts * ((args.channels + together - 1) / together)) {}
};

struct Partials {
  std::vector<double> products, magnitudes, activations;  // [parts, channels]
};

// The inner parts for elements S: a block of columns, a line of columns, a block of rows, a piece, a stretch, whole
// columns and halves of matrices.
template <class S>
struct Inner {
  using T = Wide<S>;
  void (*class_wasserstein)(const ClassWassersteinArgs& args, const ClassLayout& layout, std::int64_t block,
                            const std::vector<ClassBlock>& classes, const std::vector<Run>& runs,
                            const ClassWork<T>& work);
  void (*wasserstein_1d)(const Wasserstein1dArgs& args, std::int64_t line, const PairNetworks& networks,
                         const PairWork<T>& work);
  void (*project)(const ProjectArgs& args, const ProjectBlocks& blocks, const Panels<T>& panels, std::int64_t number,
                  const ProjectWork<T>& work);
  void (*gram_pack)(const GramArgs& args, const T* shift, std::int64_t channel, std::int64_t begin, std::int64_t count,
                    T* to, PanelSums<T>& sums);
  void (*gram_rows)(const GramArgs& args, std::int64_t row, const T* packed, std::int64_t stride, std::int64_t depth);
  void (*taylor)(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials);
  void (*eliminate)(const double* half, const double* mixed, std::int64_t stride, std::int64_t steps,
                    const double* own, const double* others, std::int64_t length, double* inverse, double* output);
  void (*swept)(const double* half, std::int64_t stride, std::int64_t steps, const double* own, std::int64_t length,
                double* column);
  void (*eliminated)(const double* half, const double* mixed, std::int64_t stride, std::int64_t steps,
                     const double* own, const double* others, std::int64_t length, double* inverse, double* output);
  void (*add_lower)(double* matrix, std::int64_t stride, std::int64_t n, const double* left, const double* right,
                    std::int64_t pitch, std::int64_t depth);
};

// Each defined in the file of its name.
namespace baseline {
template <class S>
Inner<S> inner();
}
namespace avx2 {
template <class S>
Inner<S> inner();
}
namespace avx512 {
template <class S>
Inner<S> inner();
}

// The one dispatch over instruction sets; `isa` has been resolved.
template <class S>
Inner<S> inner_of(Isa isa) {
#if FAIRKERN_X86
  if (isa == Isa::avx512) return avx512::inner<S>();
  if (isa == Isa::avx2) return avx2::inner<S>();
#endif
  return baseline::inner<S>();
}

}  // namespace fairkern
