// Brings x and grad into the layout that the path asks for, and runs the path.
#include "cuda/squared_grad_contract.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "cuda/glue.h"

namespace resgrow {
namespace {

// The first that fits computes.
constexpr const SquaredGradPath* kPaths[] = {&squared_grad_fma};

const SquaredGradPath& path_of(const SquaredGradContraction& call) {
  for (const SquaredGradPath* path : kPaths) {
    if (path->fits(call)) return *path;
  }
  TORCH_INTERNAL_ASSERT(false, "squared_grad_fma takes every shape");
}

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

void point_at(SquaredGradContraction& call, const at::Tensor& x, const at::Tensor& grad) {
  call.x = x.const_data_ptr();
  call.x_sample = x.stride(0);
  call.x_channel = x.stride(1);
  call.x_row = x.stride(2);
  call.x_col = x.stride(3);
  call.x_group = x.size(1) / call.groups * x.stride(1);
  call.grad = grad.const_data_ptr();
  call.grad_sample = grad.stride(0);
  call.grad_channel = grad.stride(1);
  call.grad_row = grad.stride(2);
  call.grad_col = grad.stride(3);
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
  const SquaredGradPath& path = path_of(call);
  point_at(call, x, grad);
  const at::Tensor result = at::empty(sizes, options);
  const at::Tensor workspace = at::empty({path.workspace(call)}, options.dtype(at::kByte));
  call.result = result.mutable_data_ptr();
  call.workspace = workspace.mutable_data_ptr();
  succeeded(op, path.run(call, on.stream()));
  return result;
}

}  // namespace resgrow
