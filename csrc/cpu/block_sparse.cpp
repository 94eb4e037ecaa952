// Glue of the family block_sparse: validates, brings tensors to channels_last float32 or float64,
// allocates and hands over to the three products.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "check.h"
#include "cpu/block_sparse_shape.h"

namespace resgrow {
namespace {

using at::Tensor;

struct Settings {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  int64_t groups;
};

// (bo, bi) of the values, the input's and the output's sizes.
BlockSparseShape shape_of(const char* op, at::IntArrayRef x, int64_t outputs, int64_t block_out,
                          int64_t block_in, const Settings& c) {
  TORCH_CHECK_VALUE(x.size() == 4, op, ": x must be (N, C, H, W) (got ", x,
                    "); add a batch dimension with unsqueeze(0) if it is missing");
  TORCH_CHECK_VALUE(x[1] >= 1 && outputs >= 1, op,
                    ": x and the output must have at least one channel (got ", x[1], " and ",
                    outputs, ")");
  TORCH_CHECK_VALUE(block_out >= 4 && block_out % 4 == 0 && block_in >= 1, op,
                    ": a block must have a multiple of 4 outputs and at least one input (got ",
                    block_out, " x ", block_in,
                    "); use resgrow.ops.block_sparse_conv2d, which takes any block");
  BlockSparseShape s{};
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
  s.rows = ceil_div(outputs, block_out);
  s.cols = ceil_div(s.channels / c.groups, block_in);
  return s;
}

// An index names memory: one that does not fit must not reach the kernels.
BlockSparseIndex index_of(const char* op, const Tensor& index, const BlockSparseShape& s) {
  TORCH_CHECK_TYPE(index.scalar_type() == at::kInt && index.is_contiguous(), op,
                   ": index must be a contiguous int32 tensor (got ", index.scalar_type(), ")");
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == 4, op, ": index must be (4, blocks) (got ",
                    index.sizes(), "); make it with resgrow.ops.block_index");
  const int64_t blocks = index.size(1);
  const int* data = index.const_data_ptr<int>();
  const BlockSparseIndex result{data, data + blocks, data + 2 * blocks, data + 3 * blocks, blocks};
  const Int limits[4] = {s.rows, s.cols, s.taps(), blocks};
  TORCH_CHECK_VALUE(kernels().block_sparse_float.fits(data, blocks, limits), op,
                    ": index must be that of a mask of ", s.rows, " x ", s.cols, " blocks and ",
                    s.taps(), " taps; make it with resgrow.ops.block_index");
  return result;
}

void check_values(const char* op, const Tensor& values, const Tensor& index) {
  TORCH_CHECK_VALUE(values.dim() == 3 && index.dim() == 2 && values.size(0) == index.size(1), op,
                    ": values must be (blocks, bi, bo), as many blocks as index has (got values ",
                    values.sizes(), " and index ", index.sizes(), ")");
}

// The type the kernels compute in.
at::ScalarType computed(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
Tensor channels_last(const Tensor& t) {
  return t.to(computed(t)).contiguous(at::MemoryFormat::ChannelsLast);
}
Tensor output_like(const Tensor& t, at::IntArrayRef sizes) {
  return at::empty(sizes, t.options().dtype(computed(t)), at::MemoryFormat::ChannelsLast);
}
// In the memory format of `like`.
Tensor finished(const Tensor& result, const Tensor& like) {
  const auto format = like.suggest_memory_format();
  return result.to(like.scalar_type()).contiguous(format);
}

template <class F>
void dispatch(const Tensor& t, const F& run) {
  if (computed(t) == at::kDouble) {
    run(double{});
  } else {
    run(float{});
  }
}

// A vector as long as the padded outputs.
Tensor padded(const Tensor& t, const BlockSparseShape& s) {
  const Tensor result = at::zeros({s.padded_outputs()}, t.options().dtype(computed(t)));
  result.narrow(0, 0, s.outputs).copy_(t);
  return result;
}

// slopes: of outputs >= 0 and < 0, or none.
Tensor product(const char* op, const Tensor& x, const Tensor& values, const Tensor& index,
               const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
               at::TensorList slopes, int64_t outputs, const Settings& settings) {
  check_floating(op, "x", x);
  check_same_dtype(op, "x", x, "values", values);
  check_values(op, values, index);
  const auto s = shape_of(op, x.sizes(), outputs, values.size(2), values.size(1), settings);
  const auto blocks = index_of(op, index, s);
  const auto vector = [&](const char* name, const Tensor& t) {
    check_same_dtype(op, "x", x, name, t);
    TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) == outputs, op, ": ", name, " must be (", outputs,
                      ",) (got ", t.sizes(), ")");
    return padded(t, s);
  };
  Tensor offsets, positive, negative, addend;
  if (bias) offsets = vector("bias", *bias);
  TORCH_CHECK_VALUE(slopes.empty() || slopes.size() == 2, op,
                    ": slopes must be two, of outputs >= 0 and < 0, or none (got ", slopes.size(),
                    ")");
  if (!slopes.empty()) {
    positive = vector("positive", slopes[0]);
    negative = vector("negative", slopes[1]);
  }
  const Tensor y = output_like(x, {s.samples, s.outputs, s.out_height, s.out_width});
  if (residual) {
    check_same_dtype(op, "x", x, "residual", *residual);
    TORCH_CHECK_VALUE(residual->sizes() == y.sizes(), op, ": residual must be ", y.sizes(),
                      ", as the output (got ", residual->sizes(), ")");
    addend = channels_last(*residual);
  }
  if (y.numel() == 0) return finished(y, x);
  const Tensor dense = channels_last(x), weights = values.to(computed(x)).contiguous();
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    block_sparse_forward<T>(s, blocks, dense.const_data_ptr<T>(), weights.const_data_ptr<T>(),
                            {data(offsets), data(addend), data(positive), data(negative)},
                            y.mutable_data_ptr<T>());
  });
  return finished(y, x);
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& index,
              const std::optional<Tensor>& bias, int64_t outputs, at::IntArrayRef kernel_size,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
              int64_t groups) {
  return product("block_sparse_conv2d", x, values, index, bias, {}, {}, outputs,
                 {kernel_size, stride, padding, dilation, groups});
}

Tensor conv2d_activated(const Tensor& x, const Tensor& values, const Tensor& index,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        at::TensorList slopes, int64_t outputs, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups) {
  return product("block_sparse_conv2d_activated", x, values, index, bias, residual, slopes, outputs,
                 {kernel_size, stride, padding, dilation, groups});
}

void check_grad(const char* op, const Tensor& grad, const BlockSparseShape& s) {
  const std::array<int64_t, 4> want = {s.samples, s.outputs, s.out_height, s.out_width};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(want), op, ": grad must be ",
                    at::IntArrayRef(want), " (got ", grad.sizes(), ")");
}

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                         at::IntArrayRef x_size, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups) {
  const char* op = "block_sparse_conv2d_input_grad";
  check_floating(op, "grad", grad);
  check_same_dtype(op, "grad", grad, "values", values);
  check_values(op, values, index);
  TORCH_CHECK_VALUE(grad.dim() == 4, op, ": grad must be (N, O, H, W) (got ", grad.sizes(), ")");
  const auto s = shape_of(op, x_size, grad.size(1), values.size(2), values.size(1),
                          {kernel_size, stride, padding, dilation, groups});
  check_grad(op, grad, s);
  const auto blocks = index_of(op, index, s);
  const Tensor result = output_like(grad, x_size);
  if (result.numel() == 0) return finished(result, grad);
  const Tensor dense = channels_last(grad), weights = values.to(computed(grad)).contiguous();
  dispatch(grad, [&](auto zero) {
    using T = decltype(zero);
    const auto run =
        block_sparse_transposes(s) ? block_sparse_transposed<T> : block_sparse_input_grad<T>;
    run(s, blocks, dense.const_data_ptr<T>(), weights.const_data_ptr<T>(),
        result.mutable_data_ptr<T>());
  });
  return finished(result, grad);
}

Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                          at::IntArrayRef block, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                          int64_t groups) {
  const char* op = "block_sparse_conv2d_weight_grad";
  check_floating(op, "x", x);
  check_same_dtype(op, "grad", grad, "x", x);
  TORCH_CHECK_VALUE(grad.dim() == 4, op, ": grad must be (N, O, H, W) (got ", grad.sizes(), ")");
  const auto s = shape_of(op, x.sizes(), grad.size(1), block[0], block[1],
                          {kernel_size, stride, padding, dilation, groups});
  check_grad(op, grad, s);
  const auto blocks = index_of(op, index, s);
  const auto options = x.options().dtype(computed(x));
  if (x.numel() == 0 || blocks.blocks == 0)
    return at::zeros({blocks.blocks, s.block_in, s.block_out}, x.options());
  const Tensor result = at::empty({blocks.blocks, s.block_in, s.block_out}, options);
  const Tensor input = channels_last(x), output = channels_last(grad);
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    block_sparse_weight_grad<T>(s, blocks, input.const_data_ptr<T>(), output.const_data_ptr<T>(),
                                result.mutable_data_ptr<T>());
  });
  return result.to(x.scalar_type());
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, CPU, m) {
  m.impl("block_sparse_conv2d", &resgrow::conv2d);
  m.impl("block_sparse_conv2d_activated", &resgrow::conv2d_activated);
  m.impl("block_sparse_conv2d_input_grad", &resgrow::conv2d_input_grad);
  m.impl("block_sparse_conv2d_weight_grad", &resgrow::conv2d_weight_grad);
}
