// The table of all kernels of block_sparse.
// Included once per instruction set (unit.inc): torch-free and std-free. Expects ISA and
// VECTOR_BYTES.
#include "cpu/kernels/block_sparse_args.h"
#include "cpu/kernels/block_sparse_correlate.h"
#include "cpu/kernels/block_sparse_index.h"
#include "cpu/kernels/block_sparse_lanes.h"
#include "cpu/kernels/block_sparse_pack.h"
#include "cpu/kernels/block_sparse_pointwise.h"
#include "cpu/kernels/block_sparse_tiles.h"

namespace resgrow {
namespace ISA {

constexpr int kTable = 32;

template <class T, int WIDTH>
struct BlockSparseTable {
  const T* (*tiles[(kMaxRows + 1) * kTable])(const BlockSparseTiles<T>&) = {};

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
  return {
      VECTOR_BYTES / sizeof(T),
      kMaxRows,
      {OutputVector<T, 4>::pixels, OutputVector<T, 8>::pixels, OutputVector<T, 16>::pixels},
      {All::width4.tiles, All::width8.tiles, All::width16.tiles},
      {Correlate::width4.entries, Correlate::width8.entries, Correlate::width16.entries},
      {Correlate::width4.kernels, Correlate::width8.kernels, Correlate::width16.kernels},
      {block_sparse_spread<T, 4>, block_sparse_spread<T, 8>, block_sparse_spread<T, 16>},
      {block_sparse_pointwise<T, 4>, block_sparse_pointwise<T, 8>, block_sparse_pointwise<T, 16>},
      block_sparse_fits,
      block_sparse_offsets,
      block_sparse_pack<T>,
      block_sparse_gather<T>,
      block_sparse_scatter<T>};
}

}  // namespace ISA
}  // namespace resgrow
