// gram: Σ a aᵀ over vectors a, added to the upper triangle of a symmetric matrix in double.
//
// Vectors are brought into panels of channels, [panel][vector][channel], a few megabytes at a time, which serve both
// sides of the product: 16 rows are multiplied with every panel from their own on, so that half of the matrix is made.
// Sums of 256 vectors are kept in the type of the products before they are added to the double.
#include <algorithm>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kPackedBytes = 1 << 22;
constexpr std::int64_t kSerialProducts = 1 << 16;  // below this, starting threads costs more than multiplying

template <class S>
void run(const GramArgs& args) {
  using T = Wide<S>;
  const std::int64_t width = kPanel * lanes_of<T>(), panels = (args.channels + width - 1) / width;
  const std::int64_t vectors = args.outer * args.inner, groups = (args.channels + kBlockRows - 1) / kBlockRows;
  const std::int64_t fitting = kPackedBytes / static_cast<std::int64_t>(panels * width * sizeof(T));
  const std::int64_t depth = std::min(vectors, std::max<std::int64_t>(1, fitting / kGramFlush) * kGramFlush);
  const std::size_t panel_bytes = depth * width * sizeof(T);
  const bool serial = args.channels * args.channels * vectors < kSerialProducts;
  const std::int64_t threads = serial ? 1 : args.threads;
  const AlignedBytes memory = aligned_bytes(panel_bytes * panels);
  std::fill_n(memory.get(), panel_bytes * panels, 0);  // where there is no channel it stays so
  T* packed = reinterpret_cast<T*>(memory.get());
  const Inner<S> inner = inner_of<S>(args.isa);
  const std::int64_t pieces = (depth + kDepth - 1) / kDepth;
#pragma omp parallel num_threads(threads)
  for (std::int64_t begin = 0; begin < vectors; begin += depth) {
    const std::int64_t here = std::min(depth, vectors - begin);
#pragma omp for schedule(static)
    for (std::int64_t piece = 0; piece < panels * pieces; ++piece) {
      const std::int64_t panel = piece / pieces, first = piece % pieces * kDepth;
      if (first < here)
        inner.gram_pack(args, panel * width, begin + first, std::min(kDepth, here - first),
                        packed + (panel * depth + first) * width);
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t group = 0; group < groups; ++group) inner.gram_rows(args, group * kBlockRows, packed, depth, here);
  }
}

}  // namespace

void gram(Element element, const GramArgs& args) {
  for_element(element, [&](auto zero) { run<decltype(zero)>(args); });
}

}  // namespace fairkern
