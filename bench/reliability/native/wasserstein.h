// class_wasserstein and wasserstein_1d against the integral of |F⁻¹ − G⁻¹|, on every instruction set.
#pragma once

#include <algorithm>

#include "given.h"

namespace fuzz {

// Both of n·m steps, whole numbers of which go into each sample.
inline double distance(std::vector<double> x, std::vector<double> y, int power) {
  std::sort(x.begin(), x.end()), std::sort(y.begin(), y.end());
  const i64 n = static_cast<i64>(x.size()), m = static_cast<i64>(y.size());
  double sum = 0;
  for (i64 at = 0; at < n * m;) {
    const i64 next = std::min((at / m + 1) * m, (at / n + 1) * n);
    const double gap = std::fabs(x[at / m] - y[at / n]);
    sum += static_cast<double>(next - at) * (power == 1 ? gap : gap * gap);
    at = next;
  }
  sum /= static_cast<double>(n * m);
  return power == 1 ? sum : std::sqrt(sum);
}

inline i64 some_limit(Given& given) {
  static const i64 limits[] = {0, 1, 2, 5, 16, 64, 1 << 20};
  return given.one_of(limits);
}

inline constexpr i64 kBadLimits[] = {-1, (1 << 20) + 1, INT64_MIN};

template <class S>
void try_pairs_of_columns(Given& given, int element) {
  using T = fairkern::Wide<S>;
  const i64 n = given.between(1, given.rarely(16) ? 300 : 12), columns = given.between(1, given.rarely(8) ? 40 : 6);
  const i64 m = given.below(2) ? n : given.between(1, given.rarely(16) ? 300 : 12);
  const Layout<2> x(given, {n, columns}), y(given, {m, columns});
  const int power = static_cast<int>(given.between(1, 2)), threads = static_cast<int>(given.between(1, 3));
  const int odd = given.rarely(8) ? static_cast<int>(given.between(1, 8)) : 0;
  const i64 limit = some_limit(given);
  const Values values = given.rarely(3) ? Values::special : Values::small_whole;
  Random random{given.seed()};
  const std::vector<S> xs = filled<S>(x.elements, random, values), ys = filled<S>(y.elements, random, values);
  std::vector<T> out(columns), first;
  const auto call = [&](int isa) {
    fairkern::py_wasserstein_1d(odd == 1 ? 4 : element, odd == 2 ? 0 : address(xs, x.offset), x.strides[0],
                                x.strides[1], odd == 3 ? given.one_of(kBadCounts) : n, address(ys, y.offset),
                                y.strides[0], y.strides[1], odd == 4 ? given.one_of(kBadCounts) : m, columns,
                                odd == 5 ? 3 : power, odd == 6 ? given.one_of(kBadLimits) : limit,
                                odd == 7 ? 0 : address(out), odd == 8 ? 0 : threads, isa);
  };
  if (odd) return must_refuse([&] { call(0); }, "wasserstein_1d takes what is not valid");
  for (int isa = 1; isa <= static_cast<int>(fairkern::best_isa()); ++isa) {
    call(isa);
    if (isa == 1) first = out;
    for (i64 c = 0; c < columns; ++c)
      if (!same_bits(out[c], first[c])) wrong("wasserstein_1d differs between instruction sets");
  }
  if (values == Values::special) return;
  for (i64 c = 0; c < columns; ++c) {
    std::vector<double> one(n), other(m);
    for (i64 i = 0; i < n; ++i) one[i] = fairkern::widen(xs[x.offset + i * x.strides[0] + c * x.strides[1]]);
    for (i64 i = 0; i < m; ++i) other[i] = fairkern::widen(ys[y.offset + i * y.strides[0] + c * y.strides[1]]);
    if (!near(first[c], distance(one, other, power), sizeof(T) == 8)) wrong("wasserstein_1d");
  }
}

// Rows for some positions, of units in sets, against the same with zeros at all others.
template <class S>
void try_placed(Given& given, int element) {
  using T = fairkern::Wide<S>;
  const i64 classes = given.between(2, 4), sets = given.between(1, 3), per_set = given.between(1, 4);
  const i64 positions = given.between(1, 8), projections = given.between(1, given.rarely(8) ? 40 : 4);
  std::vector<i64> offsets{0};
  for (i64 k = 0; k < classes; ++k) offsets.push_back(offsets.back() + given.between(1, 8));
  const i64 samples = offsets.back(), units = sets * per_set, limit = some_limit(given);
  const int reduce = static_cast<int>(given.below(3)), threads = static_cast<int>(given.between(1, 3));
  Random random{given.seed()};
  const std::vector<T> directions = filled<T>(positions * projections, random, Values::small_whole);
  std::vector<i64> rows(samples), begins{0}, places;
  for (i64& row : rows) row = random.below(samples);
  for (i64 bag = 0; bag < sets * samples; ++bag) {
    for (i64 p = 0; p < positions; ++p)
      if (random.below(2)) places.push_back(p);
    begins.push_back(static_cast<i64>(places.size()));
  }
  if (places.empty()) return;
  const std::vector<S> data = filled<S>(static_cast<i64>(places.size()) * per_set, random, Values::small_whole);
  std::vector<S> dense(samples * units * positions);
  for (i64 e = 0; e < sets; ++e)
    for (i64 n = 0; n < samples; ++n)
      for (i64 r = begins[e * samples + n]; r < begins[e * samples + n + 1]; ++r)
        for (i64 c = 0; c < per_set; ++c)
          dense[(n * units + e * per_set + c) * positions + places[r]] = data[r * per_set + c];
  const i64 pairs = classes * (classes - 1) / 2;
  std::vector<T> out((reduce == 2 ? pairs : 1) * units), expected(out.size());
  const auto call = [&](const std::vector<S>& x, std::vector<T>& into, bool placed, int isa) {
    fairkern::py_class_wasserstein(element, address(x), placed ? per_set : units * positions, placed ? 1 : positions,
                                   placed ? 0 : 1, units, projections, address(rows), address(offsets), classes, reduce,
                                   address(into), threads, isa, address(directions), positions, limit,
                                   placed ? address(begins) : 0, placed ? address(places) : 0, placed ? per_set : 1);
  };
  for (int isa = 1; isa <= static_cast<int>(fairkern::best_isa()); ++isa) {
    call(dense, expected, false, isa);
    call(data, out, true, isa);
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!same_bits(out[i], expected[i])) wrong("class_wasserstein of rows differs from that with zeros");
  }
}

template <class S>
void try_classes(Given& given, int element) {
  using T = fairkern::Wide<S>;
  const i64 classes = given.between(2, given.rarely(8) ? 9 : 4), units = given.between(1, given.rarely(16) ? 40 : 3);
  const bool projects = given.below(2);
  const i64 projections = given.between(1, given.rarely(8) ? 40 : 4),
            positions = projects ? given.between(1, 8) : projections;
  std::vector<i64> offsets{0};
  const bool alike = given.below(2);
  const i64 usual = given.between(1, given.rarely(16) ? 150 : 10);
  for (i64 k = 0; k < classes; ++k) offsets.push_back(offsets.back() + (alike ? usual : given.between(1, 8)));
  const i64 samples = offsets.back(), stored = samples + given.below(3);
  const Layout<3> x(given, {stored, units, positions});
  const int reduce = static_cast<int>(given.below(3)), threads = static_cast<int>(given.between(1, 3));
  const int odd = given.rarely(8) ? static_cast<int>(given.between(1, 11)) : 0;
  const i64 limit = some_limit(given), pairs = classes * (classes - 1) / 2;
  const Values values = given.rarely(3) ? Values::special : Values::small_whole;
  Random random{given.seed()};
  const std::vector<S> data = filled<S>(x.elements, random, values);
  const std::vector<T> directions = filled<T>(projects ? positions * projections : 0, random, values);
  std::vector<i64> rows(samples);
  for (i64& row : rows) row = random.below(stored);
  if (odd == 10) offsets[given.between(1, classes)] = offsets[given.below(classes)];
  bool empty = false;
  for (i64 k = 0; k < classes; ++k) empty = empty || offsets[k + 1] <= offsets[k];
  if (odd == 10 && !empty) return;
  std::vector<T> out((reduce == 2 ? pairs : 1) * units), first;
  const auto call = [&](int isa) {
    fairkern::py_class_wasserstein(
        odd == 1 ? 4 : element, odd == 2 ? 0 : address(data, x.offset), x.strides[0], x.strides[1], x.strides[2],
        odd == 3 ? given.one_of(kBadCounts) : units, projections, odd == 4 ? 0 : address(rows), address(offsets),
        odd == 5 ? 1 : classes, odd == 6 ? 3 : reduce, odd == 7 ? 0 : address(out), odd == 8 ? 0 : threads, isa,
        projects ? address(directions) : 0, positions, odd == 9 ? given.one_of(kBadLimits) : limit,
        odd == 11 ? address(offsets) : 0, 0, 1);
  };
  if (odd) return must_refuse([&] { call(0); }, "class_wasserstein takes what is not valid");
  for (int isa = 1; isa <= static_cast<int>(fairkern::best_isa()); ++isa) {
    call(isa);
    if (isa == 1) first = out;
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!same_bits(out[i], first[i])) wrong("class_wasserstein differs between instruction sets");
  }
  if (values == Values::special) return;
  for (i64 unit = 0; unit < units; ++unit) {
    std::vector<std::vector<std::vector<double>>> columns(classes);  // [class][projection][sample]
    for (i64 k = 0; k < classes; ++k) {
      columns[k].resize(projections);
      for (i64 p = 0; p < projections; ++p)
        for (i64 i = offsets[k]; i < offsets[k + 1]; ++i) {
          const S* from = data.data() + x.offset + rows[i] * x.strides[0] + unit * x.strides[1];
          double value = 0;
          if (projects)
            for (i64 d = 0; d < positions; ++d)
              value += static_cast<double>(fairkern::widen(from[d * x.strides[2]])) * directions[d * projections + p];
          else
            value = fairkern::widen(from[p * x.strides[2]]);
          columns[k][p].push_back(value);
        }
    }
    double largest = 0, sum = 0;
    i64 pair = 0;
    for (i64 j = 0; j < classes; ++j)
      for (i64 k = j + 1; k < classes; ++k, ++pair) {
        double mean = 0;
        for (i64 p = 0; p < projections; ++p) mean += distance(columns[j][p], columns[k][p], 1) / projections;
        largest = std::max(largest, mean), sum += mean;
        if (reduce == 2 && !near(first[pair * units + unit], mean, sizeof(T) == 8)) wrong("class_wasserstein, pairs");
      }
    if (reduce == 0 && !near(first[unit], largest, sizeof(T) == 8)) wrong("class_wasserstein, maximum");
    if (reduce == 1 && !near(first[unit], sum / pairs, sizeof(T) == 8)) wrong("class_wasserstein, mean");
  }
}

inline void try_wasserstein_1d(Given& given) {
  const int element = static_cast<int>(given.below(4));
  fairkern::for_element(static_cast<fairkern::Element>(element),
                        [&](auto zero) { try_pairs_of_columns<decltype(zero)>(given, element); });
}

inline void try_class_wasserstein(Given& given) {
  const int element = static_cast<int>(given.below(4));
  fairkern::for_element(static_cast<fairkern::Element>(element),
                        [&](auto zero) {
                          given.below(4) ? try_classes<decltype(zero)>(given, element)
                                         : try_placed<decltype(zero)>(given, element);
                        });
}

}  // namespace fuzz
