// Glue of the family block_sparse on CUDA: validates, brings tensors to channels_last and hands
// over to the first path that fits.
//
// Unlike on the CPU the entries of index are not checked, since that would make the host wait for
// the device: with an index of another mask results are wrong, but no memory outside of the tensors
// is touched.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "checks/block_sparse.h"
#include "cuda/glue.h"
#include "cuda/kernels/block_sparse_args.h"
#include "cuda/kernels/block_sparse_weight_grad.h"

namespace resgrow {
namespace {

using at::Tensor;

// In the order of preference.
const BlockSparsePath* const kPaths[] = {&block_sparse_tiles, &block_sparse_weight_grad,
                                         &block_sparse_fine, &block_sparse_scalar};

// Kernels count pixels, weights and blocks in 32 bits, and elements in 64.
void check_countable(const char* op, const BlockSparseShape& s, const Tensor& index) {
  constexpr int64_t most = std::numeric_limits<int>::max();
  for (const int64_t pixels :
       {s.samples * s.height * s.width, s.samples * s.out_height * s.out_width})
    TORCH_CHECK_VALUE(pixels <= most, op,
                      ": x and the output must have less than 2^31 pixels (got ", pixels,
                      "); split the batch");
  const int64_t blocks = s.rows * s.cols * s.kernel[0] * s.kernel[1];
  const int64_t weights = blocks * s.block_out * s.block_in;
  TORCH_CHECK_VALUE(weights <= most, op,
                    ": the dense weight must have less than 2^31 elements (got ", weights,
                    "); split the layer");
  TORCH_CHECK_VALUE(index.size(1) <= blocks, op, ": index must be that of a mask of ", blocks,
                    " blocks (got ", index.size(1), "); make it with resgrow.ops.block_index");
}

Tensor channels_last(const Tensor& t) {
  return t.contiguous(at::MemoryFormat::ChannelsLast);
}
Tensor output_like(const Tensor& t, at::IntArrayRef sizes) {
  return at::empty(sizes, t.options(), at::MemoryFormat::ChannelsLast);
}
// In the memory format of `like`.
Tensor finished(const Tensor& result, const Tensor& like) {
  return result.contiguous(like.suggest_memory_format());
}

BlockSparseCall call_of(BlockSparseProduct product, const BlockSparseShape& s, const Tensor& like,
                        const Tensor& index) {
  BlockSparseCall call{};
  call.product = product;
  call.shape = s;
  call.type = type_of(like);
  call.tf32 = tf32_allowed();
  call.blocks = index.size(1);
  call.row = index.const_data_ptr<int>();
  call.col = call.row + call.blocks;
  call.tap = call.col + call.blocks;
  call.by_tap = call.tap + call.blocks;
  return call;
}

// Kernels read through these, too: the border has one type for what is read and what is written.
void* data(const Tensor& t) {
  return t.defined() ? const_cast<void*>(t.const_data_ptr()) : nullptr;
}

void run(const char* op, BlockSparseCall call, const Tensor& like) {
  const OnDeviceOf on(like);
  call.processors = on.multiprocessors();
  for (const BlockSparsePath* path : kPaths) {
    if (!path->fits(call)) continue;
    const Tensor workspace = at::empty({path->workspace(call)}, like.options().dtype(at::kByte));
    call.workspace = data(workspace);
    return succeeded(op, path->run(call, on.stream()));
  }
}

Tensor product(const char* op, const Tensor& x, const Tensor& values, const Tensor& index,
               const BlockSparseExtras& extras, int64_t outputs,
               const BlockSparseSettings& settings) {
  check_floating(op, "x", x, /*half=*/true);
  check_block_sparse_values(op, "x", x, values, index);
  const auto s = block_sparse_shape<BlockSparseShape>(op, x.sizes(), outputs, values.size(2),
                                                      values.size(1), settings);
  check_block_sparse_index(op, "x", x, index);
  check_block_sparse_extras(op, x, extras, s);
  check_countable(op, s, index);
  const Tensor y = output_like(x, {s.samples, s.outputs, s.out_height, s.out_width});
  if (y.numel() == 0) return finished(y, x);
  const Tensor dense = channels_last(x), weights = values.contiguous();
  Tensor bias, residual, positive, negative;
  if (extras.bias) bias = extras.bias->contiguous();
  if (extras.residual) residual = channels_last(*extras.residual);
  if (!extras.slopes.empty()) {
    positive = extras.slopes[0].contiguous();
    negative = extras.slopes[1].contiguous();
  }
  BlockSparseCall call = call_of(BlockSparseProduct::forward, s, x, index);
  call.x = data(dense);
  call.values = data(weights);
  call.y = data(y);
  call.bias = data(bias);
  call.residual = data(residual);
  call.positive = data(positive);
  call.negative = data(negative);
  run(op, call, x);
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
  check_floating(op, "grad", grad, /*half=*/true);
  check_block_sparse_values(op, "grad", grad, values, index);
  check_block_sparse_grad(op, grad);
  const auto s =
      block_sparse_shape<BlockSparseShape>(op, x_size, grad.size(1), values.size(2), values.size(1),
                                           {kernel_size, stride, padding, dilation, groups});
  check_block_sparse_grad(op, grad, s);
  check_block_sparse_index(op, "grad", grad, index);
  check_countable(op, s, index);
  const Tensor result = output_like(grad, x_size);
  if (result.numel() == 0) return finished(result, grad);
  const Tensor dense = channels_last(grad), weights = values.contiguous();
  BlockSparseCall call = call_of(BlockSparseProduct::input_grad, s, grad, index);
  call.x = data(result);
  call.values = data(weights);
  call.y = data(dense);
  run(op, call, grad);
  return finished(result, grad);
}

Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                          at::IntArrayRef block, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                          int64_t groups) {
  const char* op = "block_sparse_conv2d_weight_grad";
  check_floating(op, "x", x, /*half=*/true);
  check_same_dtype(op, "grad", grad, "x", x);
  check_same_device(op, "grad", grad, "x", x);
  check_block_sparse_grad(op, grad);
  const auto s =
      block_sparse_shape<BlockSparseShape>(op, x.sizes(), grad.size(1), block[0], block[1],
                                           {kernel_size, stride, padding, dilation, groups});
  check_block_sparse_grad(op, grad, s);
  check_block_sparse_index(op, "x", x, index);
  check_countable(op, s, index);
  const std::array<int64_t, 3> sizes = {index.size(1), s.block_in, s.block_out};
  if (x.numel() == 0 || sizes[0] == 0) return at::zeros(sizes, x.options());
  const Tensor result = at::empty(sizes, x.options());
  const Tensor input = channels_last(x), output = channels_last(grad);
  BlockSparseCall call = call_of(BlockSparseProduct::weight_grad, s, x, index);
  call.x = data(input);
  call.values = data(result);
  call.y = data(output);
  run(op, call, x);
  return result;
}

}  // namespace
}  // namespace resgrow

RESGROW_CUDA_LIBRARY(m) {
  m.impl("block_sparse_conv2d", &resgrow::conv2d);
  m.impl("block_sparse_conv2d_activated", &resgrow::conv2d_activated);
  m.impl("block_sparse_conv2d_input_grad", &resgrow::conv2d_input_grad);
  m.impl("block_sparse_conv2d_weight_grad", &resgrow::conv2d_weight_grad);
}
