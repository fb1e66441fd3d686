// The entry points of the CPU kernels: pointers, sizes and strides in, nothing out.
#pragma once

#include <cstdint>

#include "cpu/floats.h"
#include "cpu/isa.h"

namespace fairkern {

constexpr std::int64_t kLongestNetwork = 1 << 20;  // samples; the comparators of such a network take a gigabyte

enum class Reduce : int { maximum = 0, mean = 1, pairs = 2 };

struct ClassWassersteinArgs {
  const void* x;                  // element (row, unit, projection) at row·stride_n + unit·stride_c + projection·stride_p
  std::int64_t stride_n, stride_c, stride_p;  // in elements
  std::int64_t units, projections;
  const void* directions;         // [positions, projections], type of `out`: the third index of x is then a position,
  std::int64_t positions;         // and its projections are compared; null: x is compared as it is
  const std::int64_t* rows;       // [samples]: row numbers, class after class
  const std::int64_t* offsets;    // [classes + 1]: where each class begins in `rows`
  std::int64_t classes;
  Reduce reduce;
  std::int64_t network_limit;     // samples per class up to which a network sorts, above it each column by itself
  void* out;                      // [units], or [pairs, units]; float, or double for float64
  int threads;
  Isa isa;
  const std::int64_t* begins;     // null, or: x has rows for some positions of each sample, and all others are zero.
  const std::int64_t* places;     // Units come in sets of `per_set` columns of x; those of set e and sample n of N have
  std::int64_t per_set;           // rows begins[e·N + n] … begins[e·N + n + 1], row r being that of position places[r]
};
void class_wasserstein(Element element, const ClassWassersteinArgs& args);

struct Wasserstein1dArgs {
  const void* x;  // sample i of column c at i·x_stride_n + c·x_stride_c
  std::int64_t x_stride_n, x_stride_c, n;
  const void* y;
  std::int64_t y_stride_n, y_stride_c, m;
  std::int64_t columns;
  int power;                   // 1 or 2
  std::int64_t network_limit;  // samples up to which a network sorts, above it each column by itself
  void* out;                   // [columns]; float, or double for float64
  int threads;
  Isa isa;
};
void wasserstein_1d(Element element, const Wasserstein1dArgs& args);

struct ProjectArgs {
  const void* x;  // position d of channel c of sample n at n·stride_n + c·stride_c + d·stride_d
  std::int64_t stride_n, stride_c, stride_d;
  const std::int64_t* rows;  // [samples]: which samples of x; null: 0 … samples
  std::int64_t samples, channels, positions;
  const void* directions;  // [positions, projections], contiguous, type of `out`
  std::int64_t projections;
  void* out;  // [samples, channels, projections]; float, or double for float64
  int threads;
  Isa isa;
};
void project(Element element, const ProjectArgs& args);

struct GramArgs {
  const void* x;  // channel c of vector (o, i) at c·stride_c + o·stride_outer + i·stride_inner
  std::int64_t stride_c, stride_outer, stride_inner;
  std::int64_t channels, outer, inner;
  std::int64_t rows;  // of a block of the result, a multiple of 16
  double* out;        // blocks of rows of the upper triangle, each from its diagonal on, one after the other; added to
  const void* shift;  // [channels] in the type of the products, taken off every vector; or null
  double* total;      // [channels], Σ a is added to it; or null
  double least, most;  // what the largest Σ a² of a channel has to lie in, [least, most), for vectors to be added
  int threads;
  Isa isa;
};
std::int64_t gram(Element element, const GramArgs& args);  // returns how many vectors were added

struct TaylorArgs {
  const void *act, *grad;  // [samples, before, channels, after], contiguous
  std::int64_t samples, before, channels, after;
  void *signed_sum, *per_sample, *activation;  // [channels]; float or double
  bool wide;        // the sums are double
  bool accumulate;  // add to what is there
  double scale;     // of the first two sums
  int threads;
  Isa isa;
};
void taylor(Element element, const TaylorArgs& args);

struct TodCurvesArgs {
  const double *u, *r;        // [total]: the groups' scores, group after group; no NaN
  const std::int64_t* sizes;  // [groups]
  std::int64_t groups;
  double* out;  // [total]
  int threads;
};
void tod_curves(const TodCurvesArgs& args);

// One place where units are read, each at one position; matrices are symmetric, of which the lower half is there.
struct EliminateView {
  const void *inverse, *output;  // [positions, positions], float or double
  std::int64_t inverse_stride, output_stride, positions;
  const std::int64_t* rows;     // [units]
  const double* noise;          // [positions]: what a cost may be off by, of the output's diagonal
  double* alive;                // [positions]: 0 where a position went, else 1
  double *inverse_diagonal, *output_diagonal;  // [units], as they are now
  double *half, *mixed;         // [steps, positions]: inverse −= halfᵀ half, output += halfᵀ mixed + mixedᵀ half
};

struct EliminateArgs {
  const EliminateView* views;
  std::int64_t count, units, steps;
  std::int64_t* chosen;  // [steps]
  double* added;         // [steps]
  int threads;
  Isa isa;
};
void eliminate_steps(Element element, const EliminateArgs& args);

struct EliminateSmallView {
  double *covariance, *output;  // [positions, positions], contiguous; lower halves, which are lost
  std::int64_t positions;
  const std::int64_t* rows;  // [units]
};

struct EliminateSmallArgs {
  const EliminateSmallView* views;
  std::int64_t count, units, most;
  double rounding;       // of what a unit gives: what its cost may be off by
  std::int64_t* chosen;  // [units]: `most` as they went, then the others by index
  double* added;         // [units]: what each added, or would add
  double* off;           // [units − most]: how far off the latter may be
  Isa isa;
};
// The view whose covariance is not definite, or −1.
std::int64_t eliminate_small(const EliminateSmallArgs& args);

constexpr int kGatherDims = 12;

struct GatherJob {
  const char* source;
  char* target;  // contiguous
  std::int64_t element_size;
  std::int64_t dims;
  std::int64_t shape[kGatherDims];         // of the result
  std::int64_t strides[kGatherDims];       // of the source, in bytes
  const std::int64_t* index[kGatherDims];  // [shape[d]], or null: every position
};
void gather(const GatherJob& job, int threads);

}  // namespace fairkern
