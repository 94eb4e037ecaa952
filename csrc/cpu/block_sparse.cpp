// Glue of the family block_sparse: validates, brings tensors to channels_last float32 or float64,
// allocates and hands over to the three products.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "check.h"
#include "checks/block_sparse.h"
#include "cpu/block_sparse_shape.h"

namespace resgrow {
namespace {

using at::Tensor;

// An index names memory: one that does not fit must not reach the kernels.
BlockSparseIndex index_of(const char* op, const char* name, const Tensor& t, const Tensor& index,
                          const BlockSparseShape& s) {
  check_block_sparse_index(op, name, t, index);
  const int64_t blocks = index.size(1);
  const int* data = index.const_data_ptr<int>();
  const BlockSparseIndex result{data, data + blocks, data + 2 * blocks, data + 3 * blocks, blocks};
  const Int limits[4] = {s.rows, s.cols, s.taps(), blocks};
  TORCH_CHECK_VALUE(kernels().block_sparse_float.fits(data, blocks, limits), op,
                    ": index must be that of a mask of ", s.rows, " x ", s.cols, " blocks and ",
                    s.taps(), " taps; make it with resgrow.ops.block_index");
  return result;
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

Tensor product(const char* op, const Tensor& x, const Tensor& values, const Tensor& index,
               const BlockSparseExtras& extras, int64_t outputs,
               const BlockSparseSettings& settings) {
  check_floating(op, "x", x);
  check_block_sparse_values(op, "x", x, values, index);
  const auto s = block_sparse_shape<BlockSparseShape>(op, x.sizes(), outputs, values.size(2),
                                                      values.size(1), settings);
  const auto blocks = index_of(op, "x", x, index, s);
  check_block_sparse_extras(op, x, extras, s);
  Tensor offsets, positive, negative, addend;
  if (extras.bias) offsets = padded(*extras.bias, s);
  if (!extras.slopes.empty()) {
    positive = padded(extras.slopes[0], s);
    negative = padded(extras.slopes[1], s);
  }
  if (extras.residual) addend = channels_last(*extras.residual);
  const Tensor y = output_like(x, {s.samples, s.outputs, s.out_height, s.out_width});
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
  return product("block_sparse_conv2d", x, values, index, {bias, {}, {}}, outputs,
                 {kernel_size, stride, padding, dilation, groups});
}

Tensor conv2d_activated(const Tensor& x, const Tensor& values, const Tensor& index,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        at::TensorList slopes, int64_t outputs, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups) {
  return product("block_sparse_conv2d_activated", x, values, index, {bias, residual, slopes},
                 outputs, {kernel_size, stride, padding, dilation, groups});
}

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                         at::IntArrayRef x_size, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups) {
  const char* op = "block_sparse_conv2d_input_grad";
  check_floating(op, "grad", grad);
  check_block_sparse_values(op, "grad", grad, values, index);
  check_block_sparse_grad(op, grad);
  const auto s =
      block_sparse_shape<BlockSparseShape>(op, x_size, grad.size(1), values.size(2), values.size(1),
                                           {kernel_size, stride, padding, dilation, groups});
  check_block_sparse_grad(op, grad, s);
  const auto blocks = index_of(op, "grad", grad, index, s);
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
  check_same_device(op, "grad", grad, "x", x);
  check_block_sparse_grad(op, grad);
  const auto s =
      block_sparse_shape<BlockSparseShape>(op, x.sizes(), grad.size(1), block[0], block[1],
                                           {kernel_size, stride, padding, dilation, groups});
  check_block_sparse_grad(op, grad, s);
  const auto blocks = index_of(op, "x", x, index, s);
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
