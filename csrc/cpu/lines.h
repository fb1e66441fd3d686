// Samples of many columns as cache lines, [vector][sample][lane]: a lane holds a column, and no lane looks at another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fairkern {

// One cache line of lanes, whatever the instruction set: sums keep the same order on all of them.
constexpr int kLineBytes = 64;

template <class T>
using Flag = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
constexpr int lanes_of() {
  return kLineBytes / static_cast<int>(sizeof(T));
}

// Which columns are brought into the lanes of how many vectors: lane l of vector v of sample n is
// corner[n·stride_n + v·stride_v + l·stride_l], and the first filled(v) lanes are columns.
template <class S>
struct Columns {
  const S* corner;
  std::int64_t stride_n, stride_v, stride_l;
  std::int64_t vectors;
  std::int64_t first;  // columns in vector 0 and after it
  std::int64_t step;   // fewer in every vector after that

  std::int64_t filled(std::int64_t vector, int lanes) const {
    return std::min<std::int64_t>(lanes, first - vector * step);
  }
};

struct FreeAligned {
  void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t(kLineBytes)); }
};
using AlignedBytes = std::unique_ptr<char[], FreeAligned>;

inline AlignedBytes aligned_bytes(std::size_t bytes) {
  return AlignedBytes(static_cast<char*>(::operator new[](bytes, std::align_val_t(kLineBytes))));
}

inline std::size_t whole_lines(std::size_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace fairkern
