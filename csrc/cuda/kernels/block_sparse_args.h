// Border between the CUDA glue of block_sparse and its kernels. Three ways to compute the same
// three products; the glue takes the first that fits.
#pragma once

#include "cuda/border.h"

namespace resgrow {

// y (N, Ho, Wo, O) = conv(x (N, H, W, C), values), every tensor dense and channels_last. A linear
// layer is one with N = rows and images of one pixel.
struct BlockSparseShape {
  Int samples, channels, height, width, outputs, out_height, out_width;
  Int kernel[2], stride[2], padding[2], dilation[2], groups;
  Int block_out, block_in;
  Int rows, cols;  // rows x cols blocks per tap, cols within a group; ragged at the upper edges
};

enum class BlockSparseProduct {
  forward,      // y from x and values, with the epilogue
  input_grad,   // x from y and values: every value of x is written
  weight_grad,  // values from y and x
};

struct BlockSparseCall {
  BlockSparseProduct product;
  BlockSparseShape shape;
  Type type;       // of x, values, y and the epilogue; sums are in float, in double for double
  bool tf32;       // float operands may be rounded to tf32
  int processors;  // multiprocessors of the device
  // The present blocks: row, column and tap of each, sorted by row, then by 16 input channels, tap
  // and column; and their numbers in the order of row, tap, column. Whether they lie in their
  // ranges is not known to the host: a kernel must not leave its tensors where they do not.
  const int *row, *col, *tap, *by_tap;
  Int blocks;
  void *x, *values, *y;  // values: (blocks, block_in, block_out). The product's result is written
  // Forward only, each may be null: y + bias[o] + residual, then times positive[o] where that is
  // >= 0 and times negative[o] elsewhere. residual: like y; the others: (outputs).
  const void *bias, *residual, *positive, *negative;
  void* workspace;  // as many bytes as the path asked for, aligned to 256
};

struct BlockSparsePath {
  bool (*fits)(const BlockSparseCall&);
  Int (*workspace)(const BlockSparseCall&);  // bytes
  Status (*run)(const BlockSparseCall&, Stream);
};

extern const BlockSparsePath block_sparse_tiles;   // whole tiles of blocks on tensor cores
extern const BlockSparsePath block_sparse_fine;    // thin blocks, gathered into such tiles
extern const BlockSparsePath block_sparse_scalar;  // any block, any type, without tensor cores

}  // namespace resgrow
