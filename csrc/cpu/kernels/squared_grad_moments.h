// Squared per-sample gradients of biases and of norm layers' gains, or gradients with the input
// squared: one pass over x and grad.
namespace resgrow {
namespace ISA {

enum class Moments { kBias, kBoth, kSquaredInput };

// What one position adds to the gain's sum.
template <Moments WHAT, class V>
__attribute__((always_inline)) inline V gain_term(const V& g, const V& centred) {
  return WHAT == Moments::kSquaredInput ? g * centred * centred : g * centred;
}

// What a sample's sum adds to the total.
template <Moments WHAT, class V>
__attribute__((always_inline)) inline V sample_term(const V& sum) {
  return WHAT == Moments::kSquaredInput ? sum : sum * sum;
}

// Channels side by side: VECTORS vectors of them in one pass, so that long rows are read in whole
// lines, and FLIGHT positions at once to hide the adds' latency.
template <class S, class T, int LANES, int VECTORS, int FLIGHT, Moments WHAT>
inline void moments_block(const SquaredGradMoments<T>& a, Int n, Int c) {
  constexpr bool kWeight = WHAT != Moments::kBias;
  using V = typename Vector<T, LANES>::type;
  const S* grad = static_cast<const S*>(a.grad) + n * a.grad_sample + c;
  const S* x = kWeight ? static_cast<const S*>(a.x) + n * a.x_sample + c : nullptr;
  V mean[VECTORS] = {}, gain[FLIGHT][VECTORS] = {}, shift[FLIGHT][VECTORS] = {};
  if constexpr (kWeight) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) mean[i] = load<V>(a.mean + c + i * LANES);
  }
  const auto position = [&](Int t, int j) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) {
      const V g = load_widened<T, LANES>(grad + t * a.grad_position + i * LANES);
      shift[j][i] += g;
      if constexpr (kWeight) {
        const V centred = load_widened<T, LANES>(x + t * a.x_position + i * LANES) - mean[i];
        gain[j][i] += gain_term<WHAT>(g, centred);
      }
    }
  };
  Int t = 0;
  for (; t + FLIGHT <= a.positions; t += FLIGHT) {
#pragma GCC unroll 4
    for (int j = 0; j < FLIGHT; ++j) position(t + j, j);
  }
  for (; t < a.positions; ++t) position(t, 0);
#pragma GCC unroll 4
  for (int i = 0; i < VECTORS; ++i) {
    V shifts = shift[0][i], gains = gain[0][i];
#pragma GCC unroll 4
    for (int j = 1; j < FLIGHT; ++j) {
      shifts += shift[j][i];
      gains += gain[j][i];
    }
    const Int at = c + i * LANES;
    store<V>(a.bias + at, load<V>(a.bias + at) + sample_term<WHAT>(shifts));
    if constexpr (kWeight) {
      const V rstd = load<V>(a.rstd + at);
      const V scaled = WHAT == Moments::kSquaredInput ? gains * rstd * rstd : gains * rstd;
      store<V>(a.weight + at, load<V>(a.weight + at) + sample_term<WHAT>(scaled));
    }
  }
}

template <class S, class T, int LANES, Moments WHAT>
inline void moments_tail(const SquaredGradMoments<T>& a, Int n, Int c) {
  for (; c + LANES <= a.channels; c += LANES) moments_block<S, T, LANES, 1, 4, WHAT>(a, n, c);
  if constexpr (LANES > 1) moments_tail<S, T, LANES / 2, WHAT>(a, n, c);
}

template <class S, class T, Moments WHAT>
inline void moments_channels(const SquaredGradMoments<T>& a, Int n) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  Int c = 0;
  for (; c + 4 * lanes <= a.channels; c += 4 * lanes)
    moments_block<S, T, lanes, 4, 1, WHAT>(a, n, c);
  for (; c + 2 * lanes <= a.channels; c += 2 * lanes)
    moments_block<S, T, lanes, 2, 2, WHAT>(a, n, c);
  moments_tail<S, T, lanes, WHAT>(a, n, c);
}

// Positions side by side: one channel's plane at a time, four vectors in flight.
template <class S, class T, Moments WHAT>
inline void moments_plane(const SquaredGradMoments<T>& a, Int n, Int c) {
  constexpr bool kWeight = WHAT != Moments::kBias;
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  const S* grad = static_cast<const S*>(a.grad) + n * a.grad_sample + c * a.grad_channel;
  const S* x = kWeight ? static_cast<const S*>(a.x) + n * a.x_sample + c * a.x_channel : nullptr;
  const T mean = kWeight ? a.mean[c] : 0;
  V gain[4] = {}, shift[4] = {};
  Int t = 0;
  for (; t + 4 * lanes <= a.positions; t += 4 * lanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V g = load_widened<T, lanes>(grad + t + j * lanes);
      shift[j] += g;
      if constexpr (kWeight)
        gain[j] += gain_term<WHAT>(g, load_widened<T, lanes>(x + t + j * lanes) - mean);
    }
  }
  for (; t + lanes <= a.positions; t += lanes) {
    const V g = load_widened<T, lanes>(grad + t);
    shift[0] += g;
    if constexpr (kWeight) gain[0] += gain_term<WHAT>(g, load_widened<T, lanes>(x + t) - mean);
  }
  T gains = 0, shifts = 0;
  for (; t < a.positions; ++t) {
    const T g = widen(grad[t]);
    shifts += g;
    if constexpr (kWeight) gains += gain_term<WHAT>(g, widen(x[t]) - mean);
  }
  const V all_shifts = (shift[0] + shift[1]) + (shift[2] + shift[3]);
  const V all_gains = (gain[0] + gain[1]) + (gain[2] + gain[3]);
  for (int i = 0; i < lanes; ++i) {
    shifts += all_shifts[i];
    gains += all_gains[i];
  }
  a.bias[c] += sample_term<WHAT>(shifts);
  if constexpr (kWeight) {
    const T rstd = a.rstd[c];
    a.weight[c] +=
        sample_term<WHAT>(WHAT == Moments::kSquaredInput ? gains * rstd * rstd : gains * rstd);
  }
}

template <class S, class T, Moments WHAT>
void moments_from(const SquaredGradMoments<T>& a) {
  const bool channels_last = a.grad_channel == 1 && (WHAT == Moments::kBias || a.x_channel == 1);
  for (Int n = 0; n < a.samples; ++n) {
    if (channels_last) {
      moments_channels<S, T, WHAT>(a, n);
    } else {
      for (Int c = 0; c < a.channels; ++c) moments_plane<S, T, WHAT>(a, n, c);
    }
  }
}

template <class S, class T>
void moments_of(const SquaredGradMoments<T>& a) {
  if (!a.x) return moments_from<S, T, Moments::kBias>(a);
  if (a.square_input) return moments_from<S, T, Moments::kSquaredInput>(a);
  moments_from<S, T, Moments::kBoth>(a);
}

template <class T>
void squared_grad_moments(const SquaredGradMoments<T>& a) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.bfloat16) return moments_of<BFloat16>(a);
  }
  moments_of<T>(a);
}

}  // namespace ISA
}  // namespace resgrow
