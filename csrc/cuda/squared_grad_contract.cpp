// Brings x and grad into the layout that the path asks for, and runs the path.
#include "cuda/squared_grad_contract.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "cuda/glue.h"

namespace resgrow {
namespace {

SquaredGradContraction call_of(const SquaredGradConv& conv, SquaredGradForm form,
                               const at::Tensor& x) {
  SquaredGradContraction call{};
  call.form = form;
  call.type = type_of(x);
  call.tf32 = tf32_allowed();
  call.samples = conv.samples;
  call.groups = conv.groups;
  call.channels = conv.channels / conv.groups;
  call.outputs = conv.outputs / conv.groups;
  call.height = conv.height;
  call.width = conv.width;
  call.out_height = conv.out_height;
  call.out_width = conv.out_width;
  for (int i = 0; i < 2; ++i) {
    call.kernel[i] = conv.kernel[i];
    call.stride[i] = conv.stride[i];
    call.padding[i] = conv.padding[i];
    call.dilation[i] = conv.dilation[i];
  }
  return call;
}

// Whether squared_grad_tiles can read the tensor (N, C, H, W) as it lies.
bool in_runs(const at::Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  if (t.stride(1) != 1 || address % (kSquaredGradRun * t.element_size()) != 0) return false;
  for (const int dim : {0, 2, 3}) {
    if (t.size(dim) > 1 && t.stride(dim) % kSquaredGradRun != 0) return false;
  }
  return (t.size(2) - 1) * t.stride(2) + (t.size(3) - 1) * t.stride(3) + t.size(1) <=
         std::numeric_limits<int>::max();
}

// The tensor for squared_grad_tiles: where it does not lie so, a copy with channels side by side
// and, in each group, zeros up to the next multiple. One pass over memory, of a kernel that reads
// each value taps x outputs / 128 times.
at::Tensor with_channels_in_runs(const at::Tensor& t, Int groups) {
  const Int channels = t.size(1) / groups;
  const Int filled = (channels + kSquaredGradRun - 1) / kSquaredGradRun * kSquaredGradRun;
  if (filled == channels && in_runs(t)) return t;
  const std::initializer_list<int64_t> sizes{t.size(0), t.size(2), t.size(3), groups, filled};
  const at::Tensor copy =
      filled == channels ? at::empty(sizes, t.options()) : at::zeros(sizes, t.options());
  copy.narrow(4, 0, channels).copy_(t.permute({0, 2, 3, 1}).unflatten(3, {groups, channels}));
  return copy.flatten(3).permute({0, 3, 1, 2});
}

at::Tensor with_channels_side_by_side(const at::Tensor& t, Int) {
  return t.stride(1) == 1 ? t : t.permute({0, 2, 3, 1}).contiguous().permute({0, 3, 1, 2});
}

at::Tensor as_it_lies(const at::Tensor& t, Int) {
  return t;
}

// The first path that fits computes, from operands in the layout it asks for.
struct Route {
  const SquaredGradPath& path;
  at::Tensor (*lay_out)(const at::Tensor&, Int groups);
};
constexpr Route kRoutes[] = {{squared_grad_tiles, &with_channels_in_runs},
                             {squared_grad_grouped, &with_channels_side_by_side},
                             {squared_grad_fma, &as_it_lies}};

const Route& route_of(const SquaredGradContraction& call) {
  for (const Route& route : kRoutes) {
    if (route.path.fits(call)) return route;
  }
  TORCH_INTERNAL_ASSERT(false, "squared_grad_fma takes every shape");
}

// No step is taken along a dimension of one.
Int stride_of(const at::Tensor& t, int dim) {
  return t.size(dim) > 1 ? t.stride(dim) : 0;
}

void point_at(SquaredGradContraction& call, const at::Tensor& x, const at::Tensor& grad) {
  call.x = x.const_data_ptr();
  call.x_sample = stride_of(x, 0);
  call.x_channel = x.stride(1);
  call.x_row = stride_of(x, 2);
  call.x_col = stride_of(x, 3);
  call.x_group = x.size(1) / call.groups * x.stride(1);
  call.grad = grad.const_data_ptr();
  call.grad_sample = stride_of(grad, 0);
  call.grad_channel = grad.stride(1);
  call.grad_row = stride_of(grad, 2);
  call.grad_col = stride_of(grad, 3);
  call.grad_group = grad.size(1) / call.groups * grad.stride(1);
}

}  // namespace

at::Tensor squared_grad_contract_cuda(const char* op, const at::Tensor& x, const at::Tensor& grad,
                                      const SquaredGradConv& conv, SquaredGradForm form) {
  const auto options = x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const std::initializer_list<int64_t> sizes{conv.outputs, conv.channels / conv.groups,
                                             conv.kernel[0], conv.kernel[1]};
  const Int positions = conv.out_height * conv.out_width;
  if (conv.samples == 0 || conv.channels == 0 || conv.outputs == 0 || positions == 0) {
    return at::zeros(sizes, options);
  }
  // Positions and columns are counted in 32 bits, and columns are filled up to whole vectors.
  constexpr Int kMost = std::numeric_limits<int>::max() / 2;
  const Int columns = conv.channels / conv.groups * conv.kernel[0] * conv.kernel[1];
  TORCH_CHECK_VALUE(positions <= kMost && columns <= kMost, op, ": at most ", kMost,
                    " positions of grad and weights of one output fit (got ", positions, " and ",
                    columns, "); pass fewer samples at a time or smaller images");

  const OnDeviceOf on(x);
  SquaredGradContraction call = call_of(conv, form, x);
  const Route& route = route_of(call);
  const at::Tensor inputs = route.lay_out(x, conv.groups);
  const at::Tensor grads = route.lay_out(grad, conv.groups);
  point_at(call, inputs, grads);
  const at::Tensor result = at::empty(sizes, options);
  const at::Tensor workspace = at::empty({route.path.workspace(call)}, options.dtype(at::kByte));
  call.result = result.mutable_data_ptr();
  call.workspace = workspace.mutable_data_ptr();
  succeeded(op, route.path.run(call, on.stream()));
  return result;
}

}  // namespace resgrow
