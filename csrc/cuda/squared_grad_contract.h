// The contraction behind squared_grad_linear and squared_grad_conv2d on CUDA. Input is valid here.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks/squared_grad.h"
#include "cuda/kernels/squared_grad_args.h"

namespace resgrow {

// x: (N, C, H, W), grad: (N, O, Ho, Wo), any strides; returns (O, C / groups, kh, kw).
at::Tensor squared_grad_contract_cuda(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                      const SquaredGradConv& conv, SquaredGradForm form);

}  // namespace resgrow
