// gram: Σ a aᵀ over vectors a, added to the upper triangle of a symmetric matrix in double, and Σ a.
//
// Vectors are brought into panels of channels, [panel][vector][channel], a few megabytes at a time, which serve both
// sides of the product: 16 rows are multiplied with every panel from their own on, so that half of the matrix is made.
// Sums of 256 vectors are kept in the type of the products before they are added to the double. What is taken off all
// vectors is taken off on the way into a panel; Σ a and Σ a² are made of what has just come into it. Before products are
// added, Σ a² says whether their type holds them: where it does not, it ends with the vectors before.
#include <algorithm>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kPackedBytes = 1 << 22;
constexpr std::int64_t kSerialProducts = 1 << 16;  // below this, starting threads costs more than multiplying

// What was taken off, padded, and what the vectors of a chunk sum up to: panels of pieces.
template <class T>
class Sums {
 public:
  Sums(const GramArgs& args, std::int64_t panels, std::int64_t pieces)
      : args_(args), pieces_(pieces), shift_(panels * kPanel * lanes_of<T>()), squares_(args.total ? args.channels : 0),
        values_(squares_.size()), pieces_of_(args.total ? panels * pieces : 1) {
    if (args.shift) std::copy_n(static_cast<const T*>(args.shift), args.channels, shift_.data());
  }

  const T* shift() const { return shift_.data(); }
  PanelSums<T>& of(std::int64_t panel, std::int64_t piece) { return pieces_of_[args_.total ? panel * pieces_ + piece : 0]; }

  // Of the first `pieces` of all panels, in order. Returns whether the vectors so far may be added: then it adds Σ a.
  bool add(std::int64_t pieces) {
    if (!args_.total) return true;
    constexpr std::int64_t width = kPanel * lanes_of<T>();
    double largest = 0;
    bool below = true;
    for (std::int64_t c = 0; c < args_.channels; ++c) {
      values_[c] = 0;
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const PanelSums<T>& sums = of(c / width, piece);
        values_[c] += static_cast<double>(sums.values[c % width]);
        squares_[c] += static_cast<double>(sums.squares[c % width]);
      }
      largest = std::max(largest, squares_[c]);
      below = below && squares_[c] < args_.most;  // which NaN is not
    }
    if (args_.most > 0 && !(below && args_.least <= largest)) return false;
    for (std::int64_t c = 0; c < args_.channels; ++c) args_.total[c] += values_[c];
    return true;
  }

 private:
  const GramArgs& args_;
  std::int64_t pieces_;
  std::vector<T> shift_;
  std::vector<double> squares_, values_;
  std::vector<PanelSums<T>> pieces_of_;
};

template <class S>
std::int64_t run(const GramArgs& args) {
  using T = Wide<S>;
  const std::int64_t width = kPanel * lanes_of<T>(), panels = (args.channels + width - 1) / width;
  const std::int64_t vectors = args.outer * args.inner, groups = (args.channels + kBlockRows - 1) / kBlockRows;
  const std::int64_t fitting = kPackedBytes / static_cast<std::int64_t>(panels * width * sizeof(T));
  const std::int64_t depth = std::min(vectors, std::max<std::int64_t>(1, fitting / kGramFlush) * kGramFlush);
  const bool serial = args.channels * args.channels * vectors < kSerialProducts;
  const std::int64_t threads = serial ? 1 : args.threads;
  const AlignedBytes memory = aligned_bytes(depth * width * sizeof(T) * panels);
  T* packed = reinterpret_cast<T*>(memory.get());
  const Inner<S> inner = inner_of<S>(args.isa);
  const std::int64_t pieces = (depth + kDepth - 1) / kDepth;
  Sums<T> sums(args, panels, pieces);
  std::int64_t added = 0;
  bool held = true;
#pragma omp parallel num_threads(threads)
  for (std::int64_t begin = 0; begin < vectors && held; begin += depth) {
    const std::int64_t here = std::min(depth, vectors - begin);
#pragma omp for schedule(static)
    for (std::int64_t piece = 0; piece < panels * pieces; ++piece) {
      const std::int64_t panel = piece / pieces, number = piece % pieces, first = number * kDepth;
      if (first < here)
        inner.gram_pack(args, sums.shift(), panel * width, begin + first, std::min(kDepth, here - first),
                        packed + (panel * depth + first) * width, sums.of(panel, number));
    }
#pragma omp single
    {
      held = sums.add((here + kDepth - 1) / kDepth);
      if (held) added += here;
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t group = 0; group < (held ? groups : 0); ++group)
      inner.gram_rows(args, group * kBlockRows, packed, depth, here);
  }
  return added;
}

}  // namespace

std::int64_t gram(Element element, const GramArgs& args) {
  std::int64_t added = 0;
  for_element(element, [&](auto zero) { added = run<decltype(zero)>(args); });
  return added;
}

}  // namespace fairkern
