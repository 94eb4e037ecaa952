// Border between the glue of block_sparse and its kernels: plain structs of pointers and strides.
// Strides count elements.
//
// Two layouts of an activation: *grouped*, 16 channels of a pixel side by side (kGroup), and
// *lanes*, one vector per channel and position whose lanes are images or tiles of images.
#pragma once

#include "cpu/kernels/squared_grad_args.h"

namespace resgrow {

constexpr int kGroup = 16;
constexpr int kWidths = 3;  // widths of output vectors: 4 << index

// offsets[e]: where entry e, a channel of a block, finds its pixels in grouped rows.
struct BlockSparseOffsets {
  const int *col, *tap;       // of each block
  const int *starts, *bases;  // of each row of blocks: its first block, its first channel
  const int* taps;            // offset of each tap
  Int rows, block_in;
  int group_step;
  int* offsets;
};

// A band of rows of one image, zero outside the image, channels in groups. Target pixel (row, col)
// of phase p holds image pixel (row0 + row * row_step, col0 + col * col_step + p): with a stride,
// neighbouring outputs read neighbouring pixels of one phase.
template <class T>
struct BlockSparsePack {
  const T* source;  // pixel (0, 0)
  Int channels, groups, source_pixel, source_row, height, width;
  Int row0, row_step, rows, col0, col_step, cols, phases;
  T* target;
  Int group_step;  // between groups; rows and phases are dense
};

// The entries of one output vector: pixel p adds w[e] x[offsets[e] + p].
template <class T>
struct BlockSparsePiece {
  const int* offsets;
  const T* w;
  Int entries, first;  // first: output
};

// out[o] = slopes(bias[o] + sum_e w[e][o] x[offset_e] + residual[o]) for pieces of the outputs and
// tiles of pixels: row_tiles x col_tiles of them.
template <class T>
struct BlockSparseTiles {
  const T* x;
  Int x_pixel, x_row;
  const BlockSparsePiece<T>* pieces;
  Int first_piece, last_piece;
  Int w_step;
  T* out;
  Int out_pixel, out_row, outputs;
  const T *bias, *positive, *negative;  // null: none; the slopes of sums >= 0 and < 0
  const T* residual;                    // null: none; strides of out
  Int row_tiles, col_tiles;
  const T *ahead, *ahead_end;  // what is read next, fetched a cache line per entry meanwhile
};

// out[e][o] += sum over pixels g[pixel][o] x[offset_e + pixel], for a few entries at once.
template <class T>
struct BlockSparseCorrelate {
  const T* x;
  Int x_pixel, x_row;
  const T* g;
  Int g_pixel, g_row;
  Int rows, cols;
  const int* offsets;
  T* out;
  Int out_step;
  const T* ahead;  // what is read next, fetched two cache lines per pixel meanwhile
};

// gx[channel_e] += sum_o w[e][o] g[list][o], all of them vectors of lanes, for some positions in a
// row; a list holds the entries that read the same outputs at the same tap.
template <class T>
struct BlockSparseSpread {
  const T* g;  // first position
  Int g_position;
  const int *list_offsets, *list_first, *list_last;  // where in g; which entries
  Int lists;
  const int* channels;
  const T* w;
  Int w_step;
  T* gx;
  Int gx_position, positions;
};

// The same of a pointwise product from images to images: lanes are neighbouring pixels. Entries are
// sorted by row of blocks.
template <class T>
struct BlockSparsePointwise {
  const T* g;
  Int g_pixel, outputs;
  T* gx;
  Int gx_pixel, channels, pixels;
  const int* starts;  // first entry of each row of blocks, rows + 1 of them
  Int rows;
  const int *from, *to;  // where in `sums` an entry finds its channel's sum and leaves it
  const T* w;
  Int w_step;  // outputs of a block
  T* sums;     // [channel][lane], whole squares of them; zeros where no entry leaves one
};

// Images to lanes or back. Lane l holds the tile of images[l] (null: zeros) that begins at
// (row0[l], col0[l]), which may lie outside; lanes are [position][channel][lane].
template <class T>
struct BlockSparseLanes {
  T* const* images;  // pixel (0, 0); read by gather, written by scatter
  const int *row0, *col0;
  const int *row_end, *col_end;  // first row and column of the image that is not the tile's
  Int image_row, image_pixel, channels;
  Int rows, cols;
  T* lanes;                     // written by gather, read by scatter
  Int lane_position, lane_row;  // between neighbours in a row, between rows
  Int lane_channels;            // of a position, whole vectors
  Int ahead;                    // how far ahead the images' lines are fetched
};

// Indices of the arrays are widths of output vectors: 4, 8, 16.
template <class T>
struct BlockSparseKernels {
  int lanes;                // of a full vector
  int max_rows;             // of a tile
  int max_pixels[kWidths];  // of a tile; 0: this width is not available
  // [rows * 32 + cols]; they return the new `ahead`.
  const T* (*const* tiles[kWidths])(const BlockSparseTiles<T>&);
  int max_entries[kWidths];                                           // of a weight-gradient tile
  void (*const* correlate[kWidths])(const BlockSparseCorrelate<T>&);  // [entries]
  void (*spread[kWidths])(const BlockSparseSpread<T>&);
  void (*pointwise[kWidths])(const BlockSparsePointwise<T>&);
  bool (*fits)(const int* index, Int blocks, const Int* limits);  // every row below its limit
  void (*offsets)(const BlockSparseOffsets&);
  void (*pack)(const BlockSparsePack<T>&);
  void (*gather)(const BlockSparseLanes<T>&);
  void (*scatter)(const BlockSparseLanes<T>&);
};

}  // namespace resgrow
