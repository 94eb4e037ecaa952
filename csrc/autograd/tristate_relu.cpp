// Derivative of tristate_relu, for every device. A plain graph node, as torch's own operators have:
// no Python per call, and torch.func and torch.compile look through it.
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>
#include <tuple>
#include <utility>

namespace resgrow {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;
namespace autograd = torch::autograd;

Tensor call(const Tensor& x, const Tensor& w, const Tensor& d) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("resgrow::tristate_relu", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&)>();
  return op.call(x, w, d);
}

Gradients call_backward(const Tensor& grad, const Tensor& x, const Tensor& w, const Tensor& d,
                        bool need_x, bool need_gates) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("resgrow::tristate_relu_backward", "")
                             .typed<Gradients(const Tensor&, const Tensor&, const Tensor&,
                                              const Tensor&, bool, bool)>();
  return op.call(grad, x, w, d, need_x, need_gates);
}

// Nodes are held by std::shared_ptr up to torch 2.12 or so and by c10::intrusive_ptr since.
using NodePtr = decltype(autograd::Edge::function);

template <class Node, class... Args>
Node* make_node(std::shared_ptr<autograd::Node>& holder, Args&&... args) {
  auto node = std::make_shared<Node>(std::forward<Args>(args)...);
  holder = node;
  return node.get();
}

template <class Node, class... Args>
Node* make_node(c10::intrusive_ptr<autograd::Node>& holder, Args&&... args) {
  auto node = c10::make_intrusive<Node>(std::forward<Args>(args)...);
  holder = node;
  return node.get();
}

struct TriStateReluBackward : public autograd::Node {
  autograd::SavedVariable x, w, d;

  autograd::variable_list apply(autograd::variable_list&& grads) override {
    autograd::variable_list result(3);
    if (!grads[0].defined()) return result;
    const bool need_x = task_should_compute_output(0);
    const bool need_w = task_should_compute_output(1), need_d = task_should_compute_output(2);
    auto [grad_x, grad_w, grad_d] =
        call_backward(grads[0], x.unpack(), w.unpack(), d.unpack(), need_x, need_w || need_d);
    if (need_x) result[0] = std::move(grad_x);
    if (need_w) result[1] = std::move(grad_w);
    if (need_d) result[2] = std::move(grad_d);
    return result;
  }

  void release_variables() override {
    x.reset_data();
    w.reset_data();
    d.reset_data();
  }

  std::string name() const override { return "TriStateReluBackward"; }
};

bool has_tangent(const Tensor& t) {
  return t._fw_grad(/*level=*/0).defined();
}

Tensor tristate_relu(const Tensor& x, const Tensor& w, const Tensor& d) {
  TORCH_CHECK(
      !has_tangent(w) && !has_tangent(d),
      "tristate_relu: forward-mode differentiation passes through x only (got a tangent for a "
      "gate); the gates' gradients are straight-through and exist in backward mode");
  NodePtr holder;
  if (autograd::compute_requires_grad(x, w, d)) {
    auto* node = make_node<TriStateReluBackward>(holder);
    node->set_next_edges(autograd::collect_next_edges(x, w, d));
    node->x = autograd::SavedVariable(x, /*is_output=*/false);
    node->w = autograd::SavedVariable(w, /*is_output=*/false);
    node->d = autograd::SavedVariable(d, /*is_output=*/false);
  }
  Tensor y;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    y = call(x, w, d);
  }
  if (holder) autograd::set_history(y, holder);
  if (has_tangent(x)) {
    const Tensor tangent =
        std::get<0>(call_backward(x._fw_grad(0), x._fw_primal(0), w, d, true, false));
    y._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  }
  return y;
}

// Closed gates need the input to learn to reopen: what has been written over cannot be
// differentiated.
void tristate_relu_(const Tensor& x, const Tensor& w, const Tensor& d) {
  TORCH_CHECK(!autograd::compute_requires_grad(x, w, d) && !has_tangent(x) && !has_tangent(w) &&
                  !has_tangent(d),
              "tristate_relu_: it writes over its input, which a gradient would need (got a tensor "
              "that requires grad, or a tangent); call tristate_relu without inplace, or under "
              "torch.no_grad");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("resgrow::tristate_relu_", "")
                             .typed<void(const Tensor&, const Tensor&, const Tensor&)>();
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.call(x, w, d);
  }
  autograd::impl::bump_version(x);
}

// The gates' true derivative is zero almost everywhere: differentiating the straight-through
// gradients again would mean nothing.
Gradients tristate_relu_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                 const Tensor& d, bool need_x, bool need_gates) {
  TORCH_CHECK(
      !has_tangent(grad) && !has_tangent(x) && !has_tangent(w) && !has_tangent(d),
      "tristate_relu_backward: it cannot be differentiated again (got a forward-mode tangent)");
  NodePtr holder;
  if (autograd::compute_requires_grad(grad, x, w, d)) {
    make_node<autograd::Error>(
        holder,
        "tristate_relu: it can be differentiated once only (got a second backward pass); call "
        "backward "
        "without create_graph, or use torch.relu where second derivatives are needed",
        autograd::collect_next_edges(grad, x, w, d));
  }
  Gradients result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    result = call_backward(grad, x, w, d, need_x, need_gates);
  }
  if (holder) {
    autograd::set_history(std::get<0>(result), holder);
    autograd::set_history(std::get<1>(result), holder);
    autograd::set_history(std::get<2>(result), holder);
  }
  return result;
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, Autograd, m) {
  m.impl("tristate_relu", &resgrow::tristate_relu);
  m.impl("tristate_relu_", &resgrow::tristate_relu_);
  m.impl("tristate_relu_backward", &resgrow::tristate_relu_backward);
}
