// Glue of the family squared_grad: validates, finds shapes and layouts, hands over to the
// contraction or the moments.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/squared_grad_contract.h"

namespace resgrow {
namespace {

void check_pair(const char* op, const at::Tensor& x, const at::Tensor& grad) {
  check_floating(op, "x", x);
  check_same_dtype(op, "x", x, "grad", grad);
  TORCH_CHECK_VALUE(x.device() == grad.device(), op, ": x and grad must be on one device (got ",
                    x.device(), " and ", grad.device(), "); move one of them with .to(device)");
}

// (N, *, F) as (N, F, 1, T), a view where the strides allow it.
at::Tensor positions_as_width(const at::Tensor& t) {
  return t.reshape({t.size(0), t.numel() == 0 ? 0 : -1, t.size(-1)})
      .permute({0, 2, 1})
      .unsqueeze(2);
}

void check_linear(const char* op, const at::Tensor& x, const at::Tensor& grad) {
  check_pair(op, x, grad);
  TORCH_CHECK_VALUE(
      x.dim() >= 2 && x.dim() == grad.dim(), op,
      ": x (N, *, I) and grad (N, *, O) must have one number of dimensions, at least 2 (got ",
      x.sizes(), " and ", grad.sizes(), ")");
  TORCH_CHECK_VALUE(x.sizes().slice(0, x.dim() - 1) == grad.sizes().slice(0, x.dim() - 1), op,
                    ": x and grad must agree in every dimension but the last (got ", x.sizes(),
                    " and ", grad.sizes(), ")");
}

// (N, C, 1, T) and (N, O, 1, T).
at::Tensor linear(const at::Tensor& x, const at::Tensor& grad, const SquaredGradForm& form) {
  SquaredGradConv conv{};
  conv.samples = x.size(0);
  conv.channels = x.size(1);
  conv.outputs = grad.size(1);
  conv.height = conv.out_height = 1;
  conv.width = conv.out_width = x.size(3);
  return squared_grad_contract(x, grad, conv, form).view({conv.outputs, conv.channels});
}

at::Tensor squared_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  check_linear("squared_grad_linear", x, grad);
  const at::Tensor x4 = positions_as_width(x), grad4 = positions_as_width(grad);
  return linear(x4, grad4, x4.size(3) == 1 ? kPerSampleFolded : kPerSample);
}

// Without a product to be squared per sample, positions are samples.
at::Tensor squared_input_grad_linear(const at::Tensor& x, const at::Tensor& grad) {
  check_linear("squared_input_grad_linear", x, grad);
  const auto rows = [](const at::Tensor& t) {
    return positions_as_width(t.reshape({t.size(-1) == 0 ? 0 : -1, t.size(-1)}));
  };
  return linear(rows(x), rows(grad), kInputFolded);
}

SquaredGradConv convolution(const char* op, const at::Tensor& x, const at::Tensor& grad,
                            at::IntArrayRef kernel_size, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  check_pair(op, x, grad);
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

at::Tensor squared_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                               at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const SquaredGradConv conv =
      convolution("squared_grad_conv2d", x, grad, kernel_size, stride, padding, dilation, groups);
  return squared_grad_contract(x, grad, conv, kPerSample);
}

at::Tensor squared_input_grad_conv2d(const at::Tensor& x, const at::Tensor& grad,
                                     at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                     at::IntArrayRef padding, at::IntArrayRef dilation,
                                     int64_t groups) {
  const SquaredGradConv conv = convolution("squared_input_grad_conv2d", x, grad, kernel_size,
                                           stride, padding, dilation, groups);
  return squared_grad_contract(x, grad, conv, kInput);
}

// Samples are dealt to a fixed number of parts, summed in order: the result does not depend on the
// thread count.
constexpr int64_t kParts = 32;

// Strides of (N, C, T): kept if either channels or positions lie side by side, copied otherwise.
at::Tensor with_unit_stride(const at::Tensor& t, bool channels_side_by_side) {
  if (channels_side_by_side)
    return t.stride(1) == 1 ? t : t.transpose(1, 2).contiguous().transpose(1, 2);
  return t.stride(2) == 1 ? t : t.contiguous();
}

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

// (N, C, *) as (N, C, T), a view where the strides allow it.
at::Tensor positions_last(const at::Tensor& t) {
  return t.reshape({t.size(0), t.size(1), t.numel() == 0 ? 0 : -1});
}

at::Tensor squared_grad_bias(const at::Tensor& grad, int64_t channel_dim) {
  const char* op = "squared_grad_bias";
  check_floating(op, "grad", grad);
  TORCH_CHECK_VALUE(grad.dim() >= 2, op, ": grad must be (N, *) with at least 2 dimensions (got ",
                    grad.sizes(), ")");
  const int64_t dim = channel_dim < 0 ? channel_dim + grad.dim() : channel_dim;
  TORCH_CHECK_VALUE(dim >= 1 && dim < grad.dim(), op,
                    ": channel_dim must name a dimension of grad other than the first, which "
                    "counts samples (got ",
                    channel_dim, " for grad ", grad.sizes(), ")");
  return std::get<1>(moments({}, positions_last(grad.movedim(dim, 1)), {}, {}, false));
}

std::tuple<at::Tensor, at::Tensor> norm(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                        const at::Tensor& mean, const at::Tensor& rstd,
                                        bool square_input) {
  check_pair(op, x, grad);
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
