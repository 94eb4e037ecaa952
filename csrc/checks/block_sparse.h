// What the glue of block_sparse asks of its arguments, on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "check.h"

namespace resgrow {

struct BlockSparseSettings {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  int64_t groups;
};

// Fills a device's `Shape` from x's sizes, the number of outputs and the block.
template <class Shape>
Shape block_sparse_shape(const char* op, at::IntArrayRef x, int64_t outputs, int64_t block_out,
                         int64_t block_in, const BlockSparseSettings& c) {
  TORCH_CHECK_VALUE(x.size() == 4, op, ": x must be (N, C, H, W) (got ", x,
                    "); add a batch dimension with unsqueeze(0) if it is missing");
  TORCH_CHECK_VALUE(x[1] >= 1 && outputs >= 1, op,
                    ": x and the output must have at least one channel (got ", x[1], " and ",
                    outputs, ")");
  TORCH_CHECK_VALUE(block_out >= 4 && block_out % 4 == 0 && block_in >= 1, op,
                    ": a block must have a multiple of 4 outputs and at least one input (got ",
                    block_out, " x ", block_in,
                    "); use resgrow.ops.block_sparse_conv2d, which takes any block");
  Shape s{};
  s.samples = x[0];
  s.channels = x[1];
  s.height = x[2];
  s.width = x[3];
  s.outputs = outputs;
  s.groups = c.groups;
  s.block_out = block_out;
  s.block_in = block_in;
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    TORCH_CHECK_VALUE(
        c.kernel_size[i] >= 1 && c.stride[i] >= 1 && c.dilation[i] >= 1 && c.padding[i] >= 0, op,
        ": kernel_size, stride and dilation must be positive and padding not negative (got ",
        c.kernel_size, ", ", c.stride, ", ", c.dilation, ", ", c.padding, ")");
    s.kernel[i] = c.kernel_size[i];
    s.stride[i] = c.stride[i];
    s.padding[i] = c.padding[i];
    s.dilation[i] = c.dilation[i];
    const int64_t room = x[2 + i] + 2 * c.padding[i] - c.dilation[i] * (c.kernel_size[i] - 1) - 1;
    TORCH_CHECK_VALUE(
        room >= 0, op, ": the kernel must fit into the padded input (got kernel_size ",
        c.kernel_size, ", dilation ", c.dilation, ", padding ", c.padding, " for x ", x, ")");
    out[i] = room / c.stride[i] + 1;
  }
  s.out_height = out[0];
  s.out_width = out[1];
  TORCH_CHECK_VALUE(c.groups >= 1 && s.channels % c.groups == 0 && outputs % c.groups == 0, op,
                    ": groups must be positive and divide input and output channels (got groups=",
                    c.groups, ", ", s.channels, " and ", outputs, " channels)");
  TORCH_CHECK_VALUE(
      c.groups == 1 ||
          (outputs / c.groups % block_out == 0 && s.channels / c.groups % block_in == 0),
      op, ": with groups the blocks must divide a group's channels (got blocks ", block_out, " x ",
      block_in, " for groups of ", outputs / c.groups, " x ", s.channels / c.groups,
      "); use resgrow.ops.block_sparse_conv2d, which takes any block");
  s.rows = (outputs + block_out - 1) / block_out;
  s.cols = (s.channels / c.groups + block_in - 1) / block_in;
  return s;
}

// All but the entries of index.
inline void check_block_sparse_index(const char* op, const char* name, const at::Tensor& t,
                                     const at::Tensor& index) {
  check_same_device(op, name, t, "index", index);
  TORCH_CHECK_TYPE(index.scalar_type() == at::kInt && index.is_contiguous(), op,
                   ": index must be a contiguous int32 tensor (got ", index.scalar_type(), ")");
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == 4, op, ": index must be (4, blocks) (got ",
                    index.sizes(), "); make it with resgrow.ops.block_index");
}

inline void check_block_sparse_values(const char* op, const char* name, const at::Tensor& t,
                                      const at::Tensor& values, const at::Tensor& index) {
  check_same_dtype(op, name, t, "values", values);
  check_same_device(op, name, t, "values", values);
  TORCH_CHECK_VALUE(values.dim() == 3 && index.dim() == 2 && values.size(0) == index.size(1), op,
                    ": values must be (blocks, bi, bo), as many blocks as index has (got values ",
                    values.sizes(), " and index ", index.sizes(), ")");
}

// Before its shape is asked for, and against the shape.
inline void check_block_sparse_grad(const char* op, const at::Tensor& grad) {
  TORCH_CHECK_VALUE(grad.dim() == 4, op, ": grad must be (N, O, H, W) (got ", grad.sizes(), ")");
}
template <class Shape>
void check_block_sparse_grad(const char* op, const at::Tensor& grad, const Shape& s) {
  const std::array<int64_t, 4> want = {s.samples, s.outputs, s.out_height, s.out_width};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(want), op, ": grad must be ",
                    at::IntArrayRef(want), " (got ", grad.sizes(), ")");
}

// What is done to the outputs before they are stored. slopes: of outputs >= 0 and < 0, or none.
struct BlockSparseExtras {
  std::optional<at::Tensor> bias, residual;
  at::TensorList slopes;
};

template <class Shape>
void check_block_sparse_extras(const char* op, const at::Tensor& x, const BlockSparseExtras& extras,
                               const Shape& s) {
  const auto vector = [&](const char* name, const at::Tensor& t) {
    check_same_dtype(op, "x", x, name, t);
    check_same_device(op, "x", x, name, t);
    TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) == s.outputs, op, ": ", name, " must be (",
                      s.outputs, ",) (got ", t.sizes(), ")");
  };
  if (extras.bias) vector("bias", *extras.bias);
  TORCH_CHECK_VALUE(extras.slopes.empty() || extras.slopes.size() == 2, op,
                    ": slopes must be two, of outputs >= 0 and < 0, or none (got ",
                    extras.slopes.size(), ")");
  if (!extras.slopes.empty()) {
    vector("positive", extras.slopes[0]);
    vector("negative", extras.slopes[1]);
  }
  if (!extras.residual) return;
  const std::array<int64_t, 4> want = {s.samples, s.outputs, s.out_height, s.out_width};
  check_same_dtype(op, "x", x, "residual", *extras.residual);
  check_same_device(op, "x", x, "residual", *extras.residual);
  TORCH_CHECK_VALUE(extras.residual->sizes() == at::IntArrayRef(want), op, ": residual must be ",
                    at::IntArrayRef(want), ", as the output (got ", extras.residual->sizes(), ")");
}

}  // namespace resgrow
