// The native API on one screen: every operator's schema. Kernels register themselves
// beside their glue, per dispatch key.
#include <torch/library.h>

TORCH_LIBRARY(resgrow, m) {
  // squared_grad: sums over samples of squared per-sample gradients (diagonal curvature).
  m.def("squared_grad_linear(Tensor x, Tensor grad) -> Tensor");
  m.def(
      "squared_grad_conv2d(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups) -> Tensor");
  m.def("squared_grad_bias(Tensor grad, int channel_dim) -> Tensor");
  m.def("squared_grad_norm(Tensor x, Tensor grad, Tensor mean, Tensor rstd) -> (Tensor, Tensor)");

  // The same family with the input squared instead: weight gradients of x^2 (recursion of
  // diagonals).
  m.def("squared_input_grad_linear(Tensor x, Tensor grad) -> Tensor");
  m.def(
      "squared_input_grad_conv2d(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups) -> Tensor");
  m.def(
      "squared_input_grad_norm(Tensor x, Tensor grad, Tensor mean, Tensor rstd) -> "
      "(Tensor, Tensor)");

  // select: thresholds and masks over many tensors at once.
  m.def("select_threshold(Tensor[] scores, int k) -> Tensor");
  m.def("select_mask(Tensor[] scores, int k) -> Tensor[]");

  // tristate_relu: gated rectifier with straight-through gate gradients.
  m.def("tristate_relu(Tensor x, Tensor w, Tensor d) -> Tensor");
  m.def(
      "tristate_relu_backward(Tensor grad, Tensor x, Tensor w, Tensor d, bool need_x, "
      "bool need_gates) -> (Tensor, Tensor, Tensor)");
}
