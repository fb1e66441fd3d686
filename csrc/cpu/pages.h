// Large results in new memory: the first write to a page waits for the system to find and clear it, which for pages of
// four kilobytes takes several times as long as the write.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fairkern {

constexpr std::uintptr_t kLargePage = 1 << 21;

// Asks for large pages wherever one lies within the range whole. It is advice: a system that has none, or none to
// spare, gives ordinary ones, and what is in memory stays as it is.
inline void large_pages(std::uintptr_t begin, std::uintptr_t bytes) {
#ifdef __linux__
  const std::uintptr_t first = (begin + kLargePage - 1) & ~(kLargePage - 1), last = (begin + bytes) & ~(kLargePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

}  // namespace fairkern
