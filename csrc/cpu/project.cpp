// project: the positions of every channel onto shared directions, read where they lie.
//
// Blocks of 16 rows (sample, channel) are multiplied with panels of 64 or 32 directions, some positions at a time, so
// that a part of a panel stays in the first-level cache while the rows take turns. Where neighbouring channels are
// neighbours in memory, a block is 16 of them, read position by position. Sums keep the order of the positions.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/kernels.h"
#include "cpu/lines.h"
#include "cpu/project_rows.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialProducts = 1 << 15;  // below this, starting threads costs more than multiplying
constexpr int kRows = 16;                          // of a block
constexpr int kPanel = 4;                          // vectors of a panel
constexpr std::int64_t kDepth = 64;                // positions that are multiplied before the next rows

template <class T>
struct Directions {
  std::vector<T> panels;  // [panel][position][kPanel · L], zeros where there is no direction
  std::int64_t vectors;

  explicit Directions(const ProjectArgs& args) {
    constexpr int L = lanes_of<T>();
    vectors = (args.projections + L - 1) / L;
    const std::int64_t width = kPanel * L, count = (vectors + kPanel - 1) / kPanel;
    panels.resize(count * args.positions * width);
    const T* given = static_cast<const T*>(args.directions);
    for (std::int64_t panel = 0; panel < count; ++panel) {
      const std::int64_t here = std::min(width, args.projections - panel * width);
      for (std::int64_t d = 0; d < args.positions; ++d)
        std::copy_n(given + d * args.projections + panel * width, here,
                    panels.data() + (panel * args.positions + d) * width);
    }
  }
};

template <class T>
struct Work {
  T* values;  // [kRows][position] or [position][kRows], widened
  T* sums;    // [kRows][vector][lane]
};

// How rows are counted: all of them, or, channels being innermost, those of a sample.
struct Blocks {
  bool channels_innermost;
  std::int64_t per_sample, count;

  explicit Blocks(const ProjectArgs& args)
      : channels_innermost(args.stride_c < args.stride_d),
        per_sample((args.channels + kRows - 1) / kRows),
        count(channels_innermost ? args.samples * per_sample : (args.samples * args.channels + kRows - 1) / kRows) {}
};

template <class S>
FAIRKERN_INLINE const S* row_of(const ProjectArgs& args, std::int64_t row) {
  const std::int64_t sample = row / args.channels;
  return static_cast<const S*>(args.x) + (args.rows ? args.rows[sample] : sample) * args.stride_n +
         row % args.channels * args.stride_c;
}

// Elements `step` apart, widened.
template <class S, class T, int Width>
FAIRKERN_INLINE void widened(const S* from, std::int64_t step, std::int64_t count, T* to) {
  constexpr int W = Width / static_cast<int>(sizeof(T));
  std::int64_t i = 0;
  if (step == 1)
    for (; i + W <= count; i += W) store(to + i, load_wide<Width>(from + i));
  for (; i < count; ++i) to[i] = widen(from[i * step]);
}

template <class S, class T, int Width>
FAIRKERN_INLINE void block(const ProjectArgs& args, const Blocks& blocks, const Directions<T>& directions,
                           std::int64_t number, const Work<T>& work) {
  constexpr int L = lanes_of<T>();
  std::int64_t first = number * kRows, count = std::min<std::int64_t>(kRows, args.samples * args.channels - first);
  std::int64_t step = 1;
  const T* heads[kRows];
  if (blocks.channels_innermost) {
    const std::int64_t channel = number % blocks.per_sample * kRows;
    first = number / blocks.per_sample * args.channels + channel;
    count = std::min<std::int64_t>(kRows, args.channels - channel);
    step = kRows;
    const S* from = row_of<S>(args, first);
    for (std::int64_t d = 0; d < args.positions; ++d)
      widened<S, T, Width>(from + d * args.stride_d, args.stride_c, count, work.values + d * kRows);
    for (std::int64_t r = 0; r < count; ++r) heads[r] = work.values + r;
  } else {
    for (std::int64_t r = 0; r < count; ++r) {
      const S* from = row_of<S>(args, first + r);
      heads[r] = work.values + r * args.positions;
      if constexpr (std::is_same_v<S, T>)
        if (args.stride_d == 1) {
          heads[r] = from;
          continue;
        }
      widened<S, T, Width>(from, args.stride_d, args.positions, work.values + r * args.positions);
    }
  }

  const std::int64_t width = kPanel * L, padded = directions.vectors * L;
  T* out = static_cast<T*>(args.out) + first * args.projections;
  const bool direct = padded == args.projections;
  for (std::int64_t v = 0; v < directions.vectors; v += kPanel) {
    const T* panel = directions.panels.data() + v / kPanel * args.positions * width;
    const std::int64_t vectors = std::min<std::int64_t>(kPanel, directions.vectors - v);
    for (std::int64_t d = 0; d < args.positions; d += kDepth) {
      const std::int64_t depth = std::min(kDepth, args.positions - d);
      for (std::int64_t r = 0; r < count; r += kProjectRows) {
        const Target<T> target{(direct ? out : work.sums) + r * padded + v * L, padded, L, d > 0};
        const T* values[kProjectRows];
        const std::int64_t together = std::min<std::int64_t>(kProjectRows, count - r);
        for (std::int64_t i = 0; i < together; ++i) values[i] = heads[r + i] + d * step;
        const T* along = panel + d * width;
        switch (together) {
          case 1: project_vectors<T, Width, 1>(values, step, depth, along, width, vectors, target); break;
          case 2: project_vectors<T, Width, 2>(values, step, depth, along, width, vectors, target); break;
          case 3: project_vectors<T, Width, 3>(values, step, depth, along, width, vectors, target); break;
          default: project_vectors<T, Width, 4>(values, step, depth, along, width, vectors, target); break;
        }
      }
    }
  }
  if (!direct)
    for (std::int64_t r = 0; r < count; ++r)
      std::copy_n(work.sums + r * padded, args.projections, out + r * args.projections);
}

template <class S, class T>
FAIRKERN_AVX512 void block_avx512(const ProjectArgs& args, const Blocks& blocks, const Directions<T>& directions,
                                  std::int64_t number, const Work<T>& work) {
  block<S, T, 64>(args, blocks, directions, number, work);
}
template <class S, class T>
FAIRKERN_AVX2 void block_avx2(const ProjectArgs& args, const Blocks& blocks, const Directions<T>& directions,
                              std::int64_t number, const Work<T>& work) {
  block<S, T, 32>(args, blocks, directions, number, work);
}
template <class S, class T>
void block_baseline(const ProjectArgs& args, const Blocks& blocks, const Directions<T>& directions,
                    std::int64_t number, const Work<T>& work) {
  block<S, T, 16>(args, blocks, directions, number, work);
}

template <class S>
void run(const ProjectArgs& args) {
  using T = decltype(widen(S{}));
  const Directions<T> directions(args);
  const Blocks blocks(args);
  const bool serial = args.samples * args.channels * args.positions * args.projections < kSerialProducts;
  const std::int64_t threads = serial ? 1 : std::min<std::int64_t>(args.threads, blocks.count);
  const std::size_t value_bytes = whole_lines(kRows * args.positions * sizeof(T));
  const std::size_t bytes = value_bytes + kRows * directions.vectors * kLineBytes;
  const AlignedBytes memory = aligned_bytes(bytes * threads);
  const auto kernel = args.isa == Isa::avx512 ? block_avx512<S, T>
                      : args.isa == Isa::avx2 ? block_avx2<S, T>
                                              : block_baseline<S, T>;
#pragma omp parallel num_threads(threads)
  {
    int thread = 0;
#ifdef _OPENMP
    thread = omp_get_thread_num();
#endif
    char* own = memory.get() + bytes * thread;
    const Work<T> work{reinterpret_cast<T*>(own), reinterpret_cast<T*>(own + value_bytes)};
#pragma omp for schedule(static)
    for (std::int64_t number = 0; number < blocks.count; ++number) kernel(args, blocks, directions, number, work);
  }
}

}  // namespace

void project(Element element, const ProjectArgs& args) {
  switch (element) {
    case Element::float32: return run<float>(args);
    case Element::float64: return run<double>(args);
    case Element::bfloat16: return run<BFloat16>(args);
    case Element::float16: return run<Float16>(args);
  }
}

}  // namespace fairkern
