// taylor: a piece of a tensor whose channels have few positions each, [samples, channels, positions].
//
// One channel's sums would be mostly the adding up of lanes, one after the other. So the lanes of as many channels as a
// vector has are added up together: neighbours of two vectors, then neighbours of what that gave, until every lane is a
// channel of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "cpu/inner.h"
#include "cpu/inner/vectors.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FAIRKERN_SHUFFLES 1
#endif
#endif

namespace fairkern::FAIRKERN_ISA {
namespace {

// The sums of neighbouring lanes, those of `a` first.
template <class V, int... I>
FAIRKERN_KERNEL_INLINE V neighbours(V a, V b, std::integer_sequence<int, I...>) {
#ifdef FAIRKERN_SHUFFLES
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  constexpr int W = sizeof...(I);
  V made{};
  for (int lane = 0; lane < W / 2; ++lane) {
    made[lane] = a[2 * lane] + a[2 * lane + 1];
    made[W / 2 + lane] = b[2 * lane] + b[2 * lane + 1];
  }
  return made;
#endif
}

template <class T>
struct Pair {
  VectorOf<T> product, activation;
};

// The first `count` lanes of what lies at `from`, where `room` elements lie, and zeros.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE VectorOf<T> first_lanes(const S* from, std::int64_t count, std::int64_t room) {
  using V = VectorOf<T>;
  using Mask = decltype(V{} < V{});
  constexpr int W = width_of<T>();
  if (room < W) {
    S some[W] = {};
    std::copy_n(from, count, some);
    return load_wide(some);
  }
  Mask lanes{};
  for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
  const Mask wanted = lanes < static_cast<std::decay_t<decltype(lanes[0])>>(count);
  return reinterpret_cast<V>(reinterpret_cast<Mask>(load_wide(from)) & wanted);
}

// Σ a·g and Σ a over the positions of one channel, not yet over the lanes; `room`: elements from its first on.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE Pair<T> over_positions(const S* act, const S* grad, std::int64_t length, std::int64_t room) {
  using V = VectorOf<T>;
  constexpr int W = width_of<T>();
  Pair<T> sums{V{}, V{}};
  std::int64_t i = 0;
  for (; i + W <= length; i += W) {
    const V a = load_wide(act + i);
    sums.product += a * load_wide(grad + i);
    sums.activation += a;
  }
  if (i < length) {
    const V a = first_lanes(act + i, length - i, room - i);
    sums.product += a * first_lanes(grad + i, length - i, room - i);
    sums.activation += a;
  }
  return sums;
}

// Lanes of `Count` vectors, `leaf(0)` and so on, added up as far as it takes for one vector.
template <class T, int Count, class Leaf>
FAIRKERN_KERNEL_INLINE Pair<T> added(const Leaf& leaf, int first = 0) {
  if constexpr (Count == 1) {
    return leaf(first);
  } else {
    const Pair<T> a = added<T, Count / 2>(leaf, first), b = added<T, Count / 2>(leaf, first + Count / 2);
    const auto all = std::make_integer_sequence<int, width_of<T>()>();
    return {neighbours(a.product, b.product, all), neighbours(a.activation, b.activation, all)};
  }
}

// Leaves: of channels that share vectors, having two, four or eight positions each, the vectors; else the channels, of
// those that are there.
template <class S, class T = Wide<S>>
struct Packed {
  const S *act, *grad;
  FAIRKERN_KERNEL_INLINE Pair<T> operator()(int vector) const {
    const VectorOf<T> a = load_wide(act + vector * width_of<T>());
    return {a * load_wide(grad + vector * width_of<T>()), a};
  }
};

template <class S, class T = Wide<S>>
struct Spread {
  const S *act, *grad;
  std::int64_t positions, channels, room;
  FAIRKERN_KERNEL_INLINE Pair<T> operator()(int channel) const {
    const VectorOf<T> none{};
    if (channel >= channels) return {none, none};
    const std::int64_t at = channel * positions;
    return over_positions<S>(act + at, grad + at, positions, room - at);
  }
};

// The sums of as many channels as a vector has lanes, or of those that are there; `room`: elements from the first on.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE Pair<T> of_channels(const S* act, const S* grad, std::int64_t positions, std::int64_t channels,
                                           std::int64_t room) {
  constexpr int W = width_of<T>();
  if (channels == W) {
    const Packed<S> packed{act, grad};
    if (positions == 2) return added<T, 2>(packed);
    if constexpr (W >= 4)
      if (positions == 4) return added<T, 4>(packed);
    if constexpr (W >= 8)
      if (positions == 8) return added<T, 8>(packed);
  }
  return added<T, W>(Spread<S>{act, grad, positions, channels, room});
}

// Some samples of a block of channels: Σ a·g, Σ over samples |Σ a·g| and Σ a.
template <class S, class T = Wide<S>>
FAIRKERN_KERNEL_INLINE void few_positions(const TaylorArgs& args, std::int64_t sample, std::int64_t samples,
                                          std::int64_t channel, std::int64_t channels, double* product,
                                          double* magnitude, double* activation) {
  constexpr int W = width_of<T>();
  const std::int64_t all = args.samples * args.channels * args.after;
  double products[kShortChannels] = {}, magnitudes[kShortChannels] = {}, activations[kShortChannels] = {};
  for (std::int64_t s = sample; s < sample + samples; ++s)
    for (std::int64_t c = 0; c < channels; c += W) {
      const std::int64_t at = (s * args.channels + channel + c) * args.after;
      const std::int64_t here = std::min<std::int64_t>(W, channels - c);
      const Pair<T> sums = of_channels<S>(static_cast<const S*>(args.act) + at, static_cast<const S*>(args.grad) + at,
                                          args.after, here, all - at);
      T some_products[W], some_activations[W];
      store(some_products, sums.product);
      store(some_activations, sums.activation);
      for (int lane = 0; lane < W; ++lane) {
        products[c + lane] += static_cast<double>(some_products[lane]);
        magnitudes[c + lane] += std::fabs(static_cast<double>(some_products[lane]));
        activations[c + lane] += static_cast<double>(some_activations[lane]);
      }
    }
  std::copy_n(products, channels, product);
  std::copy_n(magnitudes, channels, magnitude);
  std::copy_n(activations, channels, activation);
}

}  // namespace
}  // namespace fairkern::FAIRKERN_ISA
