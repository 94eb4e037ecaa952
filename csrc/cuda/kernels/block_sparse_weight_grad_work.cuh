// What a block of threads of block_sparse_weight_grad does: its region, the pixels of a patch and
// the pieces of its warps, listed in shared memory before it starts.
#pragma once

#include "cuda/kernels/block_sparse_weight_grad.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace weight_grad {

using Byte = unsigned char;

constexpr int kThreads = 32 * kGradWarps;
constexpr int kNowhere = 1 << 28;  // below every image: copied as zeros

// A pixel from the upper left of a patch.
struct alignas(8) Spot {
  int y, x;
};

struct Args {
  GradPlan plan;
  int group_channels, group_outputs, group_rows, channels, outputs;
  int taps, kernel_width, block_in, block_out;
  const int *col, *tap, *bounds;  // bounds: (rows, in_regions + 1), first block of a row's region
  const void *x, *y;
  void* values;
  float* sums;  // (parts, values), or null if there is one part
  Int size;     // of values
};

// Where a block of threads stands.
struct Place {
  int in_region, first_row, rows, group, share, part;
};

RESGROW_DEVICE Place place_of(const Args& a) {
  const GradPlan& p = a.plan;
  const int regions = p.in_regions * p.out_regions * p.groups, b = blockIdx.x;
  const int region = b % regions, out_region = region / p.in_regions % p.out_regions;
  const int group = region / p.in_regions / p.out_regions;
  const int row = out_region * p.region_rows;
  return {region % p.in_regions,
          group * a.group_rows + row,
          min(p.region_rows, a.group_rows - row),
          group,
          b / regions % p.most_shares,
          b / regions / p.most_shares};
}

static_assert(kGradUnits == 32, "one warp lists the rows, one word marks the units");

struct Shared {
  Byte* stages;
  Spot *in_spots, *out_spots;  // of the places of x and of the pixels of y
  int* rows_of_x;  // bytes from the first pixel of x to the one that meets tap 0, of each of y
  int *in_offset, *out_offset, *target;  // of each piece: bytes within x's and y's pixels; values
  int *first, *before;                   // of each row: first block, pieces of the rows before it
  int* used;                             // units of inputs and outputs, one bit each
};

RESGROW_DEVICE Shared shared_of(const GradPlan& p) {
  Shared s;
  s.stages = shared_memory<Byte>();
  s.in_spots = reinterpret_cast<Spot*>(s.stages + 2 * p.stage_bytes);
  s.out_spots = s.in_spots + p.in_pixels;
  s.rows_of_x = reinterpret_cast<int*>(s.out_spots + 16 * p.steps);
  s.in_offset = s.rows_of_x + 16 * p.steps;
  s.out_offset = s.in_offset + kGradPieces;
  s.target = s.out_offset + kGradPieces;
  s.first = s.target + kGradPieces;
  s.before = s.first + kGradUnits;
  s.used = s.before + kGradUnits + 1;
  return s;
}

// Where pixel i of an axis of x lies.
RESGROW_DEVICE int place_on(const GradAxis& axis, int i) {
  return i % axis.classes * axis.class_pixels + i / axis.classes;
}

RESGROW_DEVICE void fill_pixels(const GradPlan& p, const Shared& s) {
  const GradAxis &down = p.axis[0], &right = p.axis[1];
  for (int i = threadIdx.x; i < p.in_pixels; i += kThreads) {
    const int place = i % p.row_pixels;
    const int x = place % right.class_pixels * right.classes + place / right.class_pixels;
    const bool exists = place / right.class_pixels < right.classes && x < right.extent;
    s.in_spots[i] = {exists ? i / p.row_pixels * down.source_step : kNowhere,
                     x * right.source_step};
  }
  for (int i = threadIdx.x; i < 16 * p.steps; i += kThreads) {
    const int y = i / right.size, x = i % right.size;
    const bool exists = y < down.size;
    s.out_spots[i] = {exists ? y : kNowhere, x};
    s.rows_of_x[i] =
        exists ? (y * down.pixel_step * p.row_pixels + x * right.pixel_step) * p.in_pitch : 0;
  }
}

// The first of a warp's pieces among `own`.
RESGROW_DEVICE int first_of(int own, int warp) {
  return own * warp / kGradWarps;
}

// Writes the pieces of this share, those of a warp behind one another; returns how many all warps
// have. Entries out of range get a piece in range: what they sum is of no use, but it is theirs.
RESGROW_DEVICE int fill_pieces(const Args& a, const Place& here, const Shared& s, int unit_bytes) {
  const GradPlan& p = a.plan;
  const int tid = threadIdx.x, subs = p.sub_in * p.sub_out;
  if (tid < 32) {
    int sum = 0;
    if (tid < here.rows) {
      const int* bounds = a.bounds + (here.first_row + tid) * (p.in_regions + 1) + here.in_region;
      s.first[tid] = bounds[0];
      sum = max(bounds[1] - bounds[0], 0) * subs;
    }
    RESGROW_UNROLL
    for (int step = 1; step < 32; step *= 2) {
      const int lower = __shfl_up_sync(0xffffffffu, sum, step);
      if (tid >= step) sum += lower;
    }
    if (tid == 0) s.before[0] = 0;
    s.before[tid + 1] = sum;
  }
  if (tid < 2) s.used[tid] = 0;
  __syncthreads();
  const int all = s.before[here.rows];
  const int shares = min((all + kGradPieces - 1) / kGradPieces, p.most_shares);
  if (here.share >= shares) return 0;
  const int each = min((all + shares - 1) / shares, kGradPieces), begin = here.share * each;
  const int own = min(each, all - begin);
  for (int i = tid; i < kGradPieces; i += kThreads) {
    const int number = first_of(own, i / kGradSlots) + i % kGradSlots;
    if (number >= first_of(own, i / kGradSlots + 1)) {
      s.in_offset[i] = s.out_offset[i] = 0;
      s.target[i] = -1;
      continue;
    }
    int row = 0;
    while (s.before[row + 1] <= begin + number) ++row;
    const int inputs = (s.before[row + 1] - s.before[row]) / p.sub_out;
    const int k = begin + number - s.before[row], out = k / inputs;
    const int block = s.first[row] + k % inputs / p.sub_in, in = k % inputs % p.sub_in;
    const int tap = min(max(a.tap[block], 0), a.taps - 1);
    const int col = a.col[block] - here.in_region * p.region_cols;
    const int in_unit = min(max(col, 0), p.region_cols - 1) * p.sub_in + in;
    const int out_unit = row * p.sub_out + out;
    const int pixels = tap / a.kernel_width * p.axis[0].tap_step * p.row_pixels +
                       place_on(p.axis[1], tap % a.kernel_width * p.axis[1].tap_step);
    s.in_offset[i] = pixels * p.in_pitch + in_unit * unit_bytes;
    s.out_offset[i] = out_unit * unit_bytes;
    s.target[i] = (block * a.block_in + in * 16) * a.block_out + out * 16;
    atomicOr(&s.used[0], 1 << in_unit);
    atomicOr(&s.used[1], 1 << out_unit);
  }
  return own;
}

}  // namespace weight_grad
}  // namespace resgrow
