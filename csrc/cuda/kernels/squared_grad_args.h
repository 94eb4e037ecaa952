// Border between the CUDA glue of squared_grad and its kernels. Strides count elements.
#pragma once

#include "cuda/border.h"

namespace resgrow {

// Samples are dealt to blocks as fills a device of so many multiprocessors (an H100 or H200). Not
// the device's own number: results are then the same on every device.
constexpr Int kSquaredGradProcessors = 132;

enum class SquaredGradForm {
  per_sample,  // sum over samples of squared products
  factors,     // products of squares: of samples that have one position each
  input,       // products of grad and squared x
};

// H (groups * outputs, channels, kernel) from x (samples, height, width, groups * channels) and
// grad (samples, out_height, out_width, groups * outputs), of any strides. Channels and outputs
// are those of one group.
struct SquaredGradContraction {
  SquaredGradForm form;
  Type type;  // of x and grad; sums are in float, in double for double
  bool tf32;  // float operands may be rounded to tf32
  Int samples, groups, channels, outputs;
  Int height, width, out_height, out_width;
  Int kernel[2], stride[2], padding[2], dilation[2];
  const void *x, *grad;
  Int x_sample, x_row, x_col, x_channel, x_group;  // x_group: from one group to the next
  Int grad_sample, grad_row, grad_col, grad_channel, grad_group;
  void* result;     // (groups * outputs, channels, kernel), float or double
  void* workspace;  // as many bytes as the path asked for, aligned to 256
};

struct SquaredGradPath {
  bool (*fits)(const SquaredGradContraction&);
  Int (*workspace)(const SquaredGradContraction&);  // bytes
  Status (*run)(const SquaredGradContraction&, Stream);
};

extern const SquaredGradPath squared_grad_tiles;    // tensor cores
extern const SquaredGradPath squared_grad_grouped;  // groups of few outputs, channels side by side
extern const SquaredGradPath squared_grad_fma;      // any shape, any type

// squared_grad_tiles reads channels side by side, so many at once: there must be a multiple of it
// in each group, and everything be aligned to as many.
constexpr int kSquaredGradRun = 4;

// weight[c] = sum over samples of (sum over positions of grad (x - mean) rstd)^2, bias[c] the same
// of grad alone; with square_input the sums of grad ((x - mean) rstd)^2 and of grad. x, grad:
// (samples, channels, positions), both with channels or both with positions side by side.
struct SquaredGradMoments {
  Type type;
  bool square_input;
  bool channels_side_by_side;
  Int samples, channels, positions;
  const void *x, *grad;  // x is null where only the bias is wanted
  const void *mean, *rstd;
  Int x_sample, x_channel, x_position;
  Int grad_sample, grad_channel, grad_position;
  void *weight, *bias;  // float or double; weight may be null without x
  void* workspace;      // squared_grad_moments_workspace bytes
};

Int squared_grad_moments_workspace(const SquaredGradMoments&);
Status squared_grad_moments(const SquaredGradMoments&, Stream);

}  // namespace resgrow
