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

// A row of positions: where each lane's begins, and the columns at which every lane has a pixel.
template <class T, int LANES>
struct LaneRow {
  T* start[LANES];  // column 0; null: no pixels
  Int first[LANES], last[LANES], full_first, full_last;

  LaneRow(const BlockSparseLanes<T>& a, Int row) : full_first(0), full_last(a.cols) {
    for (int l = 0; l < LANES; ++l) {
      const Int y = a.row0[l] + row, x = a.col0[l];
      const bool inside = a.images[l] && y >= 0 && y < a.row_end[l];
      start[l] = inside ? a.images[l] + y * a.image_row + x * a.image_pixel : nullptr;
      first[l] = x < 0 ? -x : 0;
      last[l] = inside ? a.col_end[l] - x : 0;
      if (first[l] > full_first) full_first = first[l];
      if (last[l] < full_last) full_last = last[l];
    }
  }
  bool full(Int col) const { return col >= full_first && col < full_last; }
  T* pixel(int l, Int col, Int step) const {
    return col >= first[l] && col < last[l] ? start[l] + col * step : nullptr;
  }
};

template <class V, class T>
inline V load_some(const T* values, Int count) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  if (!values) return V{};
  if (count >= lanes) return load<V>(values);
  T all[lanes] = {};
  for (Int i = 0; i < count; ++i) all[i] = values[i];
  return load<V>(all);
}

template <class V, class T>
inline void store_some(T* target, const V& v, Int count) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  if (!target) return;
  if (count >= lanes) return store<V>(target, v);
  T all[lanes];
  store<V>(all, v);
  for (Int i = 0; i < count; ++i) target[i] = all[i];
}

// Lanes are images far apart: their lines come early enough only if they are asked for.
constexpr int kAhead = 4;  // pixels

template <class T>
void block_sparse_gather(const BlockSparseLanes<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  const BlockSparseLanes<T> a = args;  // a copy, which no store can be taken to change
  for (Int row = 0; row < a.rows; ++row) {
    const LaneRow<T, lanes> line(a, row);
    for (Int col = 0; col < a.cols; ++col) {
      T* target = a.lanes + row * a.lane_row + col * a.lane_position;
      for (Int c = 0; c < a.lane_channels; c += lanes) {
        V r[lanes];
        if (line.full(col) && a.channels - c >= lanes) {
#pragma GCC unroll 16
          for (int l = 0; l < lanes; ++l) {
            const T* source = line.start[l] + col * a.image_pixel + c;
            __builtin_prefetch(source + kAhead * a.image_pixel);
            r[l] = load<V>(source);
          }
        } else {
          for (int l = 0; l < lanes; ++l) {
            const T* source = line.pixel(l, col, a.image_pixel);
            r[l] = load_some<V>(source ? source + c : nullptr, a.channels - c);
          }
        }
        transpose<T, lanes>(r);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) store<V>(target + (c + i) * lanes, r[i]);
      }
    }
  }
}

template <class T>
void block_sparse_scatter(const BlockSparseLanes<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  const BlockSparseLanes<T> a = args;  // a copy, which no store can be taken to change
  for (Int row = 0; row < a.rows; ++row) {
    const LaneRow<T, lanes> line(a, row);
    for (Int col = 0; col < a.cols; ++col) {
      const T* source = a.lanes + row * a.lane_row + col * a.lane_position;
      for (Int c = 0; c < a.channels; c += lanes) {
        V r[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) r[i] = load<V>(source + (c + i) * lanes);
        transpose<T, lanes>(r);
        if (line.full(col) && a.channels - c >= lanes) {
#pragma GCC unroll 16
          for (int l = 0; l < lanes; ++l) {
            T* target = line.start[l] + col * a.image_pixel + c;
            __builtin_prefetch(target + kAhead * a.image_pixel, 1);
            store<V>(target, r[l]);
          }
          continue;
        }
        for (int l = 0; l < lanes; ++l) {
          T* target = line.pixel(l, col, a.image_pixel);
          store_some<V>(target ? target + c : nullptr, r[l], a.channels - c);
        }
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
