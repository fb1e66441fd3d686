// gather, and the plan of a launch walked on the host: both give what picking element by element gives.
#pragma once

#include "given.h"

namespace fuzz {

constexpr int kDims = 12;

struct Picked {
  std::vector<char> source, target, planned, expected;
  std::vector<std::vector<i64>> index;
  i64 dims = 0, size = 1, shape[kDims]{}, strides[kDims]{}, steps[kDims]{}, offset = 0;

  explicit Picked(Given& given) : index(kDims) {
    static const i64 sizes[] = {4, 1, 2, 8, 16};
    size = given.one_of(sizes);
    dims = given.rarely(12) ? given.below(kDims + 1) : given.below(6);
    const bool own = given.rarely(4);
    i64 elements = 1, step = 1, span = 1;
    offset = given.rarely(3) ? given.between(1, 4) : 0;
    for (i64 d = dims - 1; d >= 0; --d) {
      const bool large = step > 1 << 12;  // enough: what follows is of one position
      const i64 most = large ? 1 : d == dims - 1 && given.rarely(16) ? 1500 : 7;
      const i64 length = given.rarely(24) ? 0 : given.between(1, most);
      const i64 positions = length + (large ? 0 : given.below(4));
      strides[d] = (given.rarely(16) ? 0 : step) * size;
      step *= positions + (given.rarely(8) ? 1 : 0);
      span += (positions ? positions - 1 : 0) * strides[d] / size;
      shape[d] = length;
      elements *= length;
    }
    for (i64 d = 0; d < dims; ++d) {
      if (given.below(2) == 0) continue;
      // An index of its own for every position of dimension 0, or one for all of them.
      steps[d] = own && d > 0 && given.below(2) ? shape[d] : 0;
      const i64 rows = steps[d] ? shape[0] : 1;
      Random random{given.seed()};
      i64 last = given.below(2);
      for (i64 i = 0; i < rows * shape[d]; ++i) {
        const i64 most = (strides[d] ? reach(d) : 3);
        index[d].push_back(given.rarely(4) ? random.below(most + 1) : std::min(last, most));
        last = (i + 1) % std::max<i64>(shape[d], 1) == 0 ? 0 : index[d].back() + 1;
      }
      if (index[d].empty()) steps[d] = 0;
    }
    source.resize((offset + span) * size);
    Random random{given.seed()};
    for (char& c : source) c = static_cast<char>(random.next() >> 40);
    target.assign(elements * size, 0x55), planned.assign(elements * size, 0x55), expected.resize(elements * size);
    for (i64 n = 0; n < elements; ++n) {
      i64 rest = n, digits[kDims], from = offset * size;
      for (i64 d = dims - 1; d >= 0; --d) digits[d] = rest % shape[d], rest /= shape[d];
      for (i64 d = 0; d < dims; ++d) {
        const i64 at = index[d].empty() ? digits[d] : index[d][digits[0] * steps[d] + digits[d]];
        from += at * strides[d];
      }
      std::memcpy(expected.data() + n * size, source.data() + from, size);
    }
  }

  // The last position of a dimension that the source has beyond what the shape takes.
  i64 reach(i64 d) const { return shape[d] ? shape[d] - 1 : 0; }

  bool own() const {
    for (i64 step : steps)
      if (step) return true;
    return false;
  }
};

// `columns`: as many as the job has dims in a table of gather, kDims in one of a plan; `unit`: bytes that strides count.
inline void fill_row(i64* row, Picked& job, std::vector<char>& target, i64 columns, i64 unit) {
  row[0] = reinterpret_cast<i64>(job.source.data() + job.offset * job.size), row[1] = reinterpret_cast<i64>(target.data());
  row[2] = job.size, row[3] = job.dims;
  for (i64 d = 0; d < job.dims; ++d) {
    row[4 + d] = job.shape[d], row[4 + columns + d] = job.strides[d] / unit;
    row[4 + 2 * columns + d] = job.index[d].empty() ? 0 : address(job.index[d]);
  }
}

inline void try_gather(Given& given) {
  constexpr i64 kWidth = 4 + 3 * kDims, kPlanWidth = 4 + 4 * kDims;
  const int threads = static_cast<int>(given.between(1, 3));
  const int odd = given.rarely(8) ? static_cast<int>(given.between(1, 7)) : 0;
  const i64 jobs = given.between(1, 3);
  std::vector<Picked> list;
  for (i64 j = 0; j < jobs; ++j) list.emplace_back(given);
  std::vector<i64> table(jobs * kWidth), planned(jobs * kPlanWidth);
  std::vector<i64*> rows{table.data()};
  bool own = false;
  for (i64 j = 0; j < jobs; ++j) {
    Picked& job = list[j];
    fill_row(rows[j], job, job.target, job.dims, job.size);
    rows.push_back(rows[j] + 4 + 3 * job.dims);
    i64* plan = planned.data() + j * kPlanWidth;
    fill_row(plan, job, job.planned, kDims, 1);
    std::copy(job.steps, job.steps + kDims, plan + 4 + 3 * kDims);
    own = own || job.own();
  }
  if (odd) {
    const i64 j = given.below(jobs);
    i64 *row = rows[j], *plan = planned.data() + j * kPlanWidth;
    int how_many_threads = threads;
    bool of_plan = true;
    if (odd == 1) row[2] = plan[2] = given.between(17, 40);
    if (odd == 2) row[2] = plan[2] = 3 * given.below(5);
    if (odd == 3) row[3] = plan[3] = kDims + given.between(1, 100);
    if (odd == 4) row[3] = plan[3] = -given.between(1, 100);
    if (odd == 5) row[3] = plan[3] = 1, row[4] = plan[4] = -given.between(1, 100);
    if (odd == 6) how_many_threads = -static_cast<int>(given.below(3)), of_plan = false;
    if (odd == 7) row[3] = plan[3] = 0, row[given.below(2)] = 0, plan[given.below(2)] = 0;
    must_refuse([&] { fairkern::py_gather(address(table), jobs, how_many_threads); }, "gather takes what is not valid");
    std::vector<fairkern::GatherTask> tasks(jobs);
    if (of_plan)
      must_refuse([&] { fairkern::py_gather_plan(address(planned), jobs, address(tasks)); },
                  "gather_plan takes what is not valid");
    return;
  }
  if (!own) {
    fairkern::py_gather(address(table), jobs, threads);
    for (const Picked& job : list)
      if (job.target != job.expected) wrong("gather");
  }
  std::vector<fairkern::GatherTask> tasks(jobs);
  const i64 blocks = fairkern::py_gather_plan(address(planned), jobs, address(tasks));
  fairkern::py_gather_emulate(address(tasks), jobs, blocks);
  for (const Picked& job : list)
    if (job.planned != job.expected) wrong("the plan of a gather");
  if (blocks)
    fairkern::py_gather_offsets(address(tasks), jobs, given.below(blocks), given.below(256), given.below(8));
}

}  // namespace fuzz
