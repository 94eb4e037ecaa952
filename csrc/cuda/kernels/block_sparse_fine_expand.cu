// Thin blocks as tiles: every tile of (block_out, 16) weights is written out, with zeros where no
// block is present, and block_sparse_tiles multiplies those that have one.
//
// The input gradient is computed so. A channel of it sums over rows and taps, each of which brings
// 16 outputs: what is present differs from channel to channel, while 16 channels of a tensor-core
// product share rows and taps. Sums gathered by (row, tap) would have to be scattered to their
// channels after 16 outputs, 1 KB of shared memory (8 clocks) per product of 16 x 8 x 16; a tile
// that is multiplied as a whole costs 1.6 clocks per product, so zeros are cheaper down to one
// channel in five of a tile, and at lower densities whole tiles are absent: .8 ^ 16 = 3 % at a
// density of .2, 44 % at .05, 72 % at .02. The forward is computed so where blocks are dense.
//
// Writing the tiles out costs one pass over the dense weight, a few microseconds. For the weight
// gradient all tiles are computed, and present columns are taken from them.
#include "cuda/kernels/block_sparse_fine.cuh"
#include "cuda/kernels/block_sparse_weight_grad.h"

namespace resgrow {
namespace fine {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 16;  // inputs

struct Tiles {
  int *row, *col, *tap;
  unsigned char* values;
};

struct ExpandArgs {
  const int *row, *col, *tap;
  unsigned char* values;
  Int units, tile_units;  // of 16 bytes: of the present columns, of the tiles
  int column_units;       // of a column of weights
  int rows, cols, taps, tile_cols, block_in, group_channels;
  Tiles to;
};

// Tiles without weights; absent ones, as whose row is -1, or all present.
template <bool present>
RESGROW_KERNEL(kThreads)
void clear_tiles(ExpandArgs a) {
  const Int step = static_cast<Int>(gridDim.x) * kThreads;
  for (Int i = static_cast<Int>(blockIdx.x) * kThreads + threadIdx.x; i < a.tile_units; i += step) {
    store(a.to.values + i * 16, uint4{0, 0, 0, 0});
    const int tile = static_cast<int>(i / (a.column_units * kTile));
    if (i % (a.column_units * kTile) != 0) continue;
    a.to.row[tile] = present ? tile / a.taps / a.tile_cols : -1;
    a.to.col[tile] = tile / a.taps % a.tile_cols;
    a.to.tap[tile] = tile % a.taps;
  }
}

// Copies present columns to their places in the tiles, or back; what lies beyond the channels is
// zero.
template <bool back>
RESGROW_KERNEL(kThreads)
void copy_columns(ExpandArgs a) {
  const Int step = static_cast<Int>(gridDim.x) * kThreads;
  for (Int i = static_cast<Int>(blockIdx.x) * kThreads + threadIdx.x; i < a.units; i += step) {
    const int column = static_cast<int>(i / a.column_units), block = column / a.block_in;
    const int unit = static_cast<int>(i - static_cast<Int>(column) * a.column_units);
    const int row = a.row[block], col = a.col[block], tap = a.tap[block];
    const int channel = col * a.block_in + column % a.block_in;
    const bool exists = row >= 0 && row < a.rows && col >= 0 && col < a.cols && tap >= 0 &&
                        tap < a.taps && channel < a.group_channels;
    const int tile = exists ? (row * a.tile_cols + channel / kTile) * a.taps + tap : 0;
    unsigned char* at =
        a.to.values +
        ((static_cast<Int>(tile) * kTile + channel % kTile) * a.column_units + unit) * 16;
    if (back) {
      store(a.values + i * 16, exists ? load<uint4>(at) : uint4{0, 0, 0, 0});
    } else if (exists) {
      store(at, load<uint4>(a.values + i * 16));
      if (unit == 0) atomicMax(a.to.row + tile, row);
    }
  }
}

// The call of the tiles; its workspace is what is left of this one's.
BlockSparseCall call_of_tiles(const BlockSparseCall& call, Tiles* to, Pieces* pieces) {
  BlockSparseCall wide = call;
  BlockSparseShape& s = wide.shape;
  const Int size = call.type == Type::float32 ? 4 : 2;
  s.block_in = kTile;
  s.cols = (s.channels / s.groups + kTile - 1) / kTile;
  wide.blocks = s.rows * s.cols * s.kernel[0] * s.kernel[1];
  to->row = pieces->next<int>(wide.blocks);
  to->col = pieces->next<int>(wide.blocks);
  to->tap = pieces->next<int>(wide.blocks);
  to->values = pieces->next<unsigned char>(wide.blocks * kTile * s.block_out * size);
  wide.row = to->row;
  wide.col = to->col;
  wide.tap = to->tap;
  wide.by_tap = nullptr;  // no path of tiles reads it
  wide.values = to->values;
  wide.workspace = nullptr;
  return wide;
}

const BlockSparsePath& path_of_tiles(const BlockSparseCall& call) {
  return call.product == BlockSparseProduct::weight_grad ? block_sparse_weight_grad
                                                         : block_sparse_tiles;
}

unsigned grid_of(Int units, int processors) {
  const Int blocks = (units + kThreads - 1) / kThreads, most = static_cast<Int>(processors) * 8;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace

bool expand_fits(const BlockSparseCall& call) {
  const BlockSparseShape& s = call.shape;
  const Int dense = s.rows * s.cols * s.kernel[0] * s.kernel[1] * s.block_in;
  if (s.block_out % kOutputs != 0 || s.block_in % kTile == 0 || call.blocks < 1) return false;
  if (s.groups > 1 && s.channels / s.groups % kTile != 0) return false;
  if (reinterpret_cast<unsigned long long>(call.values) % 16 != 0) return false;
  if (call.blocks * s.block_in >= 1 << 30 || dense >= 1 << 30) return false;
  Tiles to;
  Pieces pieces(nullptr);
  const BlockSparseCall wide = call_of_tiles(call, &to, &pieces);
  return path_of_tiles(call).fits(wide);
}

Int expand_workspace(const BlockSparseCall& call) {
  Tiles to;
  Pieces pieces(nullptr);
  const BlockSparseCall wide = call_of_tiles(call, &to, &pieces);
  return pieces.used() + path_of_tiles(call).workspace(wide);
}

Status expand(const BlockSparseCall& call, Stream stream) {
  const BlockSparseShape& s = call.shape;
  ExpandArgs a{call.row, call.col, call.tap, static_cast<unsigned char*>(call.values)};
  Pieces pieces(call.workspace);
  BlockSparseCall wide = call_of_tiles(call, &a.to, &pieces);
  wide.workspace = pieces.next<unsigned char>(0);
  a.column_units = static_cast<int>(s.block_out * (call.type == Type::float32 ? 4 : 2) / 16);
  a.units = call.blocks * s.block_in * a.column_units;
  a.tile_units = wide.blocks * kTile * a.column_units;
  a.rows = static_cast<int>(s.rows);
  a.cols = static_cast<int>(s.cols);
  a.taps = static_cast<int>(s.kernel[0] * s.kernel[1]);
  a.tile_cols = static_cast<int>(wide.shape.cols);
  a.block_in = static_cast<int>(s.block_in);
  a.group_channels = static_cast<int>(s.channels / s.groups);
  const dim3 tiles(grid_of(a.tile_units, call.processors)), block(kThreads);
  const dim3 columns(grid_of(a.units, call.processors));
  if (call.product == BlockSparseProduct::weight_grad) {
    Status status = launch(&clear_tiles<true>, tiles, block, 0, stream, a);
    if (!status) status = block_sparse_weight_grad.run(wide, stream);
    return status ? status : launch(&copy_columns<true>, columns, block, 0, stream, a);
  }
  Status status = launch(&clear_tiles<false>, tiles, block, 0, stream, a);
  if (!status) status = launch(&copy_columns<false>, columns, block, 0, stream, a);
  return status ? status : block_sparse_tiles.run(wide, stream);
}

}  // namespace fine
}  // namespace resgrow
