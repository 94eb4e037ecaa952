// Squared per-sample gradients of biases and of norm layers' gains: one pass over x and grad.
namespace resgrow {
namespace ISA {

// Channels side by side: LANES channels at a time, four positions in flight to hide the adds' latency.
template <class S, class T, int LANES, bool WEIGHT>
inline void moments_block(const SquaredGradMoments<T>& a, Int n, Int c) {
  using V = typename Vector<T, LANES>::type;
  const S* grad = static_cast<const S*>(a.grad) + n * a.grad_sample + c;
  const S* x = WEIGHT ? static_cast<const S*>(a.x) + n * a.x_sample + c : nullptr;
  const V mean = WEIGHT ? load<V>(a.mean + c) : V{};
  V gain[4] = {}, shift[4] = {};
  Int t = 0;
  for (; t + 4 <= a.positions; t += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V g = load_widened<T, LANES>(grad + (t + j) * a.grad_position);
      shift[j] += g;
      if constexpr (WEIGHT) gain[j] += g * (load_widened<T, LANES>(x + (t + j) * a.x_position) - mean);
    }
  }
  for (; t < a.positions; ++t) {
    const V g = load_widened<T, LANES>(grad + t * a.grad_position);
    shift[0] += g;
    if constexpr (WEIGHT) gain[0] += g * (load_widened<T, LANES>(x + t * a.x_position) - mean);
  }
  const V shifts = (shift[0] + shift[1]) + (shift[2] + shift[3]);
  store<V>(a.bias + c, load<V>(a.bias + c) + shifts * shifts);
  if constexpr (WEIGHT) {
    const V gains = ((gain[0] + gain[1]) + (gain[2] + gain[3])) * load<V>(a.rstd + c);
    store<V>(a.weight + c, load<V>(a.weight + c) + gains * gains);
  }
}

template <class S, class T, int LANES, bool WEIGHT>
inline void moments_channels(const SquaredGradMoments<T>& a, Int n, Int c) {
  for (; c + LANES <= a.channels; c += LANES) moments_block<S, T, LANES, WEIGHT>(a, n, c);
  if constexpr (LANES > 1) moments_channels<S, T, LANES / 2, WEIGHT>(a, n, c);
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
      moments_channels<S, T, VECTOR_BYTES / sizeof(T), WEIGHT>(a, n, 0);
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
