// class_wasserstein: per unit, the Wasserstein-1 distances between all pairs of classes, reduced.
//
// A block of columns is brought into a scratch of cache lines, [class][vector][sample][lane], and never leaves it:
// each class is sorted by a network of vector min and max (samples are rows, so no lane ever looks at another),
// then tiles of classes are compared as a matrix product would be, with |a - b| in place of a · b.
//
// Lanes hold the projections of one unit where there are enough of them, otherwise neighbouring units. Partial
// sums keep one order whatever the vector width, so all instruction sets give the same bits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/kernels.h"
#include "cpu/project_rows.h"
#include "cpu/sort_registers.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 13;  // below this, starting threads costs more than sorting
constexpr int kTile = 4;                       // classes per tile side
constexpr std::int64_t kFlush = 256;           // terms summed in T before they are added to a double
constexpr std::int64_t kNetworkLimit = 4096;   // samples per class above which columns are sorted one by one

struct Comparator {
  std::uint32_t low, high;  // rows, in bytes from the first
};

// Batcher's merge exchange for any n (Knuth, TAOCP 3, 5.2.2, algorithm M).
std::vector<Comparator> sorting_network(std::int64_t n) {
  std::vector<Comparator> network;
  if (n < 2) return network;
  const auto line = [](std::int64_t row) { return static_cast<std::uint32_t>(row * kLineBytes); };
  std::int64_t top = 1;
  while (top * 2 < n) top *= 2;
  for (std::int64_t p = top; p > 0; p /= 2) {
    std::int64_t q = top, r = 0, d = p;
    for (;;) {
      for (std::int64_t i = 0; i + d < n; ++i)
        if ((i & p) == r) network.push_back({line(i), line(i + d)});
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
  return network;
}

struct ClassBlock {
  std::int64_t id, begin, count;  // id: position among the sorted class labels; begin: first row in `rows`
  const std::vector<Comparator>* network;
};

// Classes whose number of samples is the same, at most kTile of them: they walk their quantiles in step.
struct Run {
  std::int64_t first, size, count;
};

struct Layout {
  bool lanes_are_projections;
  std::int64_t lanes, vectors, blocks;  // per block of columns: vectors of `lanes`
};

template <class T>
using Flag = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
struct Work {
  T* scratch;     // [sample of all classes][vector][lane], class after class
  Flag<T>* nan;   // [vector][lane]: set where a sample is NaN
  double* best;   // [lane]
  T* values;      // positions of a few samples, widened
  const T* directions;  // [position][vector][lane], or null: columns are compared as they are
};

template <class T>
constexpr int lanes_of() {
  return kLineBytes / static_cast<int>(sizeof(T));
}

// NaN becomes +inf and is put back after sorting. Returns where it was.
template <class T, class V>
FAIRKERN_INLINE auto store_marked(V value, T* target) {
  using Mask = decltype(V{} < V{});
  const Mask infinite = reinterpret_cast<Mask>(V{} + std::numeric_limits<T>::infinity());
  const Mask bits = reinterpret_cast<Mask>(value), missing = is_nan(value);
  store(target, Mask((missing & infinite) | (~missing & bits)));
  return missing;
}

template <class T>
FAIRKERN_INLINE bool any_set(const Flag<T>* nan, std::int64_t length) {
  Flag<T> any = 0;
  for (std::int64_t lane = 0; lane < length; ++lane) any |= nan[lane];
  return any != 0;
}

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

// One class, one block of columns: [vector][sample][lane].
template <class S, class T, int Width>
FAIRKERN_INLINE bool load_class(const ClassWassersteinArgs& args, const Layout& layout, std::int64_t block,
                                const ClassBlock& group, T* scratch, Flag<T>* nan) {
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  const std::int64_t lane_stride = layout.lanes_are_projections ? args.stride_p : args.stride_c;
  const std::int64_t vector_stride = layout.lanes_are_projections ? args.stride_p * L : args.stride_p;
  const std::int64_t first_unit = layout.lanes_are_projections ? block : block * L;
  const std::int64_t all_lanes = layout.lanes_are_projections ? args.projections : args.units - first_unit;
  const S* corner = static_cast<const S*>(args.x) + first_unit * args.stride_c;
  std::fill(nan, nan + layout.vectors * L, 0);
  for (std::int64_t i = 0; i < group.count; ++i) {
    const S* row = corner + args.rows[group.begin + i] * args.stride_n;
    for (std::int64_t v = 0; v < layout.vectors; ++v) {
      const S* source = row + v * vector_stride;
      const std::int64_t filled =
          std::min<std::int64_t>(L, layout.lanes_are_projections ? all_lanes - v * L : all_lanes);
      S gathered[L] = {};
      if (filled < L || lane_stride != 1) {
        for (std::int64_t lane = 0; lane < filled; ++lane) gathered[lane] = source[lane * lane_stride];
        source = gathered;
      }
      T* target = scratch + (v * group.count + i) * L;
      for (int lane = 0; lane < L; lane += W) {
        auto missing = store_marked<T>(load_wide<Width>(source + lane), target + lane);
        using Mask = decltype(missing);
        store(nan + v * L + lane, Mask(load<Mask>(nan + v * L + lane) | missing));
      }
    }
  }
  return any_set<T>(nan, layout.vectors * L);
}

template <class T, int Width>
FAIRKERN_INLINE void sort_columns(T* rows, const ClassBlock& group) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  if constexpr (Width > 16)  // too few registers otherwise
    if (group.count == 16 || group.count == 32) {
      for (int lane = 0; lane < L; lane += W)
        group.count == 16 ? sort_in_registers<T, Width, L, 1>(rows + lane)
                          : sort_in_registers<T, Width, L, 2>(rows + lane);
      return;
    }
  for (const Comparator& pair : *group.network) {
    T* low = reinterpret_cast<T*>(reinterpret_cast<char*>(rows) + pair.low);
    T* high = reinterpret_cast<T*>(reinterpret_cast<char*>(rows) + pair.high);
    for (int lane = 0; lane < L; lane += W) {
      const V a = load<V>(low + lane), b = load<V>(high + lane);
      store(low + lane, V(a < b ? a : b));
      store(high + lane, V(a < b ? b : a));
    }
  }
}

template <class T>
void sort_columns_one_by_one(T* rows, std::int64_t count) {
  constexpr int L = lanes_of<T>();
  std::vector<T> column(count);
  for (int lane = 0; lane < L; ++lane) {
    for (std::int64_t i = 0; i < count; ++i) column[i] = rows[i * L + lane];
    std::sort(column.begin(), column.end());
    for (std::int64_t i = 0; i < count; ++i) rows[i * L + lane] = column[i];
  }
}

template <class V>
FAIRKERN_INLINE void add_widened(double* sums, V value) {
  constexpr int W = static_cast<int>(sizeof(V) / sizeof(value[0]));
  using Wide = typename VectorOf<double, W * static_cast<int>(sizeof(double))>::type;
  store(sums, Wide(load<Wide>(sums) + __builtin_convertvector(value, Wide)));
}

// sums[a][b][lane] = Σ over depth of |x_a - y_b|: the register tile.
template <class T, int Width, int A, int B>
FAIRKERN_INLINE void equal_tile(const T* const* x, const T* const* y, std::int64_t depth, double* sums) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  for (std::int64_t begin = 0; begin < depth; begin += kFlush) {
    const std::int64_t end = std::min(begin + kFlush, depth);
    for (int lane = 0; lane < L; lane += W) {
      V total[A][B] = {};
      for (std::int64_t d = begin; d < end; ++d) {
        V left[A];
        for (int a = 0; a < A; ++a) left[a] = load<V>(x[a] + d * L + lane);
        for (int b = 0; b < B; ++b) {
          const V right = load<V>(y[b] + d * L + lane);
          for (int a = 0; a < A; ++a) total[a][b] += absolute<V>(left[a] - right);
        }
      }
      for (int a = 0; a < A; ++a)
        for (int b = 0; b < B; ++b) add_widened(sums + (a * kTile + b) * L + lane, total[a][b]);
    }
  }
}

// Different numbers of samples n and m: ∫|F⁻¹ - G⁻¹| is a sum over the common refinement of the grids i/n and j/m,
// walked in units of 1/(n·m). Scaled by n so that the caller divides both kinds of tile by the first count.
template <class T, int Width, int A, int B>
FAIRKERN_INLINE void unequal_tile(const T* const* x, const T* const* y, std::int64_t n, std::int64_t m,
                                  std::int64_t vectors, double* sums) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int L = lanes_of<T>(), W = Width / static_cast<int>(sizeof(T));
  const T unit = static_cast<T>(1) / static_cast<T>(m);
  for (std::int64_t v = 0; v < vectors; ++v) {
    for (int lane = 0; lane < L; lane += W) {
      std::int64_t i = 0, j = 0, at = 0;
      while (i < n) {
        V total[A][B] = {};
        for (std::int64_t terms = 0; terms < kFlush && i < n; ++terms) {
          const std::int64_t next_i = (i + 1) * m, next_j = (j + 1) * n;
          const std::int64_t next = std::min(next_i, next_j);
          const T weight = static_cast<T>(next - at) * unit;
          V left[A];
          for (int a = 0; a < A; ++a) left[a] = load<V>(x[a] + (v * n + i) * L + lane);
          for (int b = 0; b < B; ++b) {
            const V right = load<V>(y[b] + (v * m + j) * L + lane);
            for (int a = 0; a < A; ++a) total[a][b] += weight * absolute<V>(left[a] - right);
          }
          at = next;
          i += next == next_i;
          j += next == next_j;
        }
        for (int a = 0; a < A; ++a)
          for (int b = 0; b < B; ++b) add_widened(sums + (a * kTile + b) * L + lane, total[a][b]);
      }
    }
  }
}

template <class T, int Width, int A>
FAIRKERN_INLINE void tile_row(const T* const* x, const T* const* y, const Run& left, const Run& right,
                              std::int64_t vectors, double* sums) {
#define FAIRKERN_TILE(B)                                                                              \
  left.count == right.count ? equal_tile<T, Width, A, B>(x, y, left.count* vectors, sums)             \
                            : unequal_tile<T, Width, A, B>(x, y, left.count, right.count, vectors, sums)
  switch (right.size) {
    case 1: FAIRKERN_TILE(1); break;
    case 2: FAIRKERN_TILE(2); break;
    case 3: FAIRKERN_TILE(3); break;
    default: FAIRKERN_TILE(4); break;
  }
#undef FAIRKERN_TILE
}

// Registers hold 4 × 4 sums in AVX-512, 2 × 4 in the narrower sets; the tile is walked in parts of that size.
template <class T, int Width>
FAIRKERN_INLINE void tile(const T* const* x, const T* const* y, const Run& left, const Run& right,
                          std::int64_t vectors, double* sums) {
  constexpr int L = lanes_of<T>();
  constexpr int kRows = Width == kLineBytes ? kTile : 2;
  for (std::int64_t a = 0; a < left.size; a += kRows) {
    double* at = sums + a * kTile * L;
    switch (std::min<std::int64_t>(kRows, left.size - a)) {
      case 1: tile_row<T, Width, 1>(x + a, y, left, right, vectors, at); break;
      case 2: tile_row<T, Width, 2>(x + a, y, left, right, vectors, at); break;
      case 3: tile_row<T, Width, kRows == 4 ? 3 : 2>(x + a, y, left, right, vectors, at); break;
      default: tile_row<T, Width, kRows>(x + a, y, left, right, vectors, at); break;
    }
  }
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
  std::int64_t loaded = 0;
  for (const ClassBlock& group : classes) {
    T* rows = work.scratch + loaded * line;
    const bool any_nan = work.directions ? project_class<S, T, Width>(args, layout, block, group, work, rows)
                                         : load_class<S, T, Width>(args, layout, block, group, rows, work.nan);
    for (std::int64_t v = 0; v < layout.vectors; ++v) {
      T* column = rows + v * group.count * L;
      if (group.network)
        sort_columns<T, Width>(column, group);
      else
        sort_columns_one_by_one<T>(column, group.count);
      for (int lane = 0; any_nan && lane < L; ++lane)
        if (work.nan[v * L + lane]) column[lane] = std::numeric_limits<T>::quiet_NaN();
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

struct FreeAligned {
  void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t(kLineBytes)); }
};

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

  std::vector<std::unique_ptr<std::vector<Comparator>>> networks;
  std::vector<Run> runs;
  for (std::size_t k = 0; k < classes.size(); ++k) {
    ClassBlock& group = classes[k];
    const bool same = k > 0 && classes[k - 1].count == group.count;
    if (!same && group.count <= kNetworkLimit)
      networks.push_back(std::make_unique<std::vector<Comparator>>(sorting_network(group.count)));
    if (group.count <= kNetworkLimit) group.network = networks.back().get();
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
      args.directions ? (kProjectRows * args.positions * sizeof(T) + kLineBytes - 1) / kLineBytes * kLineBytes : 0;
  const std::size_t bytes = scratch_bytes + nan_bytes + best_bytes + values_bytes;
  std::unique_ptr<char[], FreeAligned> memory(
      static_cast<char*>(::operator new[](bytes * threads, std::align_val_t(kLineBytes))));

  std::vector<T> directions;  // padded with zeros to whole vectors, which add nothing to a distance
  if (args.directions) {
    directions.resize(args.positions * layout.vectors * L);
    const T* given = static_cast<const T*>(args.directions);
    for (std::int64_t d = 0; d < args.positions; ++d)
      std::copy_n(given + d * args.projections, args.projections, directions.data() + d * layout.vectors * L);
  }

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
                 args.directions ? directions.data() : nullptr};
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
