// Forward product of block_sparse: one output vector of a tile of pixels, in registers.
namespace resgrow {
namespace ISA {

// Accumulators of a register tile. Beside them stand the vector they share and, without FMA or
// without an embedded broadcast, a broadcast value and a product.
#if VECTOR_BYTES == 64
constexpr int kAccumulators = 28;
#elif VECTOR_BYTES == 32
constexpr int kAccumulators = 12;
#else
constexpr int kAccumulators = 10;
#endif

constexpr int kMaxRows = 4;  // rows of pixels in one tile

// An output vector of WIDTH values: one vector, or two where the set's are half as wide.
template <class T, int WIDTH>
struct OutputVector {
  static constexpr int full = VECTOR_BYTES / sizeof(T);
  static constexpr int lanes = WIDTH < full ? WIDTH : full;
  static constexpr int vectors = WIDTH / lanes;
  static constexpr bool available = vectors <= 2;
  // Fewer for what is rarely used: every size is an instance.
  static constexpr int most = sizeof(T) == 8                     ? 6
                              : WIDTH < 16 && kAccumulators > 14 ? 14
                                                                 : kAccumulators;
  static constexpr int room = kAccumulators / vectors;
  static constexpr int pixels = !available ? 0 : room < most ? room : most;
};

template <class T, int WIDTH, int ROWS, int COLS>
struct Tile {
  static constexpr int lanes = OutputVector<T, WIDTH>::lanes;
  static constexpr int vectors = OutputVector<T, WIDTH>::vectors;
  using V = typename Vector<T, lanes>::type;

  V sums[ROWS][COLS][vectors];

  // run(sum, which vector of the output vector)
  template <class F>
  __attribute__((always_inline)) inline void each(const F& run) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 32
      for (int t = 0; t < COLS; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) run(sums[r][t][v], v);
      }
    }
  }
  // run(sum, its place in a tensor with the strides of the output)
  template <class P, class F>
  __attribute__((always_inline)) inline void walk(const BlockSparseTiles<T>& a, P* place,
                                                  const F& run) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      P* row = place + r * a.out_row;
#pragma GCC unroll 32
      for (int t = 0; t < COLS; ++t, row += a.out_pixel) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) run(sums[r][t][v], row + v * lanes);
      }
    }
  }

  // Adds the entries' products; asks for a line of `ahead` with each.
  __attribute__((always_inline)) inline void add_products(const BlockSparseTiles<T>& a, const T* x,
                                                          const T*& ahead) {
    const T* w = a.w;
    for (Int e = 0; e < a.entries; ++e, w += a.w_step, ahead += a.ahead_step) {
      __builtin_prefetch(ahead, 0, 2);
      const T* p = x + a.offsets[e];
      V weight[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) weight[v] = load<V>(w + v * lanes);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const T* q = p + r * a.x_row;
#pragma GCC unroll 32
        for (int t = 0; t < COLS; ++t) {
          const T pixel = q[t * kGroup];
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sums[r][t][v] += weight[v] * pixel;
        }
      }
    }
  }

  __attribute__((always_inline)) inline void finish(const BlockSparseTiles<T>& a, Int place) {
    if (a.residual) walk(a, a.residual + place, [](V& sum, const T* p) { sum += load<V>(p); });
    if (a.positive) {
      V positive[vectors], negative[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        positive[v] = load<V>(a.positive + v * lanes);
        negative[v] = load<V>(a.negative + v * lanes);
      }
      each([&](V& sum, int v) { sum *= sum >= V{} ? positive[v] : negative[v]; });
    }
    walk(a, a.out + place, [](V& sum, T* p) { store<V>(p, sum); });
  }

  // The same where the output ends within the vector.
  void finish_some(const BlockSparseTiles<T>& a, Int place) {
    T all[ROWS * COLS * WIDTH];
    T* next = all;
    each([&](V& sum, int) {
      store<V>(next, sum);
      next += lanes;
    });
    for (int i = 0; i < ROWS * COLS; ++i) {
      const Int pixel = place + i / COLS * a.out_row + i % COLS * a.out_pixel;
      for (Int o = 0; o < a.outputs; ++o) {
        T sum = all[i * WIDTH + o];
        if (a.residual) sum += a.residual[pixel + o];
        if (a.positive) sum *= sum >= 0 ? a.positive[o] : a.negative[o];
        a.out[pixel + o] = sum;
      }
    }
  }
};

template <class T, int WIDTH, int ROWS, int COLS>
void block_sparse_tiles(const BlockSparseTiles<T>& args) {
  using Sums = Tile<T, WIDTH, ROWS, COLS>;
  using V = typename Sums::V;
  const BlockSparseTiles<T> a = args;  // a copy, which no store can be taken to change
  const T* ahead = a.ahead;
  for (Int i = 0; i < a.row_tiles; ++i) {
    for (Int j = 0; j < a.col_tiles; ++j) {
      const Int place = i * ROWS * a.out_row + j * COLS * a.out_pixel;
      Sums tile;
      tile.each([&](V& sum, int v) { sum = a.bias ? load<V>(a.bias + v * Sums::lanes) : V{}; });
      // The output's lines are fetched while the sums are computed, or the stores would wait for
      // them.
      tile.walk(a, a.out + place, [](V&, T* p) { __builtin_prefetch(p, 1); });
      tile.add_products(a, a.x + i * ROWS * a.x_row + j * COLS * kGroup, ahead);
      if (a.outputs == WIDTH) {
        tile.finish(a, place);
      } else {
        tile.finish_some(a, place);
      }
    }
  }
}

}  // namespace ISA
}  // namespace resgrow
