// The contraction behind squared_grad_linear and squared_grad_conv2d. Input is valid here.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels/squared_grad_args.h"

namespace resgrow {

// A convolution; per-sample linear layers are the 1x1 case with positions along the width.
struct SquaredGradConv {
  Int samples, channels, height, width;  // x
  Int outputs, out_height, out_width;    // grad
  Int kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  Int groups = 1;
};

// x: (N, C, H, W), grad: (N, O, Ho, Wo), any strides; returns (O, C / groups, kh, kw).
// single_position: every sample has one position, so the squares of x and grad are multiplied
// instead.
at::Tensor squared_grad_contract(const at::Tensor& x, const at::Tensor& grad,
                                 const SquaredGradConv& conv, bool single_position);

}  // namespace resgrow
