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
  // run(sum, its place in a tensor with these strides). Four pixels to an address: with one of
  // each, the compiler keeps them all, and they crowd out the products.
  template <class P, class F>
  __attribute__((always_inline)) inline void walk(P* place, Int row_step, Int pixel_step,
                                                  const F& run) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      P* four = place + r * row_step;
#pragma GCC unroll 8
      for (int t = 0; t < COLS; t += 4, four += 4 * pixel_step) {
        asm("" : "+r"(four));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          if (t + i >= COLS) break;
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) run(sums[r][t + i][v], four + i * pixel_step, v);
        }
      }
    }
  }

  // Adds the products of one entry: x points to its pixels.
  __attribute__((always_inline)) inline void add_entry(const BlockSparseTiles<T>& a, const T* w,
                                                       const T* x) {
    V weight[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) weight[v] = load<V>(w + v * lanes);
    walk(x, a.x_row, a.x_pixel, [&](V& sum, const T* pixel, int v) { sum += weight[v] * *pixel; });
  }

  // Adds all entries; asks for a line of `ahead` with each.
  __attribute__((always_inline)) inline void add_products(const BlockSparseTiles<T>& a,
                                                          const BlockSparsePiece<T>& piece,
                                                          const T* x, const T*& ahead) {
    // An addition waits for the one before it. Few pixels: entries take turns at several sums.
    constexpr int turns = ROWS * COLS * vectors >= 4 ? 1 : ROWS * COLS * vectors >= 2 ? 4 : 8;
    const Int step = ahead < a.ahead_end ? 64 / sizeof(T) : 0;
    const T* w = piece.w;
    Int e = 0;
    if constexpr (turns > 1) {
      Tile others[turns - 1] = {};
      for (; e + turns <= piece.entries; e += turns, w += turns * a.w_step) {
        add_entry(a, w, x + piece.offsets[e]);
#pragma GCC unroll 8
        for (int k = 1; k < turns; ++k)
          others[k - 1].add_entry(a, w + k * a.w_step, x + piece.offsets[e + k]);
      }
#pragma GCC unroll 8
      for (int k = 0; k < turns - 1; ++k) {
#pragma GCC unroll 4
        for (int t = 0; t < ROWS * COLS * vectors; ++t)
          (&sums[0][0][0])[t] += (&others[k].sums[0][0][0])[t];
      }
    }
    for (; e < piece.entries; ++e, w += a.w_step, ahead += step) {
      __builtin_prefetch(ahead, 0, 2);
      add_entry(a, w, x + piece.offsets[e]);
    }
  }

  // Stores the first output and those beside it.
  __attribute__((always_inline)) inline void finish(const BlockSparseTiles<T>& a, Int output,
                                                    Int place) {
    if (a.residual) {
      walk(a.residual + place, a.out_row, a.out_pixel,
           [](V& sum, const T* p, int v) { sum += load<V>(p + v * lanes); });
    }
    if (a.positive) {
      V positive[vectors], negative[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        positive[v] = load<V>(a.positive + output + v * lanes);
        negative[v] = load<V>(a.negative + output + v * lanes);
      }
      each([&](V& sum, int v) { sum *= sum >= V{} ? positive[v] : negative[v]; });
    }
    walk(a.out + place, a.out_row, a.out_pixel,
         [](V& sum, T* p, int v) { store<V>(p + v * lanes, sum); });
  }

  // The same where the output ends within the vector.
  __attribute__((always_inline)) inline void finish_some(const BlockSparseTiles<T>& a, Int output,
                                                         Int place) {
    T all[ROWS * COLS * WIDTH];
    T* next = all;
    each([&](V& sum, int) {
      store<V>(next, sum);
      next += lanes;
    });
    for (int i = 0; i < ROWS * COLS; ++i) {
      const Int pixel = place + i / COLS * a.out_row + i % COLS * a.out_pixel;
      for (Int o = 0; output + o < a.outputs; ++o) {
        T sum = all[i * WIDTH + o];
        if (a.residual) sum += a.residual[pixel + o];
        if (a.positive) sum *= sum >= 0 ? a.positive[output + o] : a.negative[output + o];
        a.out[pixel + o] = sum;
      }
    }
  }
};

template <class T, int WIDTH, int ROWS, int COLS>
const T* block_sparse_tiles(const BlockSparseTiles<T>& args) {
  using Sums = Tile<T, WIDTH, ROWS, COLS>;
  using V = typename Sums::V;
  const BlockSparseTiles<T> a = args;  // a copy, which no store can be taken to change
  const T* ahead = a.ahead;
  // Stores would wait for their lines: those of the rows that follow are fetched meanwhile.
  const Int next = a.row_tiles * ROWS * a.out_row;
  for (Int p = a.first_piece; p < a.last_piece; ++p) {
    const BlockSparsePiece<T> piece = a.pieces[p];
    for (Int i = 0; i < a.row_tiles; ++i) {
      for (Int j = 0; j < a.col_tiles; ++j) {
        const Int place = i * ROWS * a.out_row + j * COLS * a.out_pixel + piece.first;
        Sums tile;
        tile.each([&](V& sum, int v) {
          sum = a.bias ? load<V>(a.bias + piece.first + v * Sums::lanes) : V{};
        });
        tile.walk(a.out + place + next, a.out_row, a.out_pixel,
                  [](V&, T* p, int) { __builtin_prefetch(p, 1); });
        tile.add_products(a, piece, a.x + i * ROWS * a.x_row + j * COLS * a.x_pixel, ahead);
        if (piece.first + WIDTH <= a.outputs) {
          tile.finish(a, piece.first, place);
        } else {
          tile.finish_some(a, piece.first, place);
        }
      }
    }
  }
  return ahead;
}

}  // namespace ISA
}  // namespace resgrow
