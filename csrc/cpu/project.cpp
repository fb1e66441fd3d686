// project: the positions of every channel onto shared directions, read where they lie.
//
// Blocks of 16 rows (sample, channel) are multiplied with panels of 64 or 32 directions, some positions at a time, so
// that a part of a panel stays in the first-level cache while the rows take turns. Where neighbouring channels are
// neighbours in memory, a block is 16 of them, read position by position. Sums keep the order of the positions,
// each product fused with its addition.
#include <algorithm>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialProducts = 1 << 15;  // below this, starting threads costs more than multiplying

template <class S>
void run(const ProjectArgs& args) {
  using T = Wide<S>;
  const Panels<T> panels(args);
  const ProjectBlocks blocks(args);
  const bool serial = args.samples * args.channels * args.positions * args.projections < kSerialProducts;
  const std::int64_t threads = serial ? 1 : std::min<std::int64_t>(args.threads, blocks.count);
  const std::size_t value_bytes = whole_lines(kBlockRows * args.positions * sizeof(T));
  const std::size_t bytes = value_bytes + kBlockRows * panels.vectors * kLineBytes;
  const AlignedBytes memory = aligned_bytes(bytes * threads);
  const auto block_of_rows = inner_of<S>(args.isa).project;
#pragma omp parallel num_threads(threads)
  {
    char* own = memory.get() + bytes * thread_number();
    const ProjectWork<T> work{reinterpret_cast<T*>(own), reinterpret_cast<T*>(own + value_bytes)};
#pragma omp for schedule(static)
    for (std::int64_t number = 0; number < blocks.count; ++number) block_of_rows(args, blocks, panels, number, work);
  }
}

}  // namespace

void project(Element element, const ProjectArgs& args) {
  for_element(element, [&](auto zero) { run<decltype(zero)>(args); });
}

}  // namespace fairkern
