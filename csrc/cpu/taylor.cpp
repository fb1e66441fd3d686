// taylor: Σ act · grad and Σ act per channel, from one read of both.
//
// The tensors are [samples, before, channels, after], contiguous. Either a channel's positions are contiguous
// (after > 1: a dot product per channel), or neighbouring channels are (after = 1: lanes are channels). Work is cut
// into pieces whose bounds depend on the shape alone, and the pieces' sums are added in a fixed order, and then to what
// was there before, if asked.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/inner.h"
#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kSerialElements = 1 << 15;  // below this, starting threads costs more than reading

template <class T>
void write(const TaylorArgs& args, const std::vector<double>& totals) {
  T* outputs[] = {static_cast<T*>(args.signed_sum), static_cast<T*>(args.per_sample), static_cast<T*>(args.activation)};
  const double scales[] = {args.scale, args.scale, 1.0};
  for (int which = 0; which < 3; ++which)
    for (std::int64_t c = 0; c < args.channels; ++c) {
      const double before = args.accumulate ? static_cast<double>(outputs[which][c]) : 0.0;
      outputs[which][c] = static_cast<T>(before + scales[which] * totals[which * args.channels + c]);
    }
}

// Adds the parts in order: of a sample first, whose magnitude counts, then of all samples.
void add_up(const TaylorArgs& args, const Cut& cut, const Partials& partials) {
  const std::int64_t channels = args.channels, together = cut.of_samples ? 1 : cut.pieces;
  std::vector<double> totals(3 * channels), sample(channels);
  for (std::int64_t begin = 0; begin < cut.parts; begin += together) {
    std::fill(sample.begin(), sample.end(), 0.0);
    for (std::int64_t part = begin; part < begin + together; ++part)
      for (std::int64_t c = 0; c < channels; ++c) {
        sample[c] += partials.products[part * channels + c];
        totals[2 * channels + c] += partials.activations[part * channels + c];
      }
    for (std::int64_t c = 0; c < channels; ++c) {
      totals[c] += sample[c];
      totals[channels + c] += cut.of_samples ? partials.magnitudes[begin * channels + c] : std::fabs(sample[c]);
    }
  }
  args.wide ? write<double>(args, totals) : write<float>(args, totals);
}

template <class S>
void run(const TaylorArgs& args) {
  const Cut cut(args);
  Partials partials;
  partials.products.resize(cut.parts * args.channels);
  partials.activations.resize(cut.parts * args.channels);
  if (cut.of_samples) partials.magnitudes.resize(cut.parts * args.channels);

  const auto piece = inner_of<S>(args.isa).taylor;
  const bool serial = args.samples * args.before * args.channels * args.after < kSerialElements;
#pragma omp parallel for schedule(static) num_threads(args.threads) if (!serial)
  for (std::int64_t task = 0; task < cut.tasks; ++task) piece(args, cut, task, partials);
  add_up(args, cut, partials);
}

}  // namespace

void taylor(Element element, const TaylorArgs& args) {
  for_element(element, [&](auto zero) { run<decltype(zero)>(args); });
}

}  // namespace fairkern
