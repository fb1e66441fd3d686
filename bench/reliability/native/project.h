// project: exact products of whole numbers, on every instruction set.
#pragma once

#include "given.h"

namespace fuzz {

template <class S>
void try_project_of(Given& given, int element) {
  using T = fairkern::Wide<S>;
  const i64 stored = given.between(1, 5), channels = given.between(1, given.rarely(16) ? 80 : 6);
  const i64 positions = given.between(1, given.rarely(16) ? 150 : 6), projections = given.between(1, given.rarely(16) ? 140 : 8);
  const Layout<3> x(given, {stored, channels, positions});
  const bool picks = given.below(2);
  const i64 samples = picks ? given.between(1, 7) : stored;
  const int threads = static_cast<int>(given.between(1, 3)), odd = given.rarely(8) ? static_cast<int>(given.between(1, 7)) : 0;
  const Values values = given.rarely(3) ? Values::special : Values::small_whole;
  Random random{given.seed()};
  const std::vector<S> data = filled<S>(x.elements, random, values);
  const std::vector<T> directions = filled<T>(positions * projections, random, values);
  std::vector<i64> rows(samples);
  for (i64 i = 0; i < samples; ++i) rows[i] = picks ? random.below(stored) : i;
  std::vector<T> out(samples * channels * projections), first;
  const auto call = [&](int isa) {
    fairkern::py_project(odd == 1 ? 4 : element, odd == 2 ? 0 : address(data, x.offset), x.strides[0], x.strides[1],
                         x.strides[2], picks ? address(rows) : 0, odd == 3 ? given.one_of(kBadCounts) : samples,
                         channels, odd == 4 ? given.one_of(kBadCounts) : positions, odd == 5 ? 0 : address(directions),
                         projections, address(out), odd == 6 ? -1 : threads, odd == 7 ? -1 : isa);
  };
  if (odd) return must_refuse([&] { call(0); }, "project takes what is not valid");
  for (int isa = 1; isa <= static_cast<int>(fairkern::best_isa()); ++isa) {
    std::fill(out.begin(), out.end(), T{77});
    call(isa);
    if (isa == 1) first = out;
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!same_bits(out[i], first[i])) wrong("project differs between instruction sets");
  }
  if (values == Values::special) return;
  for (i64 s = 0; s < samples; ++s)
    for (i64 c = 0; c < channels; ++c)
      for (i64 p = 0; p < projections; ++p) {
        double sum = 0;
        for (i64 d = 0; d < positions; ++d)
          sum += static_cast<double>(fairkern::widen(
                     data[x.offset + rows[s] * x.strides[0] + c * x.strides[1] + d * x.strides[2]])) *
                 static_cast<double>(directions[d * projections + p]);
        if (first[(s * channels + c) * projections + p] != sum) wrong("project");
      }
}

inline void try_project(Given& given) {
  const int element = static_cast<int>(given.below(4));
  fairkern::for_element(static_cast<fairkern::Element>(element),
                        [&](auto zero) { try_project_of<decltype(zero)>(given, element); });
}

}  // namespace fuzz
