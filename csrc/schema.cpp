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
  m.def("select_mask_obd(Tensor[] weights, Tensor[] curvatures, float damping, int k) -> Tensor[]");

  // tristate_relu: gated rectifier with straight-through gate gradients.
  m.def("tristate_relu(Tensor x, Tensor w, Tensor d) -> Tensor");
  m.def("tristate_relu_(Tensor(a!) x, Tensor w, Tensor d) -> ()");
  m.def(
      "tristate_relu_backward(Tensor grad, Tensor x, Tensor w, Tensor d, bool need_x, "
      "bool need_gates) -> (Tensor, Tensor, Tensor)");

  // block_sparse: products that skip absent blocks. values: (blocks, bi, bo), the present ones in
  // the order of index: (4, blocks). Each of the first three is linear in both of its tensors, and
  // the other two are its derivatives; the last is for inference.
  m.def(
      "block_sparse_conv2d(Tensor x, Tensor values, Tensor index, Tensor? bias, int outputs, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor");
  m.def(
      "block_sparse_conv2d_input_grad(Tensor grad, Tensor values, Tensor index, SymInt[] x_size, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor");
  m.def(
      "block_sparse_conv2d_weight_grad(Tensor grad, Tensor x, Tensor index, int[2] block, "
      "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor");
  m.def(
      "block_sparse_conv2d_activated(Tensor x, Tensor values, Tensor index, Tensor? bias, "
      "Tensor? residual, Tensor[] slopes, int outputs, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups) -> Tensor");
}
