// Kernels of block_sparse on lanes: the input gradient, and the transposition into lanes and back.
//
// A narrow block (16 x 1) has one input channel: in its input gradient there is no vector over
// channels. The lanes are images (or tiles of them) instead: every tap is then an aligned vector, and
// borders, strides and ragged widths cost nothing.
namespace resgrow {
namespace ISA {

// WIDTH outputs of every list, the gradient of as many of them as fit in registers, two chains of
// additions per entry.
template <class T, int WIDTH>
void block_sparse_spread(const BlockSparseSpread<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  constexpr int resident = VECTOR_BYTES == 64 || WIDTH < 8 ? WIDTH : 8;
  const BlockSparseSpread<T> a = args;  // a copy, which no store can be taken to change
  for (Int l = 0; l < a.lists; ++l) {
    const int begin = a.list_first[l], end = a.list_last[l];
    for (Int position = 0; position < a.positions; ++position) {
      const T* g = a.g + a.list_offsets[l] + position * a.g_position;
      T* gx = a.gx + position * a.gx_position;
      for (int o0 = 0; o0 < WIDTH; o0 += resident, g += resident * lanes) {
        V grad[resident];
#pragma GCC unroll 16
        for (int o = 0; o < resident; ++o) grad[o] = load<V>(g + o * lanes);
        const T* w = a.w + begin * a.w_step + o0;
        for (int e = begin; e < end; ++e, w += a.w_step) {
          T* target = gx + a.channels[e] * lanes;
          V even = load<V>(target) + grad[0] * w[0], odd = grad[1] * w[1];
#pragma GCC unroll 16
          for (int o = 2; o < resident; o += 2) {
            even += grad[o] * w[o];
            odd += grad[o + 1] * w[o + 1];
          }
          store<V>(target, even + odd);
        }
      }
    }
  }
}

// Which lanes of two rows `distance` apart go to the first of them, and to the second.
template <class I, int LANES>
struct TransposeStep {
  I first[LANES] = {}, second[LANES] = {};
  constexpr explicit TransposeStep(int distance) {
    for (int k = 0; k < LANES; ++k) {
      const bool upper = k & distance;
      first[k] = upper ? LANES + k - distance : k;
      second[k] = upper ? LANES + k : k + distance;
    }
  }
};

template <class T, int LANES, int DISTANCE>
__attribute__((always_inline)) inline void transpose_step(typename Vector<T, LANES>::type (&r)[LANES]) {
  using V = typename Vector<T, LANES>::type;
  using I = typename Index<sizeof(T)>::type;
  using Masks = typename Vector<I, LANES>::type;
  static constexpr TransposeStep<I, LANES> step(DISTANCE);
  const Masks first = load<Masks>(step.first), second = load<Masks>(step.second);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (i & DISTANCE) continue;
    const V a = r[i], b = r[i + DISTANCE];
    r[i] = __builtin_shuffle(a, b, first);
    r[i + DISTANCE] = __builtin_shuffle(a, b, second);
  }
  if constexpr (2 * DISTANCE < LANES) transpose_step<T, LANES, 2 * DISTANCE>(r);
}

// LANES x LANES values: row i, lane j changes places with row j, lane i.
template <class T, int LANES>
__attribute__((always_inline)) inline void transpose(typename Vector<T, LANES>::type (&r)[LANES]) {
  transpose_step<T, LANES, 1>(r);
}

// The pixel of every lane at one position, null where the lane has none.
template <class T, int LANES>
inline void find_pixels(const BlockSparseLanes<T>& a, Int row, Int col, T* (&pixel)[LANES]) {
  for (int l = 0; l < LANES; ++l) {
    const Int y = a.row0[l] + row, x = a.col0[l] + col;
    const bool inside = a.images[l] && y >= 0 && y < a.row_end[l] && x >= 0 && x < a.col_end[l];
    pixel[l] = inside ? a.images[l] + y * a.image_row + x * a.image_pixel : nullptr;
  }
}

template <class T>
void block_sparse_gather(const BlockSparseLanes<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  const BlockSparseLanes<T> a = args;  // a copy, which no store can be taken to change
  for (Int position = 0; position < a.rows * a.cols; ++position) {
    T* pixel[lanes];
    const Int row = position / a.cols, col = position % a.cols;
    find_pixels<T, lanes>(a, row, col, pixel);
    T* target = a.lanes + row * a.lane_row + col * a.lane_position;
    for (Int c = 0; c < a.lane_channels; c += lanes) {
      V r[lanes];
      if (a.channels - c >= lanes) {
#pragma GCC unroll 16
        for (int l = 0; l < lanes; ++l) r[l] = pixel[l] ? load<V>(pixel[l] + c) : V{};
      } else {
        for (int l = 0; l < lanes; ++l) {
          T values[lanes] = {};
          for (Int i = 0; pixel[l] && i < a.channels - c; ++i) values[i] = pixel[l][c + i];
          r[l] = load<V>(values);
        }
      }
      transpose<T, lanes>(r);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store<V>(target + (c + i) * lanes, r[i]);
    }
  }
}

template <class T>
void block_sparse_scatter(const BlockSparseLanes<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  const BlockSparseLanes<T> a = args;  // a copy, which no store can be taken to change
  for (Int position = 0; position < a.rows * a.cols; ++position) {
    T* pixel[lanes];
    const Int row = position / a.cols, col = position % a.cols;
    find_pixels<T, lanes>(a, row, col, pixel);
    const T* source = a.lanes + row * a.lane_row + col * a.lane_position;
    for (Int c = 0; c < a.channels; c += lanes) {
      V r[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) r[i] = load<V>(source + (c + i) * lanes);
      transpose<T, lanes>(r);
      if (a.channels - c >= lanes) {
#pragma GCC unroll 16
        for (int l = 0; l < lanes; ++l) {
          if (pixel[l]) store<V>(pixel[l] + c, r[l]);
        }
      } else {
        for (int l = 0; l < lanes; ++l) {
          T values[lanes];
          store<V>(values, r[l]);
          for (Int i = 0; pixel[l] && i < a.channels - c; ++i) pixel[l][c + i] = values[i];
        }
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
