// How block_sparse_weight_grad divides its work: decided on the host, obeyed by the kernel.
#pragma once

#include "cuda/kernels/block_sparse_args.h"

namespace resgrow {

// Weight gradient of blocks of multiples of 16 x 16 on tensor cores: a path for this product alone.
extern const BlockSparsePath block_sparse_weight_grad;

constexpr int kGradWarps = 8, kGradSlots = 16;  // warps of a block, pieces of 16 x 16 of a warp
constexpr int kGradPieces = kGradWarps * kGradSlots;
constexpr int kGradUnits = 32;  // most units of 16 channels of a region, inputs or outputs

// One spatial axis of a patch, a rectangle of pixels of y with the part of x that its taps read.
struct GradAxis {
  int size, count;  // pixels of y, patches along the axis
  int extent;       // pixels of x, `source_step` apart: a tap of its own is read with its stride
  int source_step;
  // In shared memory pixels of x lie in `classes` by their remainder, so that neighbours in y are
  // neighbours there: pixel i at i % classes * class_pixels + i / classes.
  int classes, class_pixels;
  // y's pixel j meets tap t at the place of pixel t * tap_step, plus j * pixel_step.
  int pixel_step, tap_step;
  int in, out, stride, padding;  // sizes of x and y
};

struct GradPlan {
  GradAxis axis[2];
  int samples, steps;                // steps of 16 pixels in a patch
  int sub_in, sub_out;               // pieces of a block along its inputs and outputs
  int region_cols, region_rows;      // blocks of a region
  int in_units, out_units;           // 16 channels each, of a region
  int in_regions, out_regions;       // of a group
  int groups, most_shares;           // blocks of threads that share a region's pieces, at most
  int patches, parts, part_patches;  // over all images; parts of them
  int row_pixels, in_pixels;         // places of a row and of all rows of x in a stage
  int in_pitch, out_pitch;           // bytes of a pixel in shared memory
  int stage_bytes, shared_bytes;
  bool exists;
};

GradPlan plan_weight_grad(const BlockSparseCall& call, int most_shared);

}  // namespace resgrow
