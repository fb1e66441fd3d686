// wasserstein_1d: per column, the distance between two sets of samples. A line of columns is sorted and compared at a
// time; the pair of sets is the smallest tile of class_wasserstein.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 13;  // below this, starting threads costs more than sorting

template <class S>
void run(const Wasserstein1dArgs& args) {
  using T = Wide<S>;
  constexpr int L = lanes_of<T>();
  const std::int64_t lines = (args.columns + L - 1) / L, longest = std::max(args.n, args.m);
  const bool serial = (args.n + args.m) * args.columns < kSerialElements;
  const std::int64_t threads = serial ? 1 : std::min<std::int64_t>(args.threads, lines);

  const std::unique_ptr<Network> first = network_for(args.n, args.network_limit);
  const std::unique_ptr<Network> second = args.m == args.n ? nullptr : network_for(args.m, args.network_limit);
  const PairNetworks networks{first.get(), args.m == args.n ? first.get() : second.get()};
  const std::size_t x_bytes = static_cast<std::size_t>(args.n) * kLineBytes;
  const std::size_t y_bytes = static_cast<std::size_t>(args.m) * kLineBytes;
  const std::size_t bytes = x_bytes + y_bytes + kLineBytes;
  const AlignedBytes memory = aligned_bytes(bytes * threads);
  std::vector<ColumnKeys<T>> rooms(threads);
  if (longest > args.network_limit)
    for (ColumnKeys<T>& room : rooms) room.reserve(std::min<std::int64_t>(L, args.columns), longest);

  const auto line_of_columns = inner_of<S>(args.isa).wasserstein_1d;
#pragma omp parallel num_threads(threads)
  {
    char* own = memory.get() + bytes * thread_number();
    const PairWork<T> work{reinterpret_cast<T*>(own), reinterpret_cast<T*>(own + x_bytes),
                           reinterpret_cast<Flag<T>*>(own + x_bytes + y_bytes), &rooms[thread_number()]};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t line = 0; line < lines; ++line) line_of_columns(args, line, networks, work);
  }
}

}  // namespace

void wasserstein_1d(Element element, const Wasserstein1dArgs& args) {
  for_element(element, [&](auto zero) { run<decltype(zero)>(args); });
}

}  // namespace fairkern
