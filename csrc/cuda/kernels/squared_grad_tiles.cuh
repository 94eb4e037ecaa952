// squared_grad's contraction on tensor cores: an implicit product of matrices per sample, squared
// in registers.
//
// A block owns a tile of (output channels) x (tap, channel) columns and walks over its samples'
// positions. A stage of positions of both operands is copied to shared memory asynchronously,
// columns side by side: zeros where the position lies in the padding, past the image's end or the
// column past the last. A warp holds two accumulators for its part of the tile: the product of the
// current sample, and the sum of the squares of those before. Nothing of a sample ever leaves the
// registers, and what remains to be written at the end is as large as the weights, once per part.
//
// What bounds it on an H200, tile 128 x 128 in 16 bits, per position and multiprocessor:
//   tensor cores   16,384 products; mma.sync sustains some 1,250 per cycle         13 cycles
//   ldmatrix       a warp's 64 x 32 part reads 96 values of 2 bytes; 8 warps; 128
//                  bytes per cycle                                                 12 cycles
//   cp.async       256 values of 2 bytes written to shared memory                   4 cycles
//   second level   the same 512 bytes at some 22 bytes per cycle each              23 cycles
// Two accumulators fix the tile: 2 x 128 x 128 floats are half of the register file, and a warp's
// 64 x 32 take 128 of its 255 registers; 64 x 64 would take 256. Squaring costs 64 products and 64
// clears per thread and sample, 200 cycles per multiprocessor against 800 for a sample of 7 x 7
// positions and 41,000 for one of 56 x 56.
#pragma once

#include "cuda/kernels/squared_grad_walk.cuh"

namespace resgrow {

// Where value (row, column) of a stage lies, in values. 16 bits for ldmatrix: the eight rows of a
// matrix must differ in their banks, so 16-byte runs are exchanged by the row's number.
template <int WIDTH>
struct Swizzled {
  static constexpr int kPitch = WIDTH;
  RESGROW_DEVICE static int at(int row, int column) {
    return row * WIDTH + ((column / 8 ^ row % 8) * 8 + column % 8);
  }
};
// Read value by value, four rows (t) of eight columns (g) at once: rows 8 floats (or, in 16 bits,
// 4 words) apart in the banks.
template <int WIDTH>
struct Padded {
  static constexpr int kPitch = WIDTH + 8;
  RESGROW_DEVICE static int at(int row, int column) { return row * kPitch + column; }
};

// The threads that copy one operand: RUN values each, WIDTH / RUN threads per row.
template <int WIDTH, int RUN, int THREADS, int DEPTH>
struct Copiers {
  static constexpr int kAcross = WIDTH / RUN, kRows = THREADS / kAcross, kTurns = DEPTH / kRows;
  static_assert(THREADS % kAcross == 0 && DEPTH % kRows == 0, "every thread copies as much");
  RESGROW_DEVICE static int row() { return threadIdx.x / kAcross; }
  RESGROW_DEVICE static int column() { return threadIdx.x % kAcross * RUN; }
};

// grad: rows are positions, columns a group's output channels.
template <class T, class Layout, class Copy, int RUN>
struct GradCopy {
  int channel;  // of this thread's run, within a sample's pixel
  bool inside;

  RESGROW_DEVICE GradCopy(const SquaredGradContraction& a, const SquaredGradPlace& place)
      : channel(place.group * static_cast<int>(a.grad_group) + place.row + Copy::column()),
        inside(place.row + Copy::column() < a.outputs) {}

  RESGROW_DEVICE void operator()(const SquaredGradContraction& a, const SquaredGradWalk& w, Int n,
                                 int p0, T* stage) const {
    const T* const sample = static_cast<const T*>(a.grad) + n * a.grad_sample;
    RESGROW_UNROLL
    for (int turn = 0; turn < Copy::kTurns; ++turn) {
      const int row = Copy::row() + turn * Copy::kRows, p = p0 + row;
      const int oy = quotient(p, w.out_width), ox = p - oy * static_cast<int>(a.out_width);
      const int at = oy * static_cast<int>(a.grad_row) + ox * static_cast<int>(a.grad_col);
      const bool valid = inside && p < w.positions;
      copy_async<RUN* int(sizeof(T))>(stage + Layout::at(row, Copy::column()),
                                      sample + (valid ? at + channel : 0), valid);
    }
  }
};

// x: rows are positions, columns (tap, channel).
template <class T, class Layout, class Copy, int RUN>
struct InputCopy {
  int channel, dy, dx;  // of this thread's run: its place in a pixel, its tap's offset in the image
  bool inside;

  RESGROW_DEVICE InputCopy(const SquaredGradContraction& a, const SquaredGradWalk& w,
                           const SquaredGradPlace& place) {
    const int column = place.column + Copy::column(), width = static_cast<int>(a.kernel[1]);
    const int tap = column / w.column_channels, ky = tap / width, kx = tap % width;
    inside = column < w.columns;
    channel = place.group * static_cast<int>(a.x_group) + column % w.column_channels;
    dy = ky * static_cast<int>(a.dilation[0]) - static_cast<int>(a.padding[0]);
    dx = kx * static_cast<int>(a.dilation[1]) - static_cast<int>(a.padding[1]);
  }

  RESGROW_DEVICE void operator()(const SquaredGradContraction& a, const SquaredGradWalk& w, Int n,
                                 int p0, T* stage) const {
    const T* const sample = static_cast<const T*>(a.x) + n * a.x_sample;
    RESGROW_UNROLL
    for (int turn = 0; turn < Copy::kTurns; ++turn) {
      const int row = Copy::row() + turn * Copy::kRows, p = p0 + row;
      const int oy = quotient(p, w.out_width), ox = p - oy * static_cast<int>(a.out_width);
      const int iy = oy * static_cast<int>(a.stride[0]) + dy;
      const int ix = ox * static_cast<int>(a.stride[1]) + dx;
      // Unsigned: what is negative is past the end, too.
      const bool valid = inside && p < w.positions &&
                         static_cast<unsigned>(iy) < static_cast<unsigned>(a.height) &&
                         static_cast<unsigned>(ix) < static_cast<unsigned>(a.width);
      const int at = iy * static_cast<int>(a.x_row) + ix * static_cast<int>(a.x_col);
      copy_async<RUN* int(sizeof(T))>(stage + Layout::at(row, Copy::column()),
                                      sample + (valid ? at + channel : 0), valid);
    }
  }
};

// A way to multiply (P) says which tile, how the operands are stored and how a warp multiplies a
// stage:
//   Storage, Layout<WIDTH>; kForm; kRows, kColumns, kWarpRows, kWarpColumns, kDepth, kRun; kStages
//   in flight; kBlocks per multiprocessor
//   P(row, column): of the warp in the tile
//   void multiply(Products<P>& product, grads, inputs, left): a stage, of which the first `left`
//   positions count
template <class P>
struct Warps {
  static constexpr int kDown = P::kRows / P::kWarpRows, kAcross = P::kColumns / P::kWarpColumns;
  static constexpr int kThreads = kDown * kAcross * 32;
};

template <class P>
struct Products {
  float of[P::kWarpRows / 16][P::kWarpColumns / 8][4] = {};
};

// Products that are not squared are put aside that often: the tensor cores' sums drop bits, at
// worst in one direction.
constexpr int kStagesTogether = 8;

template <class P>
RESGROW_DEVICE void settle(Products<P>& sum, Products<P>& product) {
  RESGROW_UNROLL
  for (int i = 0; i < P::kWarpRows / 16; ++i) {
    RESGROW_UNROLL
    for (int j = 0; j < P::kWarpColumns / 8; ++j) {
      RESGROW_UNROLL
      for (int v = 0; v < 4; ++v) {
        const float d = product.of[i][j][v];
        sum.of[i][j][v] += P::kForm == SquaredGradForm::per_sample ? d * d : d;
        product.of[i][j][v] = 0;
      }
    }
  }
}

template <class P>
RESGROW_DEVICE void write_sums(const Products<P>& sum, float* sums, int row, int column, int rows,
                               int columns) {
  const int lane = threadIdx.x % 32;
  RESGROW_UNROLL
  for (int i = 0; i < P::kWarpRows / 16; ++i) {
    RESGROW_UNROLL
    for (int j = 0; j < P::kWarpColumns / 8; ++j) {
      RESGROW_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int m = row + i * 16 + half * 8 + lane / 4, c = column + j * 8 + lane % 4 * 2;
        // Columns are a multiple of kSquaredGradRun: a pair is inside or outside.
        if (m < rows && c < columns) {
          const float2 pair{sum.of[i][j][2 * half], sum.of[i][j][2 * half + 1]};
          store(sums + Int(m) * columns + c, pair);
        }
      }
    }
  }
}

template <class P>
RESGROW_KERNEL_OF(Warps<P>::kThreads, P::kBlocks)
void contract_tiles(const SquaredGradContraction a, const SquaredGradWalk w) {
  using T = typename P::Storage;
  using GradLayout = typename P::template Layout<P::kRows>;
  using InputLayout = typename P::template Layout<P::kColumns>;
  using GradCopiers = Copiers<P::kRows, P::kRun, Warps<P>::kThreads, P::kDepth>;
  using InputCopiers = Copiers<P::kColumns, P::kRun, Warps<P>::kThreads, P::kDepth>;
  constexpr int kGrads = P::kDepth * GradLayout::kPitch;
  constexpr int kStage = kGrads + P::kDepth * InputLayout::kPitch;
  T* const shared = shared_memory<T>();
  const SquaredGradPlace place = squared_grad_place<P::kRows, P::kColumns>(w);
  const GradCopy<T, GradLayout, GradCopiers, P::kRun> copy_grad(a, place);
  const InputCopy<T, InputLayout, InputCopiers, P::kRun> copy_input(a, w, place);

  // The next stage to be copied, and the buffer it goes to.
  const auto count = static_cast<int>(place.last - place.first);
  Int sample = place.first / w.stages;
  auto next = static_cast<int>(place.first % w.stages);
  int stage = next, copied = 0, target = 0, source = 0;
  const auto copy = [&] {
    if (copied < count) {
      copy_grad(a, w, sample, next * P::kDepth, shared + target * kStage);
      copy_input(a, w, sample, next * P::kDepth, shared + target * kStage + kGrads);
      if (++next == w.stages) {
        next = 0;
        ++sample;
      }
    }
    ++copied;
    target = target + 1 == P::kStages ? 0 : target + 1;
    copy_async_commit();
  };
  RESGROW_NO_UNROLL
  for (int i = 0; i < P::kStages - 1; ++i) copy();

  const int warp = threadIdx.x / 32;
  const int row = warp / Warps<P>::kAcross * P::kWarpRows;
  const int column = warp % Warps<P>::kAcross * P::kWarpColumns;
  const bool busy = place.row + row < a.outputs && place.column + column < w.columns;
  const P way(row, column);
  Products<P> product, sum;
  RESGROW_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    // The oldest stage is there, and every warp is done with the one before: its buffer is free.
    copy_async_wait<P::kStages - 2>();
    __syncthreads();
    copy();
    const T* const grads = shared + source * kStage;
    if (busy) {
      way.multiply(product, grads, grads + kGrads, w.positions - stage * P::kDepth);
    }
    source = source + 1 == P::kStages ? 0 : source + 1;
    const bool last = ++stage == w.stages;
    if (last) stage = 0;
    if (P::kForm == SquaredGradForm::per_sample ? last : i % kStagesTogether == 0) {
      settle<P>(sum, product);
    }
  }
  if (P::kForm != SquaredGradForm::per_sample) settle<P>(sum, product);
  write_sums<P>(sum, squared_grad_sums<float>(a, w, place.group), place.row + row,
                place.column + column, static_cast<int>(a.outputs), w.columns);
}

template <class P>
Status run_tiles(const SquaredGradContraction& a, const SquaredGradWalk& w, Stream stream) {
  constexpr int kPitches =
      P::template Layout<P::kRows>::kPitch + P::template Layout<P::kColumns>::kPitch;
  const size_t shared = sizeof(typename P::Storage) * P::kStages * P::kDepth * kPitches;
  const dim3 grid(static_cast<unsigned>(a.groups * w.row_tiles * w.column_tiles), w.parts);
  return launch(&contract_tiles<P>, grid, dim3(Warps<P>::kThreads), shared, stream, a, w);
}

// A compiled tile, and what it is good for.
struct SquaredGradTile {
  SquaredGradForm form;
  bool tf32;  // operands are rounded to tf32
  int run;    // values copied at once
  SquaredGradCut cut;
  int cost;  // of its products, in percent of those of 128 x 128
  Status (*run_tiles)(const SquaredGradContraction&, const SquaredGradWalk&, Stream);
};

// A block's pipeline fills, and its sums are written and read again: 64 KiB twice at a
// multiprocessor's share of the memory's bandwidth (20 bytes per cycle of an H200) are 6,500
// cycles, a stage of 128 x 128 x 32 products 740.
constexpr int kOverhead = 12;

template <class P>
constexpr SquaredGradTile squared_grad_tile(int cost, bool tf32 = false) {
  constexpr SquaredGradCut cut{P::kRows,        P::kColumns,     P::kDepth, P::kBlocks,
                               kSquaredGradRun, kStagesTogether, kOverhead};
  return {P::kForm, tf32, P::kRun, cut, cost, &run_tiles<P>};
}

// The tiles of one type. One file compiles each.
struct SquaredGradTiles {
  const SquaredGradTile* first;
  int count;
};

extern const SquaredGradTiles squared_grad_tiles_float;
extern const SquaredGradTiles squared_grad_tiles_bfloat16;
extern const SquaredGradTiles squared_grad_tiles_half;

}  // namespace resgrow
