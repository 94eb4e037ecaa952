// Thin blocks on tensor cores: what the parts of the path share.
//
// A row of blocks is a list of *columns*, (tap, channel) pairs with 16 or more outputs each. Tensor
// cores multiply 16 columns at a time, whichever they are, if the input can be gathered by column:
// it is staged in shared memory as [channel][position][lane], where the 8 lanes are 8 tiles of the
// output (of one image or of several) and a position is a pixel of such a tile with its halo. One
// position of one channel is 16 bytes. A tap is then a shift by whole positions, never a
// misaligned one, whatever kernel, stride and dilation are; with a stride, positions of the same
// remainder lie side by side.
//
// Reading 16 columns x 64 pixels takes 2 KB of shared memory, 16 clocks, for 8 products of 16 x 8 x
// 16: 2 clocks each, where an H200 can issue one in about 1.6. That is what bounds thin blocks: a
// column serves the 16 outputs of its block and no other. At 132 x 1.755 GHz it is 470 TFLOP/s of
// present values. Staging 32 channels of a position costs about 14 clocks (one 16-byte load, two
// shuffles and four stores per thread) and is shared by all outputs of a block of threads.
//
// With staging, weights (4.5 clocks per step and warp), conflicts (12 to 17 % of the reads),
// padding and uneven lists, counted on random masks of density .25, the bound of a 3 x 3 layer of
// ResNet-50, batch 256, is 57 to 72 us, .8 to 1 PFLOP/s of the dense product; at density .5, 94 to
// 113 us. That of pointwise layers of 14 x 14 pixels is 36 to 42 us, and of larger images what x
// and y take through memory. Going twice as fast would need columns of 32 outputs. None of this is
// measured.
#pragma once

#include "cuda/kernels/block_sparse_args.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace fine {

constexpr int kLanes = 8;      // tiles side by side: 16 bytes
constexpr int kCell = 16;      // bytes of a position of a channel
constexpr int kUnit = 8;       // positions that a warp multiplies at once
constexpr int kStep = 16;      // columns of a product
constexpr int kOutputs = 16;   // outputs of a product
constexpr int kAhead = 4;      // positions that a thread stages at once: loads under way
constexpr int kGradSteps = 8;  // whose sums a warp keeps, weight gradient
constexpr int kClasses = 4;    // columns that one shared-memory access reads

// Height or width. An image's pixel is tile * stride + row * stride + phase - padding.
struct Axis {
  int in, out, kernel, stride, padding, dilation;
  int phases;       // remainders that taps have
  int tile, tiles;  // outputs of a tile, tiles of an image
  int patch;        // positions of a phase
};

struct Geometry {
  Axis h, w;
  Int samples, channels, outputs, tiles;
  int group_channels, group_rows, rows, block_in, block_out, taps;
  int units;                  // of a tile: 8 positions each
  int pair;                   // positions between the halves of a unit's accesses
  int positions, pitch;       // of a channel; cells from channel to channel, odd
  int runs;                   // of positions that a thread stages at once
  int chunk, staged, chunks;  // channels per turn, staged per turn (blocks may reach beyond)
  int buffers;                // of a chunk in shared memory
};

// Cells of a channel slot: slots 8 apart are skewed, so that four groups of eight channels are
// stored without conflicts.
RESGROW_DEVICE int slot_cell(const Geometry& g, int slot) {
  return slot * g.pitch + slot / 8;
}
inline int buffer_cells(const Geometry& g) {
  return g.staged * g.pitch + (g.staged + 7) / 8;
}

// What a kernel keeps in shared memory: the buffers, a channel of zeros for columns that are not
// there, where each position lies in an image and each output in a tile, and the tiles.
struct Tile {
  const unsigned short* image;  // pixel (0, 0), first channel of the group
  int row, col;                 // first input pixel, may be outside
  int rows, cols;               // outputs that exist, none where there is no such tile
  int pixel;                    // of the first output
  int apart[3];                 // 40 bytes from tile to tile: eight of them lie in different banks
};
struct SharedLayout {
  int buffer, zeros, places, outputs, tiles, end;  // bytes
};
inline SharedLayout shared_layout(const Geometry& g) {
  SharedLayout s{};
  s.buffer = buffer_cells(g) * kCell;
  s.zeros = g.buffers * s.buffer;
  s.places = s.zeros + g.pitch * kCell;
  s.outputs = s.places + (g.positions + 3) / 4 * 16;
  s.tiles = s.outputs + g.units * kUnit * 4;
  s.end = s.tiles + kLanes * static_cast<int>(sizeof(Tile));
  return s;
}

// Lists of columns, one per row of blocks and chunk, in steps of 16.
struct Lists {
  int2* ranges;    // (rows, chunks): first step and how many
  int* offsets;    // (steps, 16): bytes from the first buffer to the column's first position
  int* entries;    // (steps, 16): rows of values, -1: none. Null where not asked for
  uint4* weights;  // (steps, outputs / 16, 32): registers of each lane. Null where not asked for
  Int steps;       // that there is room for
};

// Cuts memory into pieces aligned to 256 bytes.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}
  template <class T>
  T* next(Int count) {
    T* piece = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * static_cast<Int>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
  Int used() const { return used_; }

 private:
  unsigned char* memory_;
  Int used_ = 0;
};

struct Plan {
  Geometry geometry;
  int threads, row_warps;  // of the main kernel; warps along the outputs
  SharedLayout shared;
  bool pays;  // gathering is faster than multiplying whole tiles, forward
};

// Of the weight gradient.
struct GradPlan {
  Geometry x, y;
  SharedLayout at_x, at_y;
  int row_warps, passes;         // passes: over the longest list that there could be
  bool pays;                     // gathering is faster than computing whole tiles
  Int turns, part_turns, parts;  // eights of tiles, all and of a part; parts
};

// Whether thin blocks of this call can be gathered; the plan, then.
bool make_plan(const BlockSparseCall& call, Plan* plan);
bool make_grad_plan(const BlockSparseCall& call, GradPlan* plan);
int longest_list(const Geometry& g);  // columns
bool lists_fit(const Geometry& g);    // whether shared memory holds a list
Int list_steps(const BlockSparseCall& call, const Geometry& g);
Status make_lists(const BlockSparseCall& call, const Geometry& g, int zeros, const Lists& lists,
                  Stream stream);
bool expand_fits(const BlockSparseCall& call);
Int expand_workspace(const BlockSparseCall& call);
Status expand(const BlockSparseCall& call, Stream stream);
Status forward(const BlockSparseCall& call, const Plan& plan, const Lists& lists, Stream stream);
Int grad_sums(const GradPlan& plan, const Lists& lists);  // floats
Status weight_grad(const BlockSparseCall& call, const GradPlan& plan, const Lists& lists,
                   float* sums, Stream stream);

}  // namespace fine
}  // namespace resgrow
