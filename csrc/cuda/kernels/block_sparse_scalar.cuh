// What the three products of block_sparse_scalar share. Pixels, channels and weights are counted in
// 32 bits (the glue sees to that), elements of x and y in 64.
#pragma once

#include "cuda/kernels/block_sparse_args.h"
#include "cuda/kernels/device.h"
#include "cuda/kernels/value.cuh"

namespace resgrow {

constexpr int kScalarThreads = 128;

struct ScalarShape {
  int samples, channels, height, width, outputs, out_height, out_width;
  int taps, kernel_width, stride[2], padding[2], dilation[2];
  int block_out, block_in, rows, cols;
  int group_rows, group_channels;
};

struct ScalarArgs {
  ScalarShape shape;
  const int *col, *tap, *starts;  // starts: first block of each row, rows + 1 of them
  void *x, *values, *y;
  const void *bias, *residual, *positive, *negative;
};

inline ScalarArgs scalar_args(const BlockSparseCall& call) {
  const auto& s = call.shape;
  const auto n = [](Int v) { return static_cast<int>(v); };
  const int group_channels = n(s.channels / s.groups), group_rows = n(s.rows / s.groups);
  return {{n(s.samples),
           n(s.channels),
           n(s.height),
           n(s.width),
           n(s.outputs),
           n(s.out_height),
           n(s.out_width),
           n(s.kernel[0] * s.kernel[1]),
           n(s.kernel[1]),
           {n(s.stride[0]), n(s.stride[1])},
           {n(s.padding[0]), n(s.padding[1])},
           {n(s.dilation[0]), n(s.dilation[1])},
           n(s.block_out),
           n(s.block_in),
           n(s.rows),
           n(s.cols),
           group_rows,
           group_channels},
          call.col,
          call.tap,
          nullptr,
          call.x,
          call.values,
          call.y,
          call.bias,
          call.residual,
          call.positive,
          call.negative};
}

RESGROW_DEVICE float multiply_added(float a, float b, float sum) {
  return fmaf(a, b, sum);
}
RESGROW_DEVICE double multiply_added(double a, double b, double sum) {
  return fma(a, b, sum);
}

template <class Sum>
struct alignas(16) Four {
  Sum v[4];
};

// A pixel of y and where its window begins in x: `base` is the pixel (y, x) of its image, counted
// through all images, and may lie outside, as (y, x) may.
struct alignas(16) ScalarWindow {
  int base, y, x, unused;
};

RESGROW_DEVICE ScalarWindow window_of(const ScalarShape& s, int pixel, int pixels) {
  if (pixel >= pixels) return {0, -(1 << 30), -(1 << 30), 0};  // no tap of it is inside
  const int x = pixel % s.out_width, rest = pixel / s.out_width;
  const int y = rest % s.out_height, sample = rest / s.out_height;
  const int top = y * s.stride[0] - s.padding[0], left = x * s.stride[1] - s.padding[1];
  return {(sample * s.height + top) * s.width + left, top, left, 0};
}

// One input channel of one present block: where it lies in a window.
struct ScalarSource {
  int down, right, pixels, channel;
  bool valid;  // whether there is such an input: blocks may hang over the edge, entries be wrong

  RESGROW_DEVICE bool inside(const ScalarShape& s, const ScalarWindow& w) const {
    return valid && static_cast<unsigned>(w.y + down) < static_cast<unsigned>(s.height) &&
           static_cast<unsigned>(w.x + right) < static_cast<unsigned>(s.width);
  }
  RESGROW_DEVICE Int offset(const ScalarShape& s, const ScalarWindow& w) const {
    return static_cast<Int>(w.base + pixels) * s.channels + channel;
  }
};

// Number k of the inputs of `row`, whose blocks begin at `start` and have `inputs` inputs.
RESGROW_DEVICE ScalarSource source_of(const ScalarArgs& a, int row, int start, int inputs, int k) {
  const ScalarShape& s = a.shape;
  if (k >= inputs) return {0, 0, 0, 0, false};
  const int block = start + k / s.block_in, tap = a.tap[block], col = a.col[block];
  const int channel = col * s.block_in + k % s.block_in;
  const bool valid =
      tap >= 0 && tap < s.taps && col >= 0 && col < s.cols && channel < s.group_channels;
  if (!valid) return {0, 0, 0, 0, false};
  const int down = tap / s.kernel_width * s.dilation[0];
  const int right = tap % s.kernel_width * s.dilation[1];
  return {down, right, down * s.width + right, row / s.group_rows * s.group_channels + channel,
          true};
}

// Writes the first block of each row.
Status find_row_starts(const BlockSparseCall& call, int* starts, Stream stream);

// values (size) = the sums (parts, size), float or of double double, added in order.
Status add_block_sparse_parts(Type type, const void* sums, Int size, int parts, void* values,
                              Stream stream);

struct ScalarProduct {
  Int (*workspace)(const BlockSparseCall&);
  Status (*run)(const BlockSparseCall&, Stream);
};
extern const ScalarProduct scalar_forward, scalar_input_grad, scalar_weight_grad;

}  // namespace resgrow
