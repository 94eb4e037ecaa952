// What the kernels of block_sparse_tiles share: the product as a matrix product, its tiling, and
// the lists of work.
//
// Classes. Along one axis the input at position i * stride + e meets the kernel positions r with
// r * dilation = q * stride + e, its residue. Forward, the residues are planes of the input: within
// one, neighbouring outputs read neighbouring pixels, and a tap is a shift by q. For the input
// gradient each residue is a class of target pixels that reaches the same taps, again shifts by q.
// So both products are the same dense sliding of taps, whatever stride and dilation.
//
// Pixels of a tile are neighbours in the order (image, strip, row, column within the strip). Strips
// of columns bound what a tile needs of its surroundings; no pixel of a tile is lost at the edge of
// an image, only at ragged strips and at the end.
#pragma once

#include "cuda/kernels/block_sparse_common.cuh"

namespace resgrow {

struct TilesAxis {
  int kernel, stride, padding, dilation, input, output;
};

// A round is what is copied and multiplied between two barriers: some visits of a step. A step is
// one patch: a chunk of channels of one plane, or of one tap where `whole` is false. A visit is one
// tap and 16 of the summed channels, with a bit for each 16 targets that have weights there. A
// round's pieces are those of the first column of warps, then those of the second.
struct TilesRound {
  int visit, piece;  // the first ones of the list
  unsigned counts;   // packed TilesCounts
  int origin;        // of the plane in the source: row << 16 | column
};
struct TilesCounts {
  int visits, pieces, left;  // left: pieces of the first column
  bool opens;                // a step, of this chunk of channels
  int chunk;
};
RESGROW_DEVICE unsigned packed(const TilesCounts& c) {
  return static_cast<unsigned>(c.visits) | static_cast<unsigned>(c.pieces) << 6 |
         static_cast<unsigned>(c.left) << 12 | static_cast<unsigned>(c.opens) << 18 |
         static_cast<unsigned>(c.chunk) << 19;
}
RESGROW_DEVICE TilesCounts unpacked(unsigned c) {
  return {static_cast<int>(c & 63), static_cast<int>(c >> 6 & 63), static_cast<int>(c >> 12 & 63),
          (c >> 18 & 1) != 0, static_cast<int>(c >> 19)};
}
constexpr int kWarpTargets = 8;                    // groups of 16 targets that a warp has
constexpr int kSubAt = 16, kShiftAt = kSubAt + 2;  // visit: targets | sub | shift in the patch
constexpr int kMostShift = (1 << (31 - kShiftAt)) - 1;
constexpr int kTilesTaps = 256;  // at most
constexpr int kTilesStages = 3;
constexpr int kTilesIdleVisits = 3;  // behind those of a round
constexpr int kTilesVisits = 36;     // of a round, with these

struct TilesLists {
  int* rounds_of;  // of each list
  TilesRound* rounds;
  int *visits, *pieces;  // pieces: place in values, in 16 values
  int most;              // visits of a list at most; it has room for as many rounds
};

struct TilesArgs {
  TilesAxis axis[2];  // height, width
  int samples, groups;
  const void *source, *values;
  int source_channels, source_group, target_group;  // all, and of a group: summed, computed
  const int *row, *col, *tap;
  int blocks, rows, cols, block_out, block_in;

  int strips, strip;  // per row, and their width
  bool whole;         // a step's patch serves all taps of a plane; else each tap has its own
  int pitch;          // rows of a patch from one line to the next
  int patch_rows, log_units;  // of a patch; of its rows
  int pieces, piece_bytes;    // of a round at most, and all of them in shared memory
  int columns;                // of warps side by side, 1 or 2: each has its own targets
  int target_tiles;           // of all columns, per group
  int splits;                 // parts of the sum
  float* partial;             // (splits, pixels, targets)
  Int partial_step;
  TilesLists lists;
  BlockSparseOutput output;
};

// Targets of one class along one axis: target i lies at target0 + i * target_step, and tap q of the
// class reads the source at source0 + (i + shift(q)) * source_step, shifts going up to reach.
struct TilesLine {
  int count, target0, target_step, source0, source_step, reach;
};
RESGROW_DEVICE int tiles_reach(const TilesAxis& a) {
  return (a.kernel - 1) * a.dilation / a.stride;
}
template <bool forward>
RESGROW_DEVICE TilesLine tiles_line(const TilesAxis& a, int residue) {
  TilesLine l;
  l.reach = tiles_reach(a);
  if constexpr (forward) {
    l.count = a.output, l.target0 = 0, l.target_step = 1;
    l.source0 = -a.padding, l.source_step = a.stride;
  } else {
    const int first = a.padding > residue ? (a.padding - residue + a.stride - 1) / a.stride : 0;
    l.target0 = first * a.stride + residue - a.padding;
    l.target_step = a.stride;
    l.count = l.target0 < a.input ? (a.input - 1 - l.target0) / a.stride + 1 : 0;
    l.source0 = first - l.reach, l.source_step = 1;
  }
  return l;
}
// Where kernel position r reads: (shift, origin) of a whole patch, or the origin alone.
struct TilesTap {
  int shift, origin;
};
template <bool forward>
RESGROW_DEVICE TilesTap tiles_tap(const TilesAxis& a, int r, bool whole) {
  const int at = r * a.dilation;
  if constexpr (forward) {
    return whole ? TilesTap{at / a.stride, at % a.stride} : TilesTap{0, at};
  } else {
    const int shift = tiles_reach(a) - at / a.stride;
    return whole ? TilesTap{shift, 0} : TilesTap{0, shift};
  }
}

// Writes the lists of every class, group and tile of targets.
Status launch_tiles_lists(const TilesArgs&, bool forward, Type, Stream);
bool tiles_lists_fit(Int visits, Int columns);  // whether lists of so many visits can be made

// Computes the product, and adds the parts of its sums.
struct TilesLaunch {
  bool forward;
  dim3 grid;  // tiles, classes, parts of the sum
  unsigned threads;
  size_t shared;
  Int pixels;  // of the targets
};
Status launch_tiles_bfloat16(const TilesArgs&, const TilesLaunch&, Stream);
Status launch_tiles_float16(const TilesArgs&, const TilesLaunch&, Stream);
Status launch_tiles_float32(const TilesArgs&, const TilesLaunch&, Stream);
Status launch_tiles_tf32(const TilesArgs&, const TilesLaunch&, Stream);

}  // namespace resgrow
