// class_wasserstein: per unit, the Wasserstein-1 distances between all pairs of classes, reduced.
//
// A block of columns is brought into a scratch of cache lines, [class][vector][sample][lane], and never leaves it: each
// class is sorted (sort_lines.h), then tiles of classes are compared (distance_tile.h).
//
// Lanes hold the projections of one unit where there are enough of them, otherwise neighbouring units. Partial
// sums keep one order whatever the vector width, so all instruction sets give the same bits.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 13;  // below this, starting threads costs more than sorting

template <class S>
void run(const ClassWassersteinArgs& args) {
  using T = Wide<S>;
  constexpr int L = lanes_of<T>();

  // Classes in order of their number of samples, so that those of one number stand together.
  std::vector<ClassBlock> classes;
  std::int64_t samples = 0;
  for (std::int64_t k = 0; k < args.classes; ++k) {
    const std::int64_t count = args.offsets[k + 1] - args.offsets[k];
    require(count >= 1, "class ", k, " of ", args.classes, " has no samples");
    classes.push_back({k, args.offsets[k], count, nullptr});
    samples += count;
  }
  std::stable_sort(classes.begin(), classes.end(),
                   [](const ClassBlock& a, const ClassBlock& b) { return a.count < b.count; });

  std::vector<std::unique_ptr<Network>> networks;
  std::vector<Run> runs;
  for (std::size_t k = 0; k < classes.size(); ++k) {
    ClassBlock& group = classes[k];
    const bool same = k > 0 && classes[k - 1].count == group.count;
    if (!same) networks.push_back(network_for(group.count, args.network_limit));
    group.network = networks.back().get();
    if (same && runs.back().size < kTile)
      ++runs.back().size;
    else
      runs.push_back({static_cast<std::int64_t>(k), 1, group.count});
  }

  ClassLayout layout;
  layout.lanes_are_projections = args.directions || args.projections >= L;
  layout.lanes = layout.lanes_are_projections ? 1 : L;
  layout.vectors = layout.lanes_are_projections ? (args.projections + L - 1) / L : args.projections;
  layout.blocks = (args.units + layout.lanes - 1) / layout.lanes;

  const bool serial = samples * args.units * args.projections < kSerialElements;
  const std::int64_t threads = serial ? 1 : std::min<std::int64_t>(args.threads, layout.blocks);
  const std::size_t scratch_bytes = static_cast<std::size_t>(samples) * layout.vectors * kLineBytes;
  const std::size_t nan_bytes = static_cast<std::size_t>(layout.vectors) * kLineBytes;
  const std::size_t best_bytes = 2 * kLineBytes;
  const std::size_t values_bytes =
      args.directions ? whole_lines(kProjectRows * args.positions * sizeof(T)) : 0;
  const std::size_t bytes = scratch_bytes + nan_bytes + best_bytes + values_bytes;
  const AlignedBytes memory = aligned_bytes(bytes * threads);

  std::vector<T> directions;  // padded with zeros to whole vectors, which add nothing to a distance
  if (args.directions) {
    directions.resize(args.positions * layout.vectors * L);
    const T* given = static_cast<const T*>(args.directions);
    for (std::int64_t d = 0; d < args.positions; ++d)
      std::copy_n(given + d * args.projections, args.projections, directions.data() + d * layout.vectors * L);
  }

  std::vector<ColumnKeys<T>> rooms(threads);
  if (classes.back().count > args.network_limit)
    for (ColumnKeys<T>& room : rooms)
      room.reserve(std::min<std::int64_t>(L, layout.lanes_are_projections ? args.projections : args.units),
                   classes.back().count);

  const auto block_of_columns = inner_of<S>(args.isa).class_wasserstein;
#pragma omp parallel num_threads(threads)
  {
    char* own = memory.get() + bytes * thread_number();
    const ClassWork<T> work{reinterpret_cast<T*>(own), reinterpret_cast<Flag<T>*>(own + scratch_bytes),
                            reinterpret_cast<double*>(own + scratch_bytes + nan_bytes),
                            reinterpret_cast<T*>(own + scratch_bytes + nan_bytes + best_bytes),
                            args.directions ? directions.data() : nullptr, &rooms[thread_number()]};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t block = 0; block < layout.blocks; ++block)
      block_of_columns(args, layout, block, classes, runs, work);
  }
}

}  // namespace

void class_wasserstein(Element element, const ClassWassersteinArgs& args) {
  for_element(element, [&](auto zero) { run<decltype(zero)>(args); });
}

}  // namespace fairkern
