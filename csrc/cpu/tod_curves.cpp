// tod_curves: per group, the share of the k units with the lowest u that are among the k with the highest r.
//
// A unit is in both prefixes of length k iff the worse of its two ranks is below k, so the overlaps are a histogram of
// worse ranks and its running sum. Groups are independent: threads take one at a time.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/radix_sort.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialUnits = 1 << 11;  // below this, starting threads costs more than sorting

struct Ranked {
  RadixKey<double> key;
  std::int64_t unit;
  bool operator<(const Ranked& other) const { return key != other.key ? key < other.key : unit < other.unit; }
};

// worse[unit] becomes the larger of what it is and the unit's rank; ties go by position.
void raise_to_rank(const double* values, std::int64_t count, bool descending, Ranked* room, std::int64_t* worse) {
  for (std::int64_t i = 0; i < count; ++i) {
    const RadixKey<double> key = to_key(values[i] + 0.0);  // -0 and 0 are a tie
    room[i] = {descending ? ~key : key, i};
  }
  std::sort(room, room + count);
  for (std::int64_t rank = 0; rank < count; ++rank) {
    std::int64_t& here = worse[room[rank].unit];
    here = std::max(here, rank);
  }
}

void curve(const double* u, const double* r, std::int64_t count, Ranked* room, std::int64_t* worse,
           std::int64_t* overlaps, double* out) {
  std::fill(worse, worse + count, 0);
  std::fill(overlaps, overlaps + count, 0);
  raise_to_rank(u, count, false, room, worse);
  raise_to_rank(r, count, true, room, worse);
  for (std::int64_t i = 0; i < count; ++i) ++overlaps[worse[i]];
  std::int64_t both = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    both += overlaps[k];
    out[k] = static_cast<double>(both) / static_cast<double>(k + 1);
  }
}

}  // namespace

void tod_curves(const TodCurvesArgs& args) {
  std::vector<std::int64_t> begin(args.groups + 1, 0);
  for (std::int64_t g = 0; g < args.groups; ++g) {
    require(args.sizes[g] >= 1, "group ", g, " has ", args.sizes[g], " units; at least 1 is needed");
    begin[g + 1] = begin[g] + args.sizes[g];
  }
  const std::int64_t total = begin.back();
  std::vector<Ranked> room(total);
  std::vector<std::int64_t> worse(total), overlaps(total);
#pragma omp parallel for schedule(dynamic, 1) num_threads(args.threads) if (total >= kSerialUnits && args.groups > 1)
  for (std::int64_t g = 0; g < args.groups; ++g) {
    const std::int64_t at = begin[g];
    curve(args.u + at, args.r + at, args.sizes[g], room.data() + at, worse.data() + at, overlaps.data() + at,
          args.out + at);
  }
}

}  // namespace fairkern
