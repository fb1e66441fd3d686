// tod_curves against the definition: overlaps of prefixes, counted.
#pragma once

#include <algorithm>
#include <numeric>

#include "given.h"

namespace fuzz {

inline void try_tod_curves(Given& given) {
  const i64 groups = given.between(1, 6);
  const int threads = static_cast<int>(given.between(1, 3)), odd = given.rarely(8) ? static_cast<int>(given.between(1, 4)) : 0;
  std::vector<i64> sizes(groups);
  for (i64& size : sizes) size = given.rarely(64) ? given.between(1, 900) : given.between(1, 12);
  const i64 total = std::accumulate(sizes.begin(), sizes.end(), i64{0});
  const Values values = given.below(2) ? Values::any_finite : Values::small_whole;  // the latter: many ties
  Random random{given.seed()};
  std::vector<double> u = filled<double>(total, random, values), r = filled<double>(total, random, values), out(total);
  for (std::vector<double>* scores : {&u, &r})
    for (double& score : *scores)
      if (score == 0 && random.below(2)) score = -score;
      else if (random.below(40) == 0) score = random.below(2) ? INFINITY : -INFINITY;
  if (odd) {
    if (odd == 1) sizes[given.below(groups)] = given.one_of(kBadCounts);
    must_refuse(
        [&] {
          fairkern::py_tod_curves(odd == 2 ? 0 : address(u), address(r), address(sizes),
                                  odd == 3 ? given.one_of(kBadCounts) : groups, address(out),
                                  odd == 4 ? -static_cast<int>(given.below(3)) : threads);
        },
        "tod_curves takes what is not valid");
    return;
  }
  fairkern::py_tod_curves(address(u), address(r), address(sizes), groups, address(out), threads);
  i64 begin = 0;
  for (const i64 size : sizes) {
    std::vector<i64> low(size), high(size), worse(size);
    std::iota(low.begin(), low.end(), 0), std::iota(high.begin(), high.end(), 0);
    std::stable_sort(low.begin(), low.end(), [&](i64 a, i64 b) { return u[begin + a] < u[begin + b]; });
    std::stable_sort(high.begin(), high.end(), [&](i64 a, i64 b) { return r[begin + a] > r[begin + b]; });
    for (i64 rank = 0; rank < size; ++rank) {
      worse[low[rank]] = std::max(worse[low[rank]], rank);
      worse[high[rank]] = std::max(worse[high[rank]], rank);
    }
    std::sort(worse.begin(), worse.end());
    for (i64 k = 1; k <= size; ++k) {
      const i64 both = std::lower_bound(worse.begin(), worse.end(), k) - worse.begin();
      if (out[begin + k - 1] != static_cast<double>(both) / static_cast<double>(k)) wrong("tod_curves");
    }
    begin += size;
  }
}

}  // namespace fuzz
