// tristate_relu on CUDA: what is computed into what; how is the kernels' matter.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <tuple>

#include "checks/tristate_relu.h"
#include "cuda/glue.h"
#include "cuda/kernels/tristate_relu_args.h"

namespace resgrow {
namespace {

void check_devices(const char* op, const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  check_same_device(op, "w", w, "x", x);
  check_same_device(op, "d", d, "x", x);
}

// x is dense.
TriStatePass pass_over(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  const ChannelLayout layout(x);
  TriStatePass pass{};
  pass.x = x.const_data_ptr();
  pass.w = w.const_data_ptr();
  pass.d = d.const_data_ptr();
  pass.w_stride = w.stride(0);
  pass.type = type_of(x);
  pass.w_type = type_of(w);
  pass.d_type = type_of(d);
  pass.outer = layout.outer;
  pass.channels = layout.channels;
  pass.inner = layout.inner;
  return pass;
}

// x, y: dense and laid out alike; they may be one.
void forward(const char* op, const at::Tensor& x, const at::Tensor& w, const at::Tensor& d,
             const at::Tensor& y, Stream stream) {
  TriStatePass pass = pass_over(x, w, d);
  pass.out = y.mutable_data_ptr();
  succeeded(op, launch_tristate_relu(pass, stream));
}

at::Tensor tristate_relu(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  const char* op = "tristate_relu";
  check_tristate_relu(op, x, w, d, /*half=*/true);
  check_devices(op, x, w, d);
  const OnDeviceOf on(x);
  at::Tensor y = at::empty_like(x);
  if (x.numel() > 0) forward(op, laid_out(x, y), w, d, y, on.stream());
  return y;
}

void tristate_relu_(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  const char* op = "tristate_relu_";
  check_tristate_relu(op, x, w, d, /*half=*/true);
  check_devices(op, x, w, d);
  const OnDeviceOf on(x);
  write_over(x, [&](const at::Tensor& from, const at::Tensor& to) {
    forward(op, from, w, d, to, on.stream());
  });
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Gradients that are not needed come back as empty tensors of shape (0,).
Gradients tristate_relu_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                                 const at::Tensor& d, bool need_x, bool need_gates) {
  const char* op = "tristate_relu_backward";
  check_tristate_relu_backward(op, grad, x, w, d, /*half=*/true);
  check_devices(op, x, w, d);
  check_same_device(op, "grad", grad, "x", x);
  const OnDeviceOf on(x);
  const at::Tensor like = dense_like(x);
  at::Tensor grad_x = need_x ? at::empty_like(like) : at::empty({0}, x.options());
  at::Tensor grad_w = need_gates ? at::empty_like(w) : at::empty({0}, w.options());
  at::Tensor grad_d = need_gates ? at::empty_like(d) : at::empty({0}, d.options());
  if (x.numel() == 0) return {grad_x, grad_w.zero_(), grad_d.zero_()};
  if (!need_x && !need_gates) return {grad_x, grad_w, grad_d};
  const at::Tensor dense_x = laid_out(x, like), dense_grad = laid_out(grad, like);
  TriStatePass pass = pass_over(dense_x, w, d);
  pass.grad = dense_grad.const_data_ptr();
  if (need_x) pass.out = grad_x.mutable_data_ptr();
  if (need_gates) {
    pass.grad_w = grad_w.mutable_data_ptr();
    pass.grad_d = grad_d.mutable_data_ptr();
  }
  const at::Tensor workspace =
      at::empty({tristate_relu_workspace(pass)}, x.options().dtype(at::kByte));
  pass.workspace = workspace.mutable_data_ptr();
  succeeded(op, launch_tristate_relu(pass, on.stream()));
  return {grad_x, grad_w, grad_d};
}

}  // namespace
}  // namespace resgrow

RESGROW_CUDA_LIBRARY(m) {
  m.impl("tristate_relu", &resgrow::tristate_relu);
  m.impl("tristate_relu_", &resgrow::tristate_relu_);
  m.impl("tristate_relu_backward", &resgrow::tristate_relu_backward);
}
