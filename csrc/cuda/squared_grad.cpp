// CUDA glue of the family squared_grad: finds shapes and layouts, hands over to the contraction or
// the moments.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "checks/squared_grad.h"
#include "cuda/glue.h"
#include "cuda/squared_grad_contract.h"

namespace resgrow {
namespace {

at::Tensor squared_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  const char* op = "squared_grad_linear";
  check_squared_grad_linear(op, x, grad, true);
  // Where every sample has one position its product is squared by its factors, and samples are the
  // summed dimension.
  const bool one = x.size(0) > 0 && x.numel() == x.size(0) * x.size(-1);
  const at::Tensor x4 = one ? rows_as_width(x) : positions_as_width(x);
  const at::Tensor grad4 = one ? rows_as_width(grad) : positions_as_width(grad);
  const SquaredGradConv conv = squared_grad_linear_shape(x4, grad4);
  const auto form = one ? SquaredGradForm::factors : SquaredGradForm::per_sample;
  return squared_grad_contract_cuda(op, x4, grad4, conv, form).view({conv.outputs, conv.channels});
}

at::Tensor squared_input_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  const char* op = "squared_input_grad_linear";
  check_squared_grad_linear(op, x, grad, true);
  const at::Tensor x4 = rows_as_width(x), grad4 = rows_as_width(grad);
  const SquaredGradConv conv = squared_grad_linear_shape(x4, grad4);
  return squared_grad_contract_cuda(op, x4, grad4, conv, SquaredGradForm::input)
      .view({conv.outputs, conv.channels});
}

at::Tensor squared_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const char* op = "squared_grad_conv2d";
  const SquaredGradConv conv =
      check_squared_grad_conv2d(op, x, grad, kernel_size, stride, padding, dilation, groups, true);
  return squared_grad_contract_cuda(op, x, grad, conv, SquaredGradForm::per_sample);
}

at::Tensor squared_input_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                                     at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     int64_t groups) {
  const char* op = "squared_input_grad_conv2d";
  const SquaredGradConv conv =
      check_squared_grad_conv2d(op, x, grad, kernel_size, stride, padding, dilation, groups, true);
  return squared_grad_contract_cuda(op, x, grad, conv, SquaredGradForm::input);
}

// x (or undefined), grad: (N, C, T). Returns (weight, bias), weight undefined without x.
std::tuple<at::Tensor, at::Tensor> moments(const char* op, const at::Tensor& x,
                                           const at::Tensor& grad, const at::Tensor& mean,
                                           const at::Tensor& rstd, bool square_input) {
  const auto type = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto options = grad.options().dtype(type);
  const int64_t channels = grad.size(1);
  if (grad.numel() == 0) return {at::zeros({channels}, options), at::zeros({channels}, options)};
  const OnDeviceOf on(grad);
  const bool side_by_side = grad.stride(1) == 1 || grad.size(2) == 1;
  const at::Tensor g = with_unit_stride(grad, side_by_side);
  const at::Tensor bias = at::empty({channels}, options);
  SquaredGradMoments call{};
  call.type = type_of(g);
  call.square_input = square_input;
  call.channels_side_by_side = side_by_side;
  call.samples = g.size(0);
  call.channels = channels;
  call.positions = g.size(2);
  call.grad = g.const_data_ptr();
  call.grad_sample = g.stride(0);
  call.grad_channel = g.stride(1);
  call.grad_position = g.stride(2);
  call.bias = bias.mutable_data_ptr();
  at::Tensor v, m, r, weight;
  if (x.defined()) {
    v = with_unit_stride(x, side_by_side);
    m = mean.to(type).contiguous();
    r = rstd.to(type).contiguous();
    weight = at::empty({channels}, options);
    call.x = v.const_data_ptr();
    call.x_sample = v.stride(0);
    call.x_channel = v.stride(1);
    call.x_position = v.stride(2);
    call.mean = m.const_data_ptr();
    call.rstd = r.const_data_ptr();
    call.weight = weight.mutable_data_ptr();
  }
  const at::Tensor workspace =
      at::empty({squared_grad_moments_workspace(call)}, options.dtype(at::kByte));
  call.workspace = workspace.mutable_data_ptr();
  succeeded(op, squared_grad_moments(call, on.stream()));
  return {weight, bias};
}

at::Tensor squared_grad_bias(const at::Tensor& grad, int64_t channel_dim) {
  const at::Tensor g = check_squared_grad_bias(grad, channel_dim, true);
  return std::get<1>(moments("squared_grad_bias", {}, g, {}, {}, false));
}

std::tuple<at::Tensor, at::Tensor> norm(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                        const at::Tensor& mean, const at::Tensor& rstd,
                                        bool square_input) {
  check_squared_grad_norm(op, x, grad, mean, rstd, true);
  return moments(op, positions_last(x), positions_last(grad), mean, rstd, square_input);
}

std::tuple<at::Tensor, at::Tensor> squared_grad_norm(const at::Tensor& x, const at::Tensor& grad,
                                                     const at::Tensor& mean,
                                                     const at::Tensor& rstd) {
  return norm("squared_grad_norm", x, grad, mean, rstd, false);
}

std::tuple<at::Tensor, at::Tensor> squared_input_grad_norm(const at::Tensor& x,
                                                           const at::Tensor& grad,
                                                           const at::Tensor& mean,
                                                           const at::Tensor& rstd) {
  return norm("squared_input_grad_norm", x, grad, mean, rstd, true);
}

}  // namespace

RESGROW_CUDA_LIBRARY(m) {
  m.impl("squared_grad_linear", &squared_grad_linear);
  m.impl("squared_grad_conv2d", &squared_grad_conv2d);
  m.impl("squared_grad_bias", &squared_grad_bias);
  m.impl("squared_grad_norm", &squared_grad_norm);
  m.impl("squared_input_grad_linear", &squared_input_grad_linear);
  m.impl("squared_input_grad_conv2d", &squared_input_grad_conv2d);
  m.impl("squared_input_grad_norm", &squared_input_grad_norm);
}

}  // namespace resgrow
