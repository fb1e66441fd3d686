// taylor: exact sums of whole numbers, on every instruction set.
#pragma once

#include "given.h"

namespace fuzz {

template <class S, class T>
void try_taylor_of(Given& given, int element) {
  i64 sizes[4];  // samples, before, channels, after
  for (i64& size : sizes) size = given.between(1, 5);
  if (given.below(2)) sizes[1] = 1;
  if (given.below(2)) sizes[3] = 1;
  if (given.rarely(32)) sizes[2] = given.between(1, 600);
  if (given.rarely(128)) sizes[2] = 1 + sizes[2] % 3, sizes[given.below(2) * 3] = given.between(1, 40000);
  const i64 samples = sizes[0], before = sizes[1], channels = sizes[2], after = sizes[3];
  const i64 count = samples * before * channels * after;
  const int threads = static_cast<int>(given.between(1, 3)), odd = given.rarely(8) ? static_cast<int>(given.between(1, 8)) : 0;
  const bool accumulate = given.below(2);
  static const double scales[] = {1.0, 2.0, 0.5, -3.0};
  const double scale = given.one_of(scales);
  const Values values = given.rarely(3) ? Values::special : Values::small_whole;
  Random random{given.seed()};
  const std::vector<S> act = filled<S>(count, random, values), grad = filled<S>(count, random, values);
  std::vector<std::vector<T>> there;
  for (int i = 0; i < 3; ++i) there.push_back(filled<T>(channels, random, Values::small_whole));
  std::vector<std::vector<T>> sums = there;
  const auto call = [&](int isa) {
    fairkern::py_taylor(odd == 1 ? 4 : odd == 2 ? -1 : element, odd == 3 ? 0 : address(act), address(grad), samples,
                        odd == 4 ? given.one_of(kBadCounts) : before, odd == 5 ? given.one_of(kBadCounts) : channels,
                        after, address(sums[0]), address(sums[1]), odd == 6 ? 0 : address(sums[2]),
                        sizeof(T) == 8, accumulate, scale, odd == 7 ? 0 : threads, odd == 8 ? 4 : isa);
  };
  if (odd) return must_refuse([&] { call(0); }, "taylor takes what is not valid");
  std::vector<std::vector<T>> first;
  for (int isa = 1; isa <= static_cast<int>(fairkern::best_isa()); ++isa) {
    sums = there;
    call(isa);
    if (isa == 1) first = sums;
    for (int i = 0; i < 3; ++i)
      for (i64 c = 0; c < channels; ++c)
        if (!same_bits(sums[i][c], first[i][c])) wrong("taylor differs between instruction sets");
  }
  if (values == Values::special) return;
  for (i64 c = 0; c < channels; ++c) {
    double products = 0, magnitudes = 0, activations = 0;
    for (i64 s = 0; s < samples; ++s) {
      double own = 0;
      for (i64 b = 0; b < before; ++b)
        for (i64 a = 0; a < after; ++a) {
          const i64 at = ((s * before + b) * channels + c) * after + a;
          own += static_cast<double>(fairkern::widen(act[at])) * static_cast<double>(fairkern::widen(grad[at]));
          activations += static_cast<double>(fairkern::widen(act[at]));
        }
      products += own, magnitudes += std::fabs(own);
    }
    const double expected[] = {scale * products, scale * magnitudes, activations};
    for (int i = 0; i < 3; ++i)
      if (first[i][c] != expected[i] + (accumulate ? there[i][c] : 0)) wrong("taylor");
  }
}

inline void try_taylor(Given& given) {
  const int element = static_cast<int>(given.below(4));
  const bool wide = given.below(2);
  fairkern::for_element(static_cast<fairkern::Element>(element), [&](auto zero) {
    using S = decltype(zero);
    wide ? try_taylor_of<S, double>(given, element) : try_taylor_of<S, float>(given, element);
  });
}

}  // namespace fuzz
