// What squared_grad asks of its arguments, the same on every device, and the shapes that follow.
#pragma once

#include <ATen/core/Tensor.h>

#include "check.h"

namespace resgrow {

using Int = long long;

// A convolution; per-sample linear layers are the 1x1 case with positions along the width.
struct SquaredGradConv {
  Int samples, channels, height, width;  // x
  Int outputs, out_height, out_width;    // grad
  Int kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  Int groups = 1;
};

inline void check_squared_grad_pair(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                    bool half) {
  check_floating(op, "x", x, half);
  check_same_dtype(op, "x", x, "grad", grad);
  TORCH_CHECK_VALUE(x.device() == grad.device(), op, ": x and grad must be on one device (got ",
                    x.device(), " and ", grad.device(), "); move one of them with .to(device)");
}

inline void check_squared_grad_linear(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                      bool half = false) {
  check_squared_grad_pair(op, x, grad, half);
  TORCH_CHECK_VALUE(
      x.dim() >= 2 && x.dim() == grad.dim(), op,
      ": x (N, *, I) and grad (N, *, O) must have one number of dimensions, at least 2 (got ",
      x.sizes(), " and ", grad.sizes(), ")");
  TORCH_CHECK_VALUE(x.sizes().slice(0, x.dim() - 1) == grad.sizes().slice(0, x.dim() - 1), op,
                    ": x and grad must agree in every dimension but the last (got ", x.sizes(),
                    " and ", grad.sizes(), ")");
}

// (N, *, F) as (N, F, 1, T), a view where the strides allow it.
inline at::Tensor positions_as_width(const at::Tensor& t) {
  return t.reshape({t.size(0), t.numel() == 0 ? 0 : -1, t.size(-1)})
      .permute({0, 2, 1})
      .unsqueeze(2);
}

// (N, *, F) as one sample of N * T positions: (1, F, 1, N * T).
inline at::Tensor rows_as_width(const at::Tensor& t) {
  return positions_as_width(t.reshape({t.size(-1) == 0 ? 0 : -1, t.size(-1)}).unsqueeze(0));
}

// Of x (N, C, 1, T) and grad (N, O, 1, T).
inline SquaredGradConv squared_grad_linear_shape(const at::Tensor& x, const at::Tensor& grad) {
  SquaredGradConv conv{};
  conv.samples = x.size(0);
  conv.channels = x.size(1);
  conv.outputs = grad.size(1);
  conv.height = conv.out_height = 1;
  conv.width = conv.out_width = x.size(3);
  return conv;
}

inline SquaredGradConv check_squared_grad_conv2d(const char* op, const at::Tensor& x,
                                                 const at::Tensor& grad,
                                                 at::IntArrayRef kernel_size,
                                                 at::IntArrayRef stride, at::IntArrayRef padding,
                                                 at::IntArrayRef dilation, int64_t groups,
                                                 bool half = false) {
  check_squared_grad_pair(op, x, grad, half);
  TORCH_CHECK_VALUE(x.dim() == 4 && grad.dim() == 4, op, ": x and grad must be (N, C, H, W) (got ",
                    x.sizes(), " and ", grad.sizes(),
                    "); add a batch dimension with unsqueeze(0) if it is missing");
  TORCH_CHECK_VALUE(x.size(0) == grad.size(0), op, ": x and grad must have one batch size (got ",
                    x.size(0), " and ", grad.size(0), ")");
  TORCH_CHECK_VALUE(
      groups >= 1 && x.size(1) % groups == 0 && grad.size(1) % groups == 0, op,
      ": groups must be positive and divide the channels of x and of grad (got groups=", groups,
      ", ", x.size(1), " and ", grad.size(1), " channels)");
  SquaredGradConv conv{};
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK_VALUE(kernel_size[i] >= 1 && stride[i] >= 1 && dilation[i] >= 1, op,
                      ": kernel_size, stride and dilation must be positive (got ", kernel_size,
                      ", ", stride, ", ", dilation, ")");
    TORCH_CHECK_VALUE(padding[i] >= 0, op, ": padding must not be negative (got ", padding, ")");
    conv.kernel[i] = kernel_size[i];
    conv.stride[i] = stride[i];
    conv.padding[i] = padding[i];
    conv.dilation[i] = dilation[i];
    const int64_t room = x.size(2 + i) + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1;
    const int64_t expected = room < 0 ? 0 : room / stride[i] + 1;
    TORCH_CHECK_VALUE(grad.size(2 + i) == expected, op, ": the ", i == 0 ? "height" : "width",
                      " of grad must be ", expected, " for x ", x.sizes(), ", kernel_size ",
                      kernel_size, ", stride ", stride, ", padding ", padding, ", dilation ",
                      dilation, " (got grad ", grad.sizes(),
                      "); pass the convolution's own settings");
  }
  conv.samples = x.size(0);
  conv.channels = x.size(1);
  conv.height = x.size(2);
  conv.width = x.size(3);
  conv.outputs = grad.size(1);
  conv.out_height = grad.size(2);
  conv.out_width = grad.size(3);
  conv.groups = groups;
  return conv;
}

// (N, C, *) as (N, C, T), a view where the strides allow it.
inline at::Tensor positions_last(const at::Tensor& t) {
  return t.reshape({t.size(0), t.size(1), t.numel() == 0 ? 0 : -1});
}

// grad with its channels in dimension 1: (N, C, T).
inline at::Tensor check_squared_grad_bias(const at::Tensor& grad, int64_t channel_dim,
                                          bool half = false) {
  const char* op = "squared_grad_bias";
  check_floating(op, "grad", grad, half);
  TORCH_CHECK_VALUE(grad.dim() >= 2, op, ": grad must be (N, *) with at least 2 dimensions (got ",
                    grad.sizes(), ")");
  const int64_t dim = channel_dim < 0 ? channel_dim + grad.dim() : channel_dim;
  TORCH_CHECK_VALUE(dim >= 1 && dim < grad.dim(), op,
                    ": channel_dim must name a dimension of grad other than the first, which "
                    "counts samples (got ",
                    channel_dim, " for grad ", grad.sizes(), ")");
  return positions_last(grad.movedim(dim, 1));
}

inline void check_squared_grad_norm(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                    const at::Tensor& mean, const at::Tensor& rstd,
                                    bool half = false) {
  check_squared_grad_pair(op, x, grad, half);
  check_same_sizes(op, "x", x, "grad", grad);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x and grad must be (N, C, *) (got ", x.sizes(), ")");
  for (const at::Tensor& t : {mean, rstd}) {
    TORCH_CHECK_TYPE(at::isFloatingType(t.scalar_type()), op,
                     ": mean and rstd must be floating point (got ", mean.scalar_type(), " and ",
                     rstd.scalar_type(), ")");
    TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) == x.size(1), op,
                      ": mean and rstd must be (C,) with C = ", x.size(1), " (got ", mean.sizes(),
                      " and ", rstd.sizes(), ")");
    TORCH_CHECK_VALUE(t.device() == x.device(), op, ": mean and rstd must be where x is, on ",
                      x.device(), " (got ", mean.device(), " and ", rstd.device(), ")");
  }
}

// x or grad (N, C, T) such that either channels or positions lie side by side, copied if need be.
inline at::Tensor with_unit_stride(const at::Tensor& t, bool channels_side_by_side) {
  if (channels_side_by_side)
    return t.stride(1) == 1 ? t : t.transpose(1, 2).contiguous().transpose(1, 2);
  return t.stride(2) == 1 ? t : t.contiguous();
}

}  // namespace resgrow
