// Kernel of block_sparse's pointwise input gradient. Its lanes are neighbouring pixels: a square of
// them and of as many outputs is transposed in registers and used there, by every entry that reads
// it, once and for all.
namespace resgrow {
namespace ISA {

// A square of values, zero where there is none: row i from `source` + i * step. What the next
// square of pixels needs is asked for meanwhile: rows far apart are no stream to the hardware.
template <class V, class T, int LANES>
__attribute__((always_inline)) inline void load_square(V (&r)[LANES], const T* source, Int step,
                                                       Int rows, Int count) {
  if (rows >= LANES && count >= LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      __builtin_prefetch(source + (i + LANES) * step, 0, 2);
      r[i] = load<V>(source + i * step);
    }
    return;
  }
  for (int i = 0; i < LANES; ++i)
    r[i] = load_some<V>(i < rows ? source + i * step : nullptr, count);
}

template <class V, class T, int LANES>
__attribute__((always_inline)) inline void store_square(const V (&r)[LANES], T* target, Int step,
                                                        Int rows, Int count) {
  if (rows >= LANES && count >= LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      __builtin_prefetch(target + (i + LANES) * step, 1, 2);
      store<V>(target + i * step, r[i]);
    }
    return;
  }
  for (int i = 0; i < LANES; ++i)
    store_some<V>(i < rows ? target + i * step : nullptr, r[i], count);
}

// sums[to_e] = sums[from_e] + sum_o w[e][o] g[o] for `OUTPUTS` of them, in two chains of additions.
template <int OUTPUTS, class V, class T>
__attribute__((always_inline)) inline void add_entries(const V* g, const T* w, Int w_step,
                                                       const int* from, const int* to, Int entries,
                                                       T* sums) {
  for (Int e = 0; e < entries; ++e, w += w_step) {
    V even = load<V>(sums + from[e]) + g[0] * w[0], odd = g[1] * w[1];
#pragma GCC unroll 16
    for (int o = 2; o < OUTPUTS; o += 2) {
      even += g[o] * w[o];
      odd += g[o + 1] * w[o + 1];
    }
    store<V>(sums + to[e], even + odd);
  }
}

// A pixel that is left over: sums of vectors of outputs, each of which is reduced to its channel's
// gradient at the end. For two of them a vector of pixels is faster.
template <class T>
void pointwise_pixel(const BlockSparsePointwise<T>& a, Int pixel) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  Int row = 0, within = 0;  // of the blocks
  for (Int o = 0; o < a.outputs; o += lanes) {
    const V g = load_some<V>(a.g + pixel * a.g_pixel + o, a.outputs - o);
    const int* from = within == 0 ? a.from : a.to;
    for (Int e = a.starts[row]; e < a.starts[row + 1]; ++e)
      store<V>(a.sums + a.to[e],
               load<V>(a.sums + from[e]) + g * load<V>(a.w + e * a.w_step + within));
    within += lanes;
    if (within == a.w_step) {
      within = 0;
      ++row;
    }
  }
  for (Int c = 0; c < a.channels; c += lanes) {
    V r[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) r[i] = load<V>(a.sums + (c + i) * lanes);
    transpose<T, lanes>(r);
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) r[i] += r[i + half];
    }
    store_some(a.gx + pixel * a.gx_pixel + c, r[0], a.channels - c);
  }
}

template <class T, int WIDTH>
void block_sparse_pointwise(const BlockSparsePointwise<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T), width = WIDTH < lanes ? WIDTH : lanes;
  using V = typename Vector<T>::type;
  const BlockSparsePointwise<T> a = args;  // a copy, which no store can be taken to change
  for (Int pixel = 0; pixel < a.pixels; pixel += lanes) {
    if (width == lanes && a.pixels - pixel == 1) return pointwise_pixel(a, pixel);
    const T* g = a.g + pixel * a.g_pixel;
    Int row = 0, within = 0;  // of the blocks
    for (Int o = 0; o < a.outputs; o += lanes) {
      V r[lanes];
      load_square(r, g + o, a.g_pixel, a.pixels - pixel, a.outputs - o);
      transpose<T, lanes>(r);
#pragma GCC unroll 4
      for (int i = 0; i < lanes; i += width) {
        if (row < a.rows) {
          const Int first = a.starts[row];
          add_entries<width>(r + i, a.w + first * a.w_step + within, a.w_step,
                             (within == 0 ? a.from : a.to) + first, a.to + first,
                             a.starts[row + 1] - first, a.sums);
        }
        within += width;
        if (within == a.w_step) {
          within = 0;
          ++row;
        }
      }
    }
    T* gx = a.gx + pixel * a.gx_pixel;
    for (Int c = 0; c < a.channels; c += lanes) {
      V r[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) r[i] = load<V>(a.sums + (c + i) * lanes);
      transpose<T, lanes>(r);
      store_square(r, gx + c, a.gx_pixel, a.pixels - pixel, a.channels - c);
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
