// Squared per-sample gradients of biases and of norm layers' gains: one pass over x and grad.
namespace resgrow {
namespace ISA {

// Channels side by side: VECTORS vectors of them in one pass, so that long rows are read in whole
// lines, and FLIGHT positions at once to hide the adds' latency.
template <class S, class T, int LANES, int VECTORS, int FLIGHT, bool WEIGHT>
inline void moments_block(const SquaredGradMoments<T>& a, Int n, Int c) {
  using V = typename Vector<T, LANES>::type;
  const S* grad = static_cast<const S*>(a.grad) + n * a.grad_sample + c;
  const S* x = WEIGHT ? static_cast<const S*>(a.x) + n * a.x_sample + c : nullptr;
  V mean[VECTORS] = {}, gain[FLIGHT][VECTORS] = {}, shift[FLIGHT][VECTORS] = {};
  if constexpr (WEIGHT) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) mean[i] = load<V>(a.mean + c + i * LANES);
  }
  const auto position = [&](Int t, int j) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) {
      const V g = load_widened<T, LANES>(grad + t * a.grad_position + i * LANES);
      shift[j][i] += g;
      if constexpr (WEIGHT) {
        gain[j][i] += g * (load_widened<T, LANES>(x + t * a.x_position + i * LANES) - mean[i]);
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
    store<V>(a.bias + at, load<V>(a.bias + at) + shifts * shifts);
    if constexpr (WEIGHT) {
      gains *= load<V>(a.rstd + at);
      store<V>(a.weight + at, load<V>(a.weight + at) + gains * gains);
    }
  }
}

template <class S, class T, int LANES, bool WEIGHT>
inline void moments_tail(const SquaredGradMoments<T>& a, Int n, Int c) {
  for (; c + LANES <= a.channels; c += LANES) moments_block<S, T, LANES, 1, 4, WEIGHT>(a, n, c);
  if constexpr (LANES > 1) moments_tail<S, T, LANES / 2, WEIGHT>(a, n, c);
}

template <class S, class T, bool WEIGHT>
inline void moments_channels(const SquaredGradMoments<T>& a, Int n) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  Int c = 0;
  for (; c + 4 * lanes <= a.channels; c += 4 * lanes)
    moments_block<S, T, lanes, 4, 1, WEIGHT>(a, n, c);
  for (; c + 2 * lanes <= a.channels; c += 2 * lanes)
    moments_block<S, T, lanes, 2, 2, WEIGHT>(a, n, c);
  moments_tail<S, T, lanes, WEIGHT>(a, n, c);
}

// Positions side by side: one channel's plane at a time, four vectors in flight.
template <class S, class T, bool WEIGHT>
inline void moments_plane(const SquaredGradMoments<T>& a, Int n, Int c) {
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  const S* grad = static_cast<const S*>(a.grad) + n * a.grad_sample + c * a.grad_channel;
  const S* x = WEIGHT ? static_cast<const S*>(a.x) + n * a.x_sample + c * a.x_channel : nullptr;
  const T mean = WEIGHT ? a.mean[c] : 0;
  V gain[4] = {}, shift[4] = {};
  Int t = 0;
  for (; t + 4 * lanes <= a.positions; t += 4 * lanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V g = load_widened<T, lanes>(grad + t + j * lanes);
      shift[j] += g;
      if constexpr (WEIGHT) gain[j] += g * (load_widened<T, lanes>(x + t + j * lanes) - mean);
    }
  }
  for (; t + lanes <= a.positions; t += lanes) {
    const V g = load_widened<T, lanes>(grad + t);
    shift[0] += g;
    if constexpr (WEIGHT) gain[0] += g * (load_widened<T, lanes>(x + t) - mean);
  }
  T gains = 0, shifts = 0;
  for (; t < a.positions; ++t) {
    const T g = widen(grad[t]);
    shifts += g;
    if constexpr (WEIGHT) gains += g * (widen(x[t]) - mean);
  }
  const V all_shifts = (shift[0] + shift[1]) + (shift[2] + shift[3]);
  const V all_gains = (gain[0] + gain[1]) + (gain[2] + gain[3]);
  for (int i = 0; i < lanes; ++i) {
    shifts += all_shifts[i];
    gains += all_gains[i];
  }
  a.bias[c] += shifts * shifts;
  if constexpr (WEIGHT) a.weight[c] += (gains * a.rstd[c]) * (gains * a.rstd[c]);
}

template <class S, class T, bool WEIGHT>
void moments_from(const SquaredGradMoments<T>& a) {
  const bool channels_last = a.grad_channel == 1 && (!WEIGHT || a.x_channel == 1);
  for (Int n = 0; n < a.samples; ++n) {
    if (channels_last) {
      moments_channels<S, T, WEIGHT>(a, n);
    } else {
      for (Int c = 0; c < a.channels; ++c) moments_plane<S, T, WEIGHT>(a, n, c);
    }
  }
}

template <class T>
void squared_grad_moments(const SquaredGradMoments<T>& a) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (a.bfloat16) {
      return a.x ? moments_from<BFloat16, T, true>(a) : moments_from<BFloat16, T, false>(a);
    }
  }
  return a.x ? moments_from<T, T, true>(a) : moments_from<T, T, false>(a);
}

}  // namespace ISA
}  // namespace resgrow
