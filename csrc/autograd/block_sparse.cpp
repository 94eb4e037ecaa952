// Derivatives of block_sparse, for every device. Each of its three products is linear in both of
// its tensors and the other two are its derivatives, so that it can be differentiated any number of
// times, backward and forward.
#include <ATen/ops/add.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>

namespace resgrow {
namespace {

using at::Tensor;
namespace autograd = torch::autograd;
using OptionalTensor = std::optional<Tensor>;

// What all three share.
struct Settings {
  std::vector<int64_t> kernel_size, stride, padding, dilation;
  int64_t groups;
};

Tensor call_forward(const Tensor& x, const Tensor& values, const Tensor& index,
                    const OptionalTensor& bias, int64_t outputs, const Settings& s) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("resgrow::block_sparse_conv2d", "")
          .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, int64_t,
                        at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                        int64_t)>();
  return op.call(x, values, index, bias, outputs, s.kernel_size, s.stride, s.padding, s.dilation,
                 s.groups);
}

Tensor call_input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                       c10::SymIntArrayRef x_size, const Settings& s) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("resgrow::block_sparse_conv2d_input_grad", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&,
                                           c10::SymIntArrayRef, at::IntArrayRef, at::IntArrayRef,
                                           at::IntArrayRef, at::IntArrayRef, int64_t)>();
  return op.call(grad, values, index, x_size, s.kernel_size, s.stride, s.padding, s.dilation,
                 s.groups);
}

Tensor call_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                        at::IntArrayRef block, const Settings& s) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("resgrow::block_sparse_conv2d_weight_grad", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&,
                                           at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                                           at::IntArrayRef, at::IntArrayRef, int64_t)>();
  return op.call(grad, x, index, block, s.kernel_size, s.stride, s.padding, s.dilation, s.groups);
}

// Nodes are held by std::shared_ptr up to torch 2.12 or so and by c10::intrusive_ptr since.
using NodePtr = decltype(autograd::Edge::function);

template <class Node>
Node* make_node(std::shared_ptr<autograd::Node>& holder) {
  auto node = std::make_shared<Node>();
  holder = node;
  return node.get();
}

template <class Node>
Node* make_node(c10::intrusive_ptr<autograd::Node>& holder) {
  auto node = c10::make_intrusive<Node>();
  holder = node;
  return node.get();
}

// One product of tensors a and b.
struct BlockSparseNode : public autograd::Node {
  autograd::SavedVariable a, b, index;
  Settings settings;

  void save(const Tensor& first, const Tensor& second, const Tensor& blocks, const Settings& s) {
    a = autograd::SavedVariable(first, /*is_output=*/false);
    b = autograd::SavedVariable(second, /*is_output=*/false);
    index = autograd::SavedVariable(blocks, /*is_output=*/false);
    settings = s;
  }
  void release_variables() override {
    a.reset_data();
    b.reset_data();
    index.reset_data();
  }
  std::array<int64_t, 2> block_of(const Tensor& values) const {
    return {values.size(2), values.size(1)};
  }
};

struct ForwardBackward : public BlockSparseNode {
  autograd::variable_list apply(autograd::variable_list&& grads) override {
    autograd::variable_list result(3);
    if (!grads[0].defined()) return result;
    const Tensor x = a.unpack(), values = b.unpack(), blocks = index.unpack();
    if (task_should_compute_output(0))
      result[0] = call_input_grad(grads[0], values, blocks, x.sym_sizes(), settings);
    if (task_should_compute_output(1))
      result[1] = call_weight_grad(grads[0], x, blocks, block_of(values), settings);
    if (task_should_compute_output(2)) result[2] = grads[0].sum({0, 2, 3});
    return result;
  }
  std::string name() const override { return "BlockSparseConv2dBackward"; }
};

struct InputGradBackward : public BlockSparseNode {
  autograd::variable_list apply(autograd::variable_list&& grads) override {
    autograd::variable_list result(3);
    if (!grads[0].defined()) return result;
    const Tensor grad = a.unpack(), values = b.unpack(), blocks = index.unpack();
    if (task_should_compute_output(0))
      result[0] = call_forward(grads[0], values, blocks, {}, grad.size(1), settings);
    if (task_should_compute_output(1))
      result[1] = call_weight_grad(grad, grads[0], blocks, block_of(values), settings);
    return result;
  }
  std::string name() const override { return "BlockSparseConv2dInputGradBackward"; }
};

struct WeightGradBackward : public BlockSparseNode {
  autograd::variable_list apply(autograd::variable_list&& grads) override {
    autograd::variable_list result(3);
    if (!grads[0].defined()) return result;
    const Tensor grad = a.unpack(), x = b.unpack(), blocks = index.unpack();
    if (task_should_compute_output(0))
      result[0] = call_forward(x, grads[0], blocks, {}, grad.size(1), settings);
    if (task_should_compute_output(1))
      result[1] = call_input_grad(grad, grads[0], blocks, x.sym_sizes(), settings);
    return result;
  }
  std::string name() const override { return "BlockSparseConv2dWeightGradBackward"; }
};

Tensor tangent_of(const Tensor& t) {
  return t._fw_grad(/*level=*/0);
}

// The result of `product(a, b)`, its node where one is wanted, and its tangent where a or b has
// one.
template <class Node, class Product>
Tensor differentiable(const Tensor& a, const Tensor& b, const Tensor& index,
                      const OptionalTensor& bias, const Settings& settings,
                      const Product& product) {
  NodePtr holder;
  const Tensor offset = bias ? *bias : Tensor();
  if (autograd::compute_requires_grad(a, b, offset)) {
    auto* node = make_node<Node>(holder);
    node->set_next_edges(autograd::collect_next_edges(a, b, offset));
    node->save(a, b, index, settings);
  }
  const Tensor a_tangent = tangent_of(a), b_tangent = tangent_of(b),
               offset_tangent = bias ? tangent_of(*bias) : Tensor();
  Tensor result, tangent;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = product(a, b, bias);
    const auto add = [&](const Tensor& part) {
      tangent = tangent.defined() ? at::add(tangent, part) : part;
    };
    if (a_tangent.defined()) add(product(a_tangent, b, {}));
    if (b_tangent.defined()) add(product(a, b_tangent, {}));
    if (offset_tangent.defined()) add(offset_tangent.view({1, -1, 1, 1}).expand_as(result));
  }
  if (holder) autograd::set_history(result, holder);
  if (tangent.defined()) result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  return result;
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& index,
              const OptionalTensor& bias, int64_t outputs, at::IntArrayRef kernel_size,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
              int64_t groups) {
  const Settings s{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), groups};
  return differentiable<ForwardBackward>(
      x, values, index, bias, s,
      [&](const Tensor& a, const Tensor& b, const OptionalTensor& offset) {
        return call_forward(a, b, index, offset, outputs, s);
      });
}

Tensor conv2d_input_grad(const Tensor& grad, const Tensor& values, const Tensor& index,
                         c10::SymIntArrayRef x_size, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups) {
  const Settings s{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), groups};
  return differentiable<InputGradBackward>(
      grad, values, index, {}, s, [&](const Tensor& a, const Tensor& b, const OptionalTensor&) {
        return call_input_grad(a, b, index, x_size, s);
      });
}

Tensor conv2d_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& index,
                          at::IntArrayRef block, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                          int64_t groups) {
  const Settings s{kernel_size.vec(), stride.vec(), padding.vec(), dilation.vec(), groups};
  return differentiable<WeightGradBackward>(
      grad, x, index, {}, s, [&](const Tensor& a, const Tensor& b, const OptionalTensor&) {
        return call_weight_grad(a, b, index, block, s);
      });
}

// For inference: refuses what would need a gradient rather than returning none.
Tensor conv2d_activated(const Tensor& x, const Tensor& values, const Tensor& index,
                        const OptionalTensor& bias, const OptionalTensor& residual,
                        at::TensorList slopes, int64_t outputs, at::IntArrayRef kernel_size,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("resgrow::block_sparse_conv2d_activated", "")
          .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                        const OptionalTensor&, at::TensorList, int64_t, at::IntArrayRef,
                        at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t)>();
  TORCH_CHECK(
      !autograd::compute_requires_grad(x, values, bias ? *bias : Tensor(),
                                       residual ? *residual : Tensor(), slopes),
      "block_sparse_conv2d_activated: it is for inference (got a tensor that requires grad); "
      "call it under torch.no_grad, or apply the activation apart");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, values, index, bias, residual, slopes, outputs, kernel_size, stride, padding,
                 dilation, groups);
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, Autograd, m) {
  m.impl("block_sparse_conv2d", &resgrow::conv2d);
  m.impl("block_sparse_conv2d_activated", &resgrow::conv2d_activated);
  m.impl("block_sparse_conv2d_input_grad", &resgrow::conv2d_input_grad);
  m.impl("block_sparse_conv2d_weight_grad", &resgrow::conv2d_weight_grad);
}
