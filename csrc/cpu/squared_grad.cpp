// Glue of the family squared_grad: finds shapes and layouts, hands over to the contraction or the
// moments.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks/squared_grad.h"
#include "cpu/isa.h"
#include "cpu/squared_grad_contract.h"

namespace resgrow {
namespace {

at::Tensor squared_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  check_squared_grad_linear("squared_grad_linear", x, grad);
  const at::Tensor x4 = positions_as_width(x), grad4 = positions_as_width(grad);
  const SquaredGradConv conv = squared_grad_linear_shape(x4, grad4);
  return squared_grad_contract(x4, grad4, conv, conv.width == 1 ? kPerSampleFolded : kPerSample)
      .view({conv.outputs, conv.channels});
}

// Without a product to be squared per sample, positions are samples.
at::Tensor squared_input_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  check_squared_grad_linear("squared_input_grad_linear", x, grad);
  const at::Tensor x4 = rows_as_width(x).transpose(0, 3);
  const at::Tensor grad4 = rows_as_width(grad).transpose(0, 3);
  const SquaredGradConv conv = squared_grad_linear_shape(x4, grad4);
  return squared_grad_contract(x4, grad4, conv, kInputFolded).view({conv.outputs, conv.channels});
}

at::Tensor squared_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const SquaredGradConv conv = check_squared_grad_conv2d(
      "squared_grad_conv2d", x, grad, kernel_size, stride, padding, dilation, groups);
  return squared_grad_contract(x, grad, conv, kPerSample);
}

at::Tensor squared_input_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                                     at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     int64_t groups) {
  const SquaredGradConv conv = check_squared_grad_conv2d(
      "squared_input_grad_conv2d", x, grad, kernel_size, stride, padding, dilation, groups);
  return squared_grad_contract(x, grad, conv, kInput);
}

// Samples are dealt to a fixed number of parts, summed in order: the result does not depend on the
// thread count.
constexpr int64_t kParts = 32;

// x (or null), grad: (N, C, T). Returns (weight, bias), weight zero without x.
template <class T>
std::tuple<at::Tensor, at::Tensor> moments(const at::Tensor& x, const at::Tensor& grad,
                                           const at::Tensor& mean, const at::Tensor& rstd,
                                           bool square_input, const SquaredGradKernels<T>& family) {
  const bool side_by_side = grad.stride(1) == 1 || grad.size(2) == 1;
  const at::Tensor g = with_unit_stride(grad, side_by_side);
  const at::Tensor v = x.defined() ? with_unit_stride(x, side_by_side) : x;
  const int64_t samples = g.size(0), channels = g.size(1), parts = std::min(kParts, samples);
  const auto options = g.options().dtype(c10::CppTypeToScalarType<T>());
  const at::Tensor partial = at::zeros({2, parts, channels}, options);
  T* partials = partial.mutable_data_ptr<T>();
  SquaredGradMoments<T> all{};
  all.bfloat16 = g.scalar_type() == at::kBFloat16;
  all.square_input = square_input;
  all.channels = channels;
  all.positions = g.size(2);
  all.grad_sample = g.stride(0);
  all.grad_channel = g.stride(1);
  all.grad_position = g.stride(2);
  if (v.defined()) {
    all.x_sample = v.stride(0);
    all.x_channel = v.stride(1);
    all.x_position = v.stride(2);
    all.mean = mean.const_data_ptr<T>();
    all.rstd = rstd.const_data_ptr<T>();
  }
  const int64_t part_size = samples * channels * g.size(2) / parts;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, part_size));
  at::parallel_for(0, parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      SquaredGradMoments<T> one = all;
      const int64_t first = samples * part / parts;
      one.samples = samples * (part + 1) / parts - first;
      const char* data = static_cast<const char*>(g.const_data_ptr());
      one.grad = data + first * g.stride(0) * g.element_size();
      if (v.defined()) {
        one.x =
            static_cast<const char*>(v.const_data_ptr()) + first * v.stride(0) * v.element_size();
      }
      one.weight = partials + part * channels;
      one.bias = partials + (parts + part) * channels;
      family.moments(one);
    }
  });
  const at::Tensor weight = at::zeros({channels}, options), bias = at::zeros({channels}, options);
  T* totals[2] = {weight.mutable_data_ptr<T>(), bias.mutable_data_ptr<T>()};
  for (int64_t i = 0; i < 2 * parts; ++i) {
    for (int64_t c = 0; c < channels; ++c) totals[i / parts][c] += partials[i * channels + c];
  }
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> moments(const at::Tensor& x, const at::Tensor& grad,
                                           const at::Tensor& mean, const at::Tensor& rstd,
                                           bool square_input) {
  const auto type = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (grad.numel() == 0) {
    const at::Tensor none = at::zeros({grad.size(1)}, grad.options().dtype(type));
    return {none, none.clone()};
  }
  const auto statistic = [&](const at::Tensor& t) {
    return t.defined() ? t.to(type).contiguous() : t;
  };
  const at::Tensor m = statistic(mean), r = statistic(rstd);
  if (type == at::kDouble)
    return moments<double>(x, grad, m, r, square_input, kernels().squared_grad_double);
  return moments<float>(x, grad, m, r, square_input, kernels().squared_grad_float);
}

at::Tensor squared_grad_bias(const at::Tensor& grad, int64_t channel_dim) {
  return std::get<1>(moments({}, check_squared_grad_bias(grad, channel_dim), {}, {}, false));
}

std::tuple<at::Tensor, at::Tensor> norm(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                        const at::Tensor& mean, const at::Tensor& rstd,
                                        bool square_input) {
  check_squared_grad_norm(op, x, grad, mean, rstd);
  return moments(positions_last(x), positions_last(grad), mean, rstd, square_input);
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

TORCH_LIBRARY_IMPL(resgrow, CPU, m) {
  m.impl("squared_grad_linear", &squared_grad_linear);
  m.impl("squared_grad_conv2d", &squared_grad_conv2d);
  m.impl("squared_grad_bias", &squared_grad_bias);
  m.impl("squared_grad_norm", &squared_grad_norm);
  m.impl("squared_input_grad_linear", &squared_input_grad_linear);
  m.impl("squared_input_grad_conv2d", &squared_input_grad_conv2d);
  m.impl("squared_input_grad_norm", &squared_input_grad_norm);
}

// Curvature is not differentiated: results never require a gradient, whatever the inputs do.
TORCH_LIBRARY_IMPL(resgrow, Autograd, m) {
  for (const char* name :
       {"squared_grad_linear", "squared_grad_conv2d", "squared_grad_bias", "squared_grad_norm",
        "squared_input_grad_linear", "squared_input_grad_conv2d", "squared_input_grad_norm"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}

}  // namespace resgrow
