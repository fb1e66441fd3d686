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

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/distance_tile.h"
#include "cpu/kernels.h"
#include "cpu/lines.h"
#include "cpu/project_rows.h"
#include "cpu/sort_lines.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 13;  // below this, starting threads costs more than sorting

struct ClassBlock {
  std::int64_t id, begin, count;  // id: position among the sorted class labels; begin: first row in `rows`
  const Network* network;         // null: sorted column by column
};

struct Layout {
  bool lanes_are_projections;
  std::int64_t lanes, vectors, blocks;  // per block of columns: vectors of `lanes`
};

template <class T>
struct Work {
  T* scratch;     // [sample of all classes][vector][lane], class after class
  Flag<T>* nan;   // [vector][lane]: set where a sample is NaN
  double* best;   // [lane]
  T* values;      // positions of a few samples, widened
  const T* directions;  // [position][vector][lane], or null: columns are compared as they are
  ColumnKeys<T>* room;
};

// One class of one unit, projected: [vector][sample][lane].
template <class S, class T, int Width>
FAIRKERN_INLINE bool project_class(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t unit,
                                   const ClassBlock& group, const Work<T>& work, T* scratch) {
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  project_rows<S, T, Width>(static_cast<const S*>(args.x) + unit * args.stride_c, args.rows + group.begin, group.count,
                            args.stride_n, args.stride_p, args.positions, work.directions, layout.vectors, work.values,
                            scratch);
  using V = typename VectorOf<T, Width>::type;
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
template <class S, class T>
Columns<S> columns_of(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block) {
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
FAIRKERN_INLINE void reduce_pair(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                                 std::int64_t pair, double scale, double* sums, double* best) {
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

template <class S, class T, int Width>
FAIRKERN_INLINE void block_of_columns(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                                      const std::vector<ClassBlock>& classes, const std::vector<Run>& runs,
                                      Work<T> work) {
  constexpr int L = lanes_of<T>();
  const std::int64_t line = layout.vectors * L;
  const Columns<S> columns = columns_of<S, T>(args, layout, block);
  std::int64_t loaded = 0;
  for (const ClassBlock& group : classes) {
    T* lines = work.scratch + loaded * line;
    const bool any_nan =
        work.directions
            ? project_class<S, T, Width>(args, layout, block, group, work, lines)
            : load_lines<S, T, Width>(columns, args.rows + group.begin, group.count, lines, work.nan);
    for (std::int64_t v = 0; v < layout.vectors; ++v) {
      T* vector = lines + v * group.count * L;
      sort_lines<T, Width>(vector, group.count, columns.filled(v, L), group.network, *work.room);
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
      if (!(r == s && left.size == 1)) tile<T, Width>(x, y, left, right, layout.vectors, sums);
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

template <class S, class T>
using Kernel = void (*)(const ClassWassersteinArgs&, const Layout&, std::int64_t, const std::vector<ClassBlock>&,
                        const std::vector<Run>&, Work<T>);

template <class S, class T>
FAIRKERN_AVX512 void kernel_avx512(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                                   const std::vector<ClassBlock>& classes, const std::vector<Run>& runs,
                                   Work<T> work) {
  block_of_columns<S, T, 64>(args, layout, block, classes, runs, work);
}

template <class S, class T>
FAIRKERN_AVX2 void kernel_avx2(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                               const std::vector<ClassBlock>& classes, const std::vector<Run>& runs, Work<T> work) {
  block_of_columns<S, T, 32>(args, layout, block, classes, runs, work);
}

template <class S, class T>
void kernel_baseline(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                     const std::vector<ClassBlock>& classes, const std::vector<Run>& runs, Work<T> work) {
  block_of_columns<S, T, 16>(args, layout, block, classes, runs, work);
}

template <class S, class T>
Kernel<S, T> kernel_for(Isa isa) {
  if (isa == Isa::avx512) return kernel_avx512<S, T>;
  if (isa == Isa::avx2) return kernel_avx2<S, T>;
  return kernel_baseline<S, T>;
}

template <class S>
void run(const ClassWassersteinArgs& args) {
  using T = decltype(widen(S{}));
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

  Layout layout;
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

  const Kernel<S, T> kernel = kernel_for<S, T>(args.isa);
#pragma omp parallel num_threads(threads)
  {
    int thread = 0;
#ifdef _OPENMP
    thread = omp_get_thread_num();
#endif
    char* own = memory.get() + bytes * thread;
    Work<T> work{reinterpret_cast<T*>(own), reinterpret_cast<Flag<T>*>(own + scratch_bytes),
                 reinterpret_cast<double*>(own + scratch_bytes + nan_bytes),
                 reinterpret_cast<T*>(own + scratch_bytes + nan_bytes + best_bytes),
                 args.directions ? directions.data() : nullptr, &rooms[thread]};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t block = 0; block < layout.blocks; ++block) kernel(args, layout, block, classes, runs, work);
  }
}

}  // namespace

void class_wasserstein(Element element, const ClassWassersteinArgs& args) {
  switch (element) {
    case Element::float32: return run<float>(args);
    case Element::float64: return run<double>(args);
    case Element::bfloat16: return run<BFloat16>(args);
    case Element::float16: return run<Float16>(args);
  }
}

}  // namespace fairkern
