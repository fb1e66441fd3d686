// taylor: Σ act · grad and Σ act per channel, from one read of both.
//
// The tensors are [samples, before, channels, after], contiguous. Either a channel's positions are contiguous
// (after > 1: a dot product per channel), or neighbouring channels are (after = 1: lanes are channels). Work is cut
// into pieces whose bounds depend on the shape alone, and the pieces' sums are added in a fixed order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace fairkern {
namespace {

constexpr std::int64_t kDotPiece = 1 << 15;      // positions of one channel per piece
constexpr std::int64_t kLanePiece = 1 << 9;      // rows of channels per piece
constexpr std::int64_t kLaneBlock = 256;         // channels that are summed together
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

// The same for a block of neighbouring channels over rows of `channels` elements.
template <class S, class T, int Width>
FAIRKERN_INLINE void lanes(const S* act, const S* grad, std::int64_t rows, std::int64_t channels, std::int64_t width,
                           double* product, double* activation) {
  using V = typename VectorOf<T, Width>::type;
  constexpr int W = Width / static_cast<int>(sizeof(T));
  T products[kLaneBlock] = {}, activations[kLaneBlock] = {};
  const std::int64_t whole = width - width % W;
  for (std::int64_t row = 0; row < rows; ++row, act += channels, grad += channels) {
    for (std::int64_t c = 0; c < kLaneBlock && c < whole; c += W) {
      const V a = load_wide<Width>(act + c);
      store(products + c, V(load<V>(products + c) + a * load_wide<Width>(grad + c)));
      store(activations + c, V(load<V>(activations + c) + a));
    }
    for (std::int64_t c = whole; c < width; ++c) {
      const T a = widen(act[c]);
      products[c] += a * static_cast<T>(widen(grad[c]));
      activations[c] += a;
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    product[c] = static_cast<double>(products[c]);
    activation[c] = static_cast<double>(activations[c]);
  }
}

template <class S, class T, int Width>
FAIRKERN_INLINE void piece(const TaylorArgs& args, std::int64_t pieces, std::int64_t task, double* products,
                           double* activations) {
  const S* act = static_cast<const S*>(args.act);
  const S* grad = static_cast<const S*>(args.grad);
  if (args.after == 1) {
    const std::int64_t blocks = (args.channels + kLaneBlock - 1) / kLaneBlock;
    const std::int64_t block = task % blocks, part = task / blocks;  // part: sample · pieces + piece
    const std::int64_t first = part % pieces * kLanePiece, channel = block * kLaneBlock;
    const std::int64_t rows = std::min(kLanePiece, args.before - first);
    const std::int64_t at = (part / pieces * args.before + first) * args.channels + channel;
    const std::int64_t to = part * args.channels + channel;
    lanes<S, T, Width>(act + at, grad + at, rows, args.channels, std::min(kLaneBlock, args.channels - channel),
                       products + to, activations + to);
    return;
  }
  const std::int64_t channel = task % args.channels, part = task / args.channels;
  const std::int64_t first = part % pieces * kDotPiece, sample = part / pieces;
  const std::int64_t length = std::min(kDotPiece, args.after - first);
  double product = 0, activation = 0;
  for (std::int64_t o = 0; o < args.before; ++o) {
    const std::int64_t at = ((sample * args.before + o) * args.channels + channel) * args.after + first;
    dot<S, T, Width>(act + at, grad + at, length, &product, &activation);
  }
  products[part * args.channels + channel] = product;
  activations[part * args.channels + channel] = activation;
}

template <class S, class T>
FAIRKERN_AVX512 void piece_avx512(const TaylorArgs& args, std::int64_t pieces, std::int64_t task, double* products,
                                  double* activations) {
  piece<S, T, 64>(args, pieces, task, products, activations);
}
template <class S, class T>
FAIRKERN_AVX2 void piece_avx2(const TaylorArgs& args, std::int64_t pieces, std::int64_t task, double* products,
                              double* activations) {
  piece<S, T, 32>(args, pieces, task, products, activations);
}
template <class S, class T>
void piece_baseline(const TaylorArgs& args, std::int64_t pieces, std::int64_t task, double* products,
                    double* activations) {
  piece<S, T, 16>(args, pieces, task, products, activations);
}

template <class S>
void run(const TaylorArgs& args) {
  using T = decltype(widen(S{}));
  const bool by_lanes = args.after == 1;
  const std::int64_t length = by_lanes ? args.before : args.after, size = by_lanes ? kLanePiece : kDotPiece;
  const std::int64_t pieces = (length + size - 1) / size;
  const std::int64_t parts = args.samples * pieces;
  const std::int64_t tasks = parts * (by_lanes ? (args.channels + kLaneBlock - 1) / kLaneBlock : args.channels);
  std::vector<double> products(parts * args.channels), activations(parts * args.channels);

  const auto kernel = args.isa == Isa::avx512 ? piece_avx512<S, T>
                      : args.isa == Isa::avx2 ? piece_avx2<S, T>
                                              : piece_baseline<S, T>;
#pragma omp parallel for schedule(static) num_threads(args.threads)
  for (std::int64_t task = 0; task < tasks; ++task) kernel(args, pieces, task, products.data(), activations.data());

  T* signed_sum = static_cast<T*>(args.signed_sum);
  T* per_sample = static_cast<T*>(args.per_sample);
  T* activation = static_cast<T*>(args.activation);
  std::vector<double> totals(3 * args.channels), sample(args.channels);
  for (std::int64_t s = 0; s < args.samples; ++s) {
    std::fill(sample.begin(), sample.end(), 0.0);
    for (std::int64_t p = s * pieces; p < (s + 1) * pieces; ++p)
      for (std::int64_t c = 0; c < args.channels; ++c) {
        sample[c] += products[p * args.channels + c];
        totals[2 * args.channels + c] += activations[p * args.channels + c];
      }
    for (std::int64_t c = 0; c < args.channels; ++c) {
      totals[c] += sample[c];
      totals[args.channels + c] += std::fabs(sample[c]);
    }
  }
  for (std::int64_t c = 0; c < args.channels; ++c) {
    signed_sum[c] = static_cast<T>(totals[c]);
    per_sample[c] = static_cast<T>(totals[args.channels + c]);
    activation[c] = static_cast<T>(totals[2 * args.channels + c]);
  }
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
