// wasserstein_1d: per column, the distance between two sets of samples. A line of columns is sorted and compared at a
// time; the pair of sets is the smallest tile of class_wasserstein.
#include <cmath>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/distance_tile.h"
#include "cpu/kernels.h"
#include "cpu/lines.h"
#include "cpu/sort_lines.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 13;  // below this, starting threads costs more than sorting

template <class T>
struct Work {
  T *x, *y;      // [sample][lane]
  Flag<T>* nan;  // [lane]
  ColumnKeys<T>* room;
};

struct Networks {
  const Network *x, *y;  // null: sorted column by column
};

template <class S, class T, int Width>
FAIRKERN_INLINE void sorted_line(const void* samples, std::int64_t stride_n, std::int64_t stride_c, std::int64_t count,
                                 std::int64_t column, std::int64_t columns, const Network* network, T* lines,
                                 const Work<T>& work) {
  const S* corner = static_cast<const S*>(samples) + column * stride_c;
  const Columns<S> here{corner, stride_n, 0, stride_c, 1, columns - column, 0};
  const bool any_nan = load_lines<S, T, Width>(here, nullptr, count, lines, work.nan);
  sort_lines<T, Width>(lines, count, here.filled(0, lanes_of<T>()), network, *work.room);
  if (any_nan) restore_nan<T>(work.nan, lines);
}

template <class S, class T, int Width>
FAIRKERN_INLINE void line_of_columns(const Wasserstein1dArgs& args, std::int64_t line, const Networks& networks,
                                     const Work<T>& work) {
  constexpr int L = lanes_of<T>();
  const std::int64_t column = line * L;
  sorted_line<S, T, Width>(args.x, args.x_stride_n, args.x_stride_c, args.n, column, args.columns, networks.x, work.x,
                           work);
  sorted_line<S, T, Width>(args.y, args.y_stride_n, args.y_stride_c, args.m, column, args.columns, networks.y, work.y,
                           work);
  double sums[L] = {};
  if (args.n == args.m)
    args.power == 1 ? equal_tile<T, Width, 1, 1, 1>(&work.x, &work.y, args.n, sums)
                    : equal_tile<T, Width, 1, 1, 2>(&work.x, &work.y, args.n, sums);
  else
    args.power == 1 ? unequal_tile<T, Width, 1, 1, 1>(&work.x, &work.y, args.n, args.m, 1, sums)
                    : unequal_tile<T, Width, 1, 1, 2>(&work.x, &work.y, args.n, args.m, 1, sums);
  T* out = static_cast<T*>(args.out) + column;
  for (std::int64_t lane = 0; lane < std::min<std::int64_t>(L, args.columns - column); ++lane) {
    const double mean = sums[lane] / static_cast<double>(args.n);
    out[lane] = static_cast<T>(args.power == 1 ? mean : std::sqrt(mean));
  }
}

template <class S, class T>
FAIRKERN_AVX512 void kernel_avx512(const Wasserstein1dArgs& args, std::int64_t line, const Networks& networks,
                                   const Work<T>& work) {
  line_of_columns<S, T, 64>(args, line, networks, work);
}
template <class S, class T>
FAIRKERN_AVX2 void kernel_avx2(const Wasserstein1dArgs& args, std::int64_t line, const Networks& networks,
                               const Work<T>& work) {
  line_of_columns<S, T, 32>(args, line, networks, work);
}
template <class S, class T>
void kernel_baseline(const Wasserstein1dArgs& args, std::int64_t line, const Networks& networks, const Work<T>& work) {
  line_of_columns<S, T, 16>(args, line, networks, work);
}

template <class S>
void run(const Wasserstein1dArgs& args) {
  using T = decltype(widen(S{}));
  constexpr int L = lanes_of<T>();
  const std::int64_t lines = (args.columns + L - 1) / L, longest = std::max(args.n, args.m);
  const bool serial = (args.n + args.m) * args.columns < kSerialElements;
  const std::int64_t threads = serial ? 1 : std::min<std::int64_t>(args.threads, lines);

  const std::unique_ptr<Network> first = network_for(args.n, args.network_limit);
  const std::unique_ptr<Network> second = args.m == args.n ? nullptr : network_for(args.m, args.network_limit);
  const Networks networks{first.get(), args.m == args.n ? first.get() : second.get()};
  const std::size_t x_bytes = static_cast<std::size_t>(args.n) * kLineBytes;
  const std::size_t y_bytes = static_cast<std::size_t>(args.m) * kLineBytes;
  const std::size_t bytes = x_bytes + y_bytes + kLineBytes;
  const AlignedBytes memory = aligned_bytes(bytes * threads);
  std::vector<ColumnKeys<T>> rooms(threads);
  if (longest > args.network_limit)
    for (ColumnKeys<T>& room : rooms) room.reserve(std::min<std::int64_t>(L, args.columns), longest);

  const auto kernel = args.isa == Isa::avx512 ? kernel_avx512<S, T>
                      : args.isa == Isa::avx2 ? kernel_avx2<S, T>
                                              : kernel_baseline<S, T>;
#pragma omp parallel num_threads(threads)
  {
    int thread = 0;
#ifdef _OPENMP
    thread = omp_get_thread_num();
#endif
    char* own = memory.get() + bytes * thread;
    const Work<T> work{reinterpret_cast<T*>(own), reinterpret_cast<T*>(own + x_bytes),
                       reinterpret_cast<Flag<T>*>(own + x_bytes + y_bytes), &rooms[thread]};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t line = 0; line < lines; ++line) kernel(args, line, networks, work);
  }
}

}  // namespace

void wasserstein_1d(Element element, const Wasserstein1dArgs& args) {
  switch (element) {
    case Element::float32: return run<float>(args);
    case Element::float64: return run<double>(args);
    case Element::bfloat16: return run<BFloat16>(args);
    case Element::float16: return run<Float16>(args);
  }
}

}  // namespace fairkern
