// taylor: Σ act · grad and Σ act per channel, from one read of both.
//
// The tensors are [samples, before, channels, after], contiguous. Either a channel's positions are contiguous
// (after > 1: a dot product per channel), or neighbouring channels are (after = 1: lanes are channels). Work is cut
// into pieces whose bounds depend on the shape alone, and the pieces' sums are added in a fixed order, and then to what
// was there before, if asked.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kDotPiece = 1 << 15;      // positions of one channel per piece
constexpr std::int64_t kLanePiece = 1 << 9;      // rows of channels per piece
constexpr std::int64_t kLaneBlock = 256;         // channels that are summed together
constexpr std::int64_t kSerialElements = 1 << 15;  // below this, starting threads costs more than reading
constexpr int kLines = 2;                        // cache lines in flight per dot product

// Σ a·g and Σ a over a contiguous stretch, added to the two sums.
template <class S, class T, int Width>
FAIRKERN_INLINE void dot(const S* act, const S* grad, std::int64_t length, double* product, double* activation) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int W = Width / static_cast<int>(sizeof(T));
  constexpr int kParts = kLines * kLineBytes / Width;
  V products[kParts] = {}, activations[kParts] = {};
  std::int64_t i = 0;
  for (; i + kParts * W <= length; i += kParts * W) {
    for (int part = 0; part < kParts; ++part) {
      const V a = load_wide<Width>(act + i + part * W);
      products[part] += a * load_wide<Width>(grad + i + part * W);
      activations[part] += a;
    }
  }
  double product_sum = 0, activation_sum = 0;
  for (int part = 0; part < kParts; ++part)
    for (int w = 0; w < W; ++w) {
      product_sum += static_cast<double>(products[part][w]);
      activation_sum += static_cast<double>(activations[part][w]);
    }
  for (; i < length; ++i) {
    const T a = widen(act[i]);
    product_sum += static_cast<double>(a * static_cast<T>(widen(grad[i])));
    activation_sum += static_cast<double>(a);
  }
  *product += product_sum;
  *activation += activation_sum;
}

// The same for a block of neighbouring channels over rows of `channels` elements. If every row is a sample of its
// own, `magnitude` gets Σ |a·g|; otherwise it is null.
template <class S, class T, int Width, bool RowIsSample>
FAIRKERN_INLINE void lanes(const S* act, const S* grad, std::int64_t rows, std::int64_t channels, std::int64_t width,
                           double* product, double* magnitude, double* activation) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int W = Width / static_cast<int>(sizeof(T));
  T products[kLaneBlock] = {}, magnitudes[kLaneBlock] = {}, activations[kLaneBlock] = {};
  const std::int64_t whole = width - width % W;
  for (std::int64_t row = 0; row < rows; ++row, act += channels, grad += channels) {
    for (std::int64_t c = 0; c < kLaneBlock && c < whole; c += W) {
      const V a = load_wide<Width>(act + c);
      const V term = a * load_wide<Width>(grad + c);
      store(products + c, V(load<V>(products + c) + term));
      if (RowIsSample) store(magnitudes + c, V(load<V>(magnitudes + c) + absolute(term)));
      store(activations + c, V(load<V>(activations + c) + a));
    }
    for (std::int64_t c = whole; c < width; ++c) {
      const T a = widen(act[c]);
      const T term = a * static_cast<T>(widen(grad[c]));
      products[c] += term;
      if (RowIsSample) magnitudes[c] += std::fabs(term);
      activations[c] += a;
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    product[c] = static_cast<double>(products[c]);
    if (RowIsSample) magnitude[c] = static_cast<double>(magnitudes[c]);
    activation[c] = static_cast<double>(activations[c]);
  }
}

// How the work is cut: `parts` rows of results, each [channels], `pieces` of them to a sample. Where
// every row of the input is a sample, parts are pieces of the samples, and their magnitudes are summed on the way.
struct Cut {
  bool by_lanes, row_is_sample;
  std::int64_t length, size, pieces, parts, tasks;

  explicit Cut(const TaylorArgs& args)
      : by_lanes(args.after == 1),
        row_is_sample(by_lanes && args.before == 1),
        length(row_is_sample ? args.samples : by_lanes ? args.before : args.after),
        size(by_lanes ? kLanePiece : kDotPiece),
        pieces((length + size - 1) / size),
        parts(row_is_sample ? pieces : args.samples * pieces),
        tasks(parts * (by_lanes ? (args.channels + kLaneBlock - 1) / kLaneBlock : args.channels)) {}
};

struct Partials {
  std::vector<double> products, magnitudes, activations;  // [parts, channels]
};

template <class S, class T, int Width>
FAIRKERN_INLINE void piece(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials) {
  const S* act = static_cast<const S*>(args.act);
  const S* grad = static_cast<const S*>(args.grad);
  const std::int64_t tasks_per_part = cut.tasks / cut.parts;
  const std::int64_t part = task / tasks_per_part, first = part % cut.pieces * cut.size;
  const std::int64_t length = std::min(cut.size, cut.length - first), sample = part / cut.pieces;
  if (cut.by_lanes) {
    const std::int64_t channel = task % tasks_per_part * kLaneBlock;
    const std::int64_t at = (sample * cut.length + first) * args.channels + channel;
    const std::int64_t to = part * args.channels + channel, width = std::min(kLaneBlock, args.channels - channel);
    double* product = partials.products.data() + to;
    double* activation = partials.activations.data() + to;
    if (cut.row_is_sample)
      lanes<S, T, Width, true>(act + at, grad + at, length, args.channels, width, product,
                               partials.magnitudes.data() + to, activation);
    else
      lanes<S, T, Width, false>(act + at, grad + at, length, args.channels, width, product, nullptr, activation);
    return;
  }
  const std::int64_t channel = task % tasks_per_part;
  double product = 0, activation = 0;
  for (std::int64_t o = 0; o < args.before; ++o) {
    const std::int64_t at = ((sample * args.before + o) * args.channels + channel) * args.after + first;
    dot<S, T, Width>(act + at, grad + at, length, &product, &activation);
  }
  partials.products[part * args.channels + channel] = product;
  partials.activations[part * args.channels + channel] = activation;
}

template <class S, class T>
FAIRKERN_AVX512 void piece_avx512(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials) {
  piece<S, T, 64>(args, cut, task, partials);
}
template <class S, class T>
FAIRKERN_AVX2 void piece_avx2(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials) {
  piece<S, T, 32>(args, cut, task, partials);
}
template <class S, class T>
void piece_baseline(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials) {
  piece<S, T, 16>(args, cut, task, partials);
}

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
  const std::int64_t channels = args.channels, together = cut.row_is_sample ? 1 : cut.pieces;
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
      totals[channels + c] += cut.row_is_sample ? partials.magnitudes[begin * channels + c] : std::fabs(sample[c]);
    }
  }
  args.wide ? write<double>(args, totals) : write<float>(args, totals);
}

template <class S>
void run(const TaylorArgs& args) {
  using T = decltype(widen(S{}));
  const Cut cut(args);
  Partials partials;
  partials.products.resize(cut.parts * args.channels);
  partials.activations.resize(cut.parts * args.channels);
  if (cut.row_is_sample) partials.magnitudes.resize(cut.parts * args.channels);

  const auto kernel = args.isa == Isa::avx512 ? piece_avx512<S, T>
                      : args.isa == Isa::avx2 ? piece_avx2<S, T>
                                              : piece_baseline<S, T>;
  const bool serial = args.samples * args.before * args.channels * args.after < kSerialElements;
#pragma omp parallel for schedule(static) num_threads(args.threads) if (!serial)
  for (std::int64_t task = 0; task < cut.tasks; ++task) kernel(args, cut, task, partials);
  add_up(args, cut, partials);
}

}  // namespace

void taylor(Element element, const TaylorArgs& args) {
  switch (element) {
    case Element::float32: return run<float>(args);
    case Element::float64: return run<double>(args);
    case Element::bfloat16: return run<BFloat16>(args);
    case Element::float16: return run<Float16>(args);
  }
}

}  // namespace fairkern
