// Kernel of block_sparse's forward product, on grouped activations, and the table of them all.
// Included once per instruction set (unit.inc): torch-free and std-free. Expects ISA and
// VECTOR_BYTES.
#include "cpu/kernels/block_sparse_args.h"
#include "cpu/kernels/block_sparse_correlate.h"
#include "cpu/kernels/block_sparse_lanes.h"
#include "cpu/kernels/block_sparse_pack.h"

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
void block_sparse_tiles(const BlockSparseTiles<T>& args) {
  constexpr int lanes = OutputVector<T, WIDTH>::lanes, vectors = OutputVector<T, WIDTH>::vectors;
  using V = typename Vector<T, lanes>::type;
  const BlockSparseTiles<T> a = args;  // a copy, which no store can be taken to change
  const T* ahead = a.ahead;
  for (Int i = 0; i < a.row_tiles; ++i) {
    for (Int j = 0; j < a.col_tiles; ++j) {
      const T* x = a.x + i * ROWS * a.x_row + j * COLS * kGroup;
      V acc[ROWS][COLS][vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const V bias = a.bias ? load<V>(a.bias + v * lanes) : V{};
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 32
          for (int t = 0; t < COLS; ++t) acc[r][t][v] = bias;
        }
      }
      // The output's lines are fetched while the sums are computed, or the stores would wait for
      // them.
      T* out = a.out + i * ROWS * a.out_row + j * COLS * a.out_pixel;
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const T* row = out + r * a.out_row;
#pragma GCC unroll 32
        for (int t = 0; t < COLS; ++t, row += a.out_pixel) __builtin_prefetch(row, 1);
      }
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
            for (int v = 0; v < vectors; ++v) acc[r][t][v] += weight[v] * pixel;
          }
        }
      }
      if (a.positive) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          const V positive = load<V>(a.positive + v * lanes),
                  negative = load<V>(a.negative + v * lanes);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 32
            for (int t = 0; t < COLS; ++t)
              acc[r][t][v] *= acc[r][t][v] >= V{} ? positive : negative;
          }
        }
      }
      if (a.outputs == WIDTH) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
          T* row = out + r * a.out_row;
#pragma GCC unroll 32
          for (int t = 0; t < COLS; ++t, row += a.out_pixel) {
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) store<V>(row + v * lanes, acc[r][t][v]);
          }
        }
        continue;
      }
      T buffer[ROWS][COLS][WIDTH];
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 32
        for (int t = 0; t < COLS; ++t) {
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) store<V>(&buffer[r][t][v * lanes], acc[r][t][v]);
        }
      }
      for (int r = 0; r < ROWS; ++r) {
        for (int t = 0; t < COLS; ++t) {
          for (Int o = 0; o < a.outputs; ++o)
            out[r * a.out_row + t * a.out_pixel + o] = buffer[r][t][o];
        }
      }
    }
  }
}

constexpr int kTable = 32;

template <class T, int WIDTH>
struct BlockSparseTable {
  void (*tiles[(kMaxRows + 1) * kTable])(const BlockSparseTiles<T>&) = {};

  template <int ROWS, int COLS>
  constexpr void fill_tiles() {
    tiles[ROWS * kTable + COLS] = block_sparse_tiles<T, WIDTH, ROWS, COLS>;
    if constexpr (COLS > 1) {
      fill_tiles<ROWS, COLS - 1>();
    } else if constexpr (ROWS > 1) {
      fill_tiles<ROWS - 1, OutputVector<T, WIDTH>::pixels / (ROWS - 1)>();
    }
  }
};

template <class T, int WIDTH>
constexpr BlockSparseTable<T, WIDTH> make_block_sparse_table() {
  BlockSparseTable<T, WIDTH> table;
  if constexpr (OutputVector<T, WIDTH>::available) {
    table.template fill_tiles<kMaxRows, OutputVector<T, WIDTH>::pixels / kMaxRows>();
  }
  return table;
}

template <class T>
struct BlockSparseInstances {
  static constexpr auto width4 = make_block_sparse_table<T, 4>();
  static constexpr auto width8 = make_block_sparse_table<T, 8>();
  static constexpr auto width16 = make_block_sparse_table<T, 16>();
};

template <class T>
constexpr BlockSparseKernels<T> block_sparse_kernels() {
  using All = BlockSparseInstances<T>;
  using Correlate = CorrelateInstances<T>;
  return {VECTOR_BYTES / sizeof(T),
          kMaxRows,
          {OutputVector<T, 4>::pixels, OutputVector<T, 8>::pixels, OutputVector<T, 16>::pixels},
          {All::width4.tiles, All::width8.tiles, All::width16.tiles},
          {Correlate::width4.entries, Correlate::width8.entries, Correlate::width16.entries},
          {Correlate::width4.kernels, Correlate::width8.kernels, Correlate::width16.kernels},
          {block_sparse_spread<T, 4>, block_sparse_spread<T, 8>, block_sparse_spread<T, 16>},
          block_sparse_pack<T>,
          block_sparse_gather<T>,
          block_sparse_scatter<T>};
}

}  // namespace ISA
}  // namespace resgrow
