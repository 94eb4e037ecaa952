// Kernel of block_sparse's weight gradient, on pixels at any distance.
namespace resgrow {
namespace ISA {

constexpr int kMaxEntries = 8;  // of one tile

// Outputs of an entry: one vector, or two where the set's are half as wide. Of two, half as many
// entries fit in 16 registers.
template <class T, int WIDTH>
struct CorrelateVector {
  static constexpr int full = VECTOR_BYTES / sizeof(T);
  static constexpr int lanes = WIDTH < full ? WIDTH : full;
  static constexpr int vectors = WIDTH / lanes;
  static constexpr int entries = vectors > 2                         ? 0
                                 : vectors == 2 && VECTOR_BYTES < 64 ? kMaxEntries / 2
                                                                     : kMaxEntries;
};

// All entries in turn for every pixel: their accumulators are independent chains of additions.
template <class T, int WIDTH, int ENTRIES>
void block_sparse_correlate(const BlockSparseCorrelate<T>& args) {
  constexpr int lanes = CorrelateVector<T, WIDTH>::lanes,
                vectors = CorrelateVector<T, WIDTH>::vectors;
  using V = typename Vector<T, lanes>::type;
  const BlockSparseCorrelate<T> a = args;  // a copy, which no store can be taken to change
  V acc[ENTRIES][vectors];
  Int offsets[ENTRIES];
#pragma GCC unroll 8
  for (int e = 0; e < ENTRIES; ++e) {
    offsets[e] = a.offsets[e];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) acc[e][v] = load<V>(a.out + e * a.out_step + v * lanes);
  }
  const T* ahead = a.ahead;
  for (Int row = 0; row < a.rows; ++row) {
    const T* x = a.x + row * a.x_row;
    const T* g = a.g + row * a.g_row;
    for (const T* end = g + a.cols * a.g_pixel; g < end; g += a.g_pixel, x += a.x_pixel) {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + 64 / sizeof(T), 0, 2);
      ahead += 128 / sizeof(T);
      V grad[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) grad[v] = load<V>(g + v * lanes);
#pragma GCC unroll 8
      for (int e = 0; e < ENTRIES; ++e) {
        const T pixel = x[offsets[e]];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) acc[e][v] += grad[v] * pixel;
      }
    }
  }
#pragma GCC unroll 8
  for (int e = 0; e < ENTRIES; ++e) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store<V>(a.out + e * a.out_step + v * lanes, acc[e][v]);
  }
}

template <class T, int WIDTH>
struct CorrelateTable {
  int entries = CorrelateVector<T, WIDTH>::entries;
  void (*kernels[kMaxEntries + 1])(const BlockSparseCorrelate<T>&) = {};

  template <int ENTRIES>
  constexpr void fill() {
    kernels[ENTRIES] = block_sparse_correlate<T, WIDTH, ENTRIES>;
    if constexpr (ENTRIES > 1) fill<ENTRIES - 1>();
  }
};

template <class T, int WIDTH>
constexpr CorrelateTable<T, WIDTH> make_correlate_table() {
  CorrelateTable<T, WIDTH> table;
  constexpr int entries = CorrelateVector<T, WIDTH>::entries;
  if constexpr (entries > 0) table.template fill<entries>();
  return table;
}

template <class T>
struct CorrelateInstances {
  static constexpr auto width4 = make_correlate_table<T, 4>();
  static constexpr auto width8 = make_correlate_table<T, 8>();
  static constexpr auto width16 = make_correlate_table<T, 16>();
};

}  // namespace ISA
}  // namespace resgrow
