// Kernels of block_sparse on lanes: the input gradient, and the transposition into lanes and back.
//
// A narrow block (16 x 1) has one input channel: in its input gradient there is no vector over
// channels. The lanes are images (or tiles of them) instead: every tap is then an aligned vector,
// and borders, strides and ragged widths cost nothing.
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

#if defined(__clang__)
#  define RESGROW_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#  define RESGROW_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Masks{__VA_ARGS__})
#endif

// 0, 1, ... N - 1 as template arguments: masks of shuffles must be literals to become the one
// instruction that they are.
template <int N, int... K>
struct CountTo : CountTo<N - 1, N - 1, K...> {};

// Two rows to two rows: their values interleaved, `SIZE` at a time and within 16 bytes, or their
// even and their odd 16 bytes.
template <int... K>
struct CountTo<0, K...> {
  template <class T>
  struct Rows {
    static constexpr int lanes = sizeof...(K), chunk = 16 / sizeof(T);
    using V = typename Vector<T, lanes>::type;
    using Masks = typename Vector<typename Index<sizeof(T)>::type, lanes>::type;

    static constexpr int interleaved(int k, int size, bool high) {
      const int pair = k % chunk / size, half = high ? chunk / size / 2 : 0;
      return k / chunk * chunk + (pair / 2 + half) * size + k % size + pair % 2 * lanes;
    }
    static constexpr int alternate(int k, bool odd) {
      return (k / chunk * 2 + odd) * chunk + k % chunk;
    }

    template <int SIZE>
    __attribute__((always_inline)) static void interleave(V& a, V& b) {
      const V low = RESGROW_SHUFFLE(a, b, interleaved(K, SIZE, false)...);
      b = RESGROW_SHUFFLE(a, b, interleaved(K, SIZE, true)...);
      a = low;
    }
    __attribute__((always_inline)) static void alternate(V& a, V& b) {
      const V even = RESGROW_SHUFFLE(a, b, alternate(K, false)...);
      b = RESGROW_SHUFFLE(a, b, alternate(K, true)...);
      a = even;
    }
  };
};

template <class T, int LANES, int SIZE>
__attribute__((always_inline)) inline void interleave(typename Vector<T, LANES>::type (&r)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (!(i & SIZE)) CountTo<LANES>::template Rows<T>::template interleave<SIZE>(r[i], r[i + SIZE]);
  }
}

template <class T, int LANES, int DISTANCE>
__attribute__((always_inline)) inline void alternate(typename Vector<T, LANES>::type (&r)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (!(i & DISTANCE)) CountTo<LANES>::template Rows<T>::alternate(r[i], r[i + DISTANCE]);
  }
}

// LANES x LANES values: row i, lane j changes places with row j, lane i. Squares of 16 bytes first,
// then these among each other.
template <class T, int LANES>
__attribute__((always_inline)) inline void transpose(typename Vector<T, LANES>::type (&r)[LANES]) {
  constexpr int chunk = 16 / sizeof(T), chunks = LANES / chunk;
  interleave<T, LANES, 1>(r);
  if constexpr (chunk == 4) {
    interleave<T, LANES, 2>(r);
    // Of every four rows, the inner two came out in each other's places.
#pragma GCC unroll 4
    for (int i = 1; i < LANES; i += 4) {
      const auto row = r[i];
      r[i] = r[i + 1];
      r[i + 1] = row;
    }
  }
  if constexpr (chunks > 1) alternate<T, LANES, chunk>(r);
  if constexpr (chunks > 2) alternate<T, LANES, 2 * chunk>(r);
}

// A row of positions: where each lane's begins, and the columns at which every lane has a pixel and
// at which any has.
template <class T, int LANES>
struct LaneRow {
  T* start[LANES];  // column 0; null: no pixels
  Int first[LANES], last[LANES], full_first, full_last, any_first, any_last;

  LaneRow(const BlockSparseLanes<T>& a, Int row)
      : full_first(0), full_last(a.cols), any_first(a.cols), any_last(0) {
    for (int l = 0; l < LANES; ++l) {
      const Int y = a.row0[l] + row, x = a.col0[l];
      const bool inside = a.images[l] && y >= 0 && y < a.row_end[l];
      start[l] = inside ? a.images[l] + y * a.image_row + x * a.image_pixel : nullptr;
      first[l] = x < 0 ? -x : 0;
      last[l] = inside ? a.col_end[l] - x : 0;
      if (first[l] > full_first) full_first = first[l];
      if (last[l] < full_last) full_last = last[l];
      if (first[l] < any_first) any_first = first[l];
      if (last[l] > any_last) any_last = last[l];
    }
  }
  bool full(Int col) const { return col >= full_first && col < full_last; }
  bool empty(Int col) const { return col < any_first || col >= any_last; }
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
template <class T>
void block_sparse_gather(const BlockSparseLanes<T>& args) {
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  using V = typename Vector<T>::type;
  const BlockSparseLanes<T> a = args;  // a copy, which no store can be taken to change
  for (Int row = 0; row < a.rows; ++row) {
    const LaneRow<T, lanes> line(a, row);
    for (Int col = 0; col < a.cols; ++col) {
      T* target = a.lanes + row * a.lane_row + col * a.lane_position;
      if (line.empty(col)) {
        for (Int c = 0; c < a.lane_channels; ++c) store(target + c * lanes, V{});
        continue;
      }
      for (Int c = 0; c < a.lane_channels; c += lanes) {
        V r[lanes];
        if (line.full(col) && a.channels - c >= lanes) {
#pragma GCC unroll 16
          for (int l = 0; l < lanes; ++l) {
            const T* source = line.start[l] + col * a.image_pixel + c;
            __builtin_prefetch(source + a.ahead, 0, 2);
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
  // A square at the edge passes through memory, on the same path: the registers of the others would
  // be memory too if edges addressed them.
  T square[lanes * lanes];
  T* edge[lanes];
  for (int l = 0; l < lanes; ++l) edge[l] = square + l * lanes;
  for (Int row = 0; row < a.rows; ++row) {
    const LaneRow<T, lanes> line(a, row);
    for (Int col = 0; col < a.cols; ++col) {
      const T* source = a.lanes + row * a.lane_row + col * a.lane_position;
      for (Int c = 0; c < a.channels; c += lanes) {
        const bool whole = line.full(col) && a.channels - c >= lanes;
        T* const* to = whole ? line.start : edge;
        const Int offset = whole ? col * a.image_pixel + c : 0;
        V r[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) r[i] = load<V>(source + (c + i) * lanes);
        transpose<T, lanes>(r);
#pragma GCC unroll 16
        for (int l = 0; l < lanes; ++l) {
          store<V>(to[l] + offset, r[l]);
          __builtin_prefetch(to[l] + offset + a.ahead, 1, 2);
        }
        if (whole) continue;
        for (int l = 0; l < lanes; ++l) {
          T* target = line.pixel(l, col, a.image_pixel);
          store_some(target ? target + c : nullptr, load<V>(edge[l]), a.channels - c);
        }
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
