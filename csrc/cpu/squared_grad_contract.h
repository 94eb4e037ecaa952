// The contraction behind squared_grad_linear and squared_grad_conv2d. Input is valid here.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks/squared_grad.h"
#include "cpu/kernels/squared_grad_args.h"

namespace resgrow {

// What is squared.
struct SquaredGradForm {
  bool product;  // every sample's product, before it is added up
  bool x, grad;  // the operands, while they are packed
  bool fold;     // samples have one position each and are the summed dimension
};
constexpr SquaredGradForm kPerSample{true, false, false, false};
// Every sample has one position, so its product is squared by its factors.
constexpr SquaredGradForm kPerSampleFolded{false, true, true, true};
constexpr SquaredGradForm kInput{false, true, false, false};
constexpr SquaredGradForm kInputFolded{false, true, false, true};

// x: (N, C, H, W), grad: (N, O, Ho, Wo), any strides; returns (O, C / groups, kh, kw).
at::Tensor squared_grad_contract(const at::Tensor& x, const at::Tensor& grad,
                                 const SquaredGradConv& conv, const SquaredGradForm& form);

}  // namespace resgrow
