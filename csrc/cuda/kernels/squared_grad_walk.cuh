// How squared_grad's contractions are cut up, and how the pieces' sums become H.
//
// A contraction is a product of matrices per sample: rows are a group's output channels, columns
// its (tap, channel) pairs with the channel innermost, and the summed dimension are output
// positions. Positions are walked in stages of a fixed number; a sample's last one is ragged. Tiles
// of rows and columns make up the grid's x; its y are parts, runs of stages that end with samples
// where samples' products are squared. Every part leaves its sums in the workspace, and they are
// added in the order of the parts: results depend on sizes alone, not on device or scheduling.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/squared_grad_args.h"

namespace resgrow {

// Division of 0 <= p < 2^31 by a constant d >= 1 as a product: with L = ceil(log2 d) the magic
// number ceil(2^(31 + L) / d) exceeds its real value by less than 1 / d of 2^L / 2^(31 + L), so the
// quotient's error stays below 1 / d.
struct Divisor {
  unsigned magic;
  int shift;
};

inline Divisor divisor_of(Int d) {
  int log = 0;
  while ((Int(1) << log) < d) ++log;
  const int shift = 31 + log;
  const auto magic = ((1ull << shift) + static_cast<unsigned long long>(d) - 1) / d;
  return {static_cast<unsigned>(magic), shift};
}

RESGROW_DEVICE int quotient(int p, const Divisor& d) {
  return static_cast<int>(static_cast<unsigned long long>(p) * d.magic >> d.shift);
}

// The shape of the walk; all that kernels need beside the contraction.
struct SquaredGradWalk {
  Divisor out_width;
  int positions, columns;  // of a sample, of a group
  int row_tiles, column_tiles;
  int stages;      // per sample
  Int all_stages;  // of all samples
  int unit;        // stages that stay together; the last unit may be short of some
  Int each, more;  // units of every part; one more in the first `more`
  int parts;
  int column_channels;  // channels per tap among the columns, at least as many as there are
};

// The block's place: group, first row and column of its tile, and stages [first, last).
struct SquaredGradPlace {
  int group, row, column;
  Int first, last;
};

template <int ROWS, int COLUMNS>
RESGROW_DEVICE SquaredGradPlace squared_grad_place(const SquaredGradWalk& w) {
  // Neighbouring blocks share their rows, and all blocks at work share their samples: what one
  // fetches, the others find in the second-level cache.
  const int tile = blockIdx.x, in_group = tile / w.column_tiles;
  const Int part = blockIdx.y, unit = part * w.each + min(part, w.more);
  const Int last = (unit + w.each + (part < w.more ? 1 : 0)) * w.unit;
  return {in_group / w.row_tiles, in_group % w.row_tiles * ROWS, tile % w.column_tiles * COLUMNS,
          unit * w.unit, min(last, w.all_stages)};
}

// Where the block's sums go: partial[row * columns + column], from the group's first row on.
template <class A>
RESGROW_DEVICE A* squared_grad_sums(const SquaredGradContraction& a, const SquaredGradWalk& w,
                                    int group) {
  const Int row = (Int(blockIdx.y) * a.groups + group) * a.outputs;
  return static_cast<A*>(a.workspace) + row * w.columns;
}

// How a path cuts: its tile, its stage, and how many blocks the device holds at once.
struct SquaredGradCut {
  int rows, columns, depth;
  int blocks;                  // per multiprocessor
  int channel_multiple;        // to which the channels of a tap are filled up
  int together;                // stages that are worth a block where samples need not be whole
  int overhead;                // what a block costs beside its stages, in stages
  bool across_groups = false;  // rows are the outputs of all groups
};

SquaredGradWalk squared_grad_walk(const SquaredGradContraction&, const SquaredGradCut&);
Int squared_grad_sums_bytes(const SquaredGradContraction&, const SquaredGradWalk&);

// Adds up the parts and writes H.
Status squared_grad_finish(const SquaredGradContraction&, const SquaredGradWalk&, Stream);

}  // namespace resgrow
