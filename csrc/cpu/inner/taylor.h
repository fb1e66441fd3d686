// taylor: one piece.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/inner.h"
#include "cpu/inner/taylor_short.h"
#include "cpu/inner/vectors.h"

namespace fairkern::FAIRKERN_ISA {
namespace {

constexpr int kLines = 2;  // cache lines in flight per dot product

// Σ a·g and Σ a over a contiguous stretch, added to the two sums.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void dot(const S* act, const S* grad, std::int64_t length, double* product, double* activation) {
  using V = VectorOf<T>;
  constexpr int W = width_of<T>();
  constexpr int kParts = kLines * kLineBytes / kWidth;
  V products[kParts] = {}, activations[kParts] = {};
  std::int64_t i = 0;
  for (; i + kParts * W <= length; i += kParts * W) {
    for (int part = 0; part < kParts; ++part) {
      const V a = load_wide(act + i + part * W);
      products[part] += a * load_wide(grad + i + part * W);
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
template <class S, bool RowIsSample, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void lanes(const S* act, const S* grad, std::int64_t rows, std::int64_t channels,
                                  std::int64_t width, double* product, double* magnitude, double* activation) {
  using V = VectorOf<T>;
  constexpr int W = width_of<T>();
  T products[kLaneBlock] = {}, magnitudes[kLaneBlock] = {}, activations[kLaneBlock] = {};
  const std::int64_t whole = width - width % W;
  for (std::int64_t row = 0; row < rows; ++row, act += channels, grad += channels) {
    for (std::int64_t c = 0; c < kLaneBlock && c < whole; c += W) {
      const V a = load_wide(act + c);
      const V term = a * load_wide(grad + c);
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

template <class S, class T = Wide<S>>
FAIRKERN_KERNEL void piece(const TaylorArgs& args, const Cut& cut, std::int64_t task, Partials& partials) {
  const S* act = static_cast<const S*>(args.act);
  const S* grad = static_cast<const S*>(args.grad);
  const std::int64_t tasks_per_part = cut.tasks / cut.parts;
  const std::int64_t part = task / tasks_per_part, first = part % cut.pieces * cut.size;
  const std::int64_t length = std::min(cut.size, cut.length - first), sample = part / cut.pieces;
  const std::int64_t channel = task % tasks_per_part * cut.together;
  const std::int64_t to = part * args.channels + channel, width = std::min(cut.together, args.channels - channel);
  double* products = partials.products.data() + to;
  double* activations = partials.activations.data() + to;
  double* magnitudes = cut.of_samples ? partials.magnitudes.data() + to : nullptr;
  if (cut.few_positions) {
    few_positions<S>(args, first, length, channel, width, products, magnitudes, activations);
    return;
  }
  if (cut.by_lanes) {
    const std::int64_t at = (sample * cut.length + first) * args.channels + channel;
    if (cut.of_samples)
      lanes<S, true>(act + at, grad + at, length, args.channels, width, products, magnitudes, activations);
    else
      lanes<S, false>(act + at, grad + at, length, args.channels, width, products, nullptr, activations);
    return;
  }
  double product = 0, activation = 0;
  for (std::int64_t o = 0; o < args.before; ++o) {
    const std::int64_t at = ((sample * args.before + o) * args.channels + channel) * args.after + first;
    dot<S>(act + at, grad + at, length, &product, &activation);
  }
  *products = product;
  *activations = activation;
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
