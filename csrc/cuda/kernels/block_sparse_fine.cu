// Thin blocks: the path of the glue.
#include "cuda/kernels/block_sparse_fine.cuh"

namespace resgrow {
namespace fine {
namespace {

Lists take_lists(const BlockSparseCall& call, const Geometry& g, bool grad, Pieces* pieces) {
  Lists lists{};
  lists.steps = list_steps(call, g);
  lists.ranges = pieces->next<int2>(static_cast<Int>(g.rows) * g.chunks);
  lists.offsets = pieces->next<int>(lists.steps * kStep);
  if (grad) {
    lists.entries = pieces->next<int>(lists.steps * kStep);
  } else {
    lists.weights = pieces->next<uint4>(lists.steps * (g.block_out / kOutputs) * 32);
  }
  return lists;
}

// Forward and weight gradient gather unless blocks are so dense that whole tiles are faster.
bool gathers(const BlockSparseCall& call, Plan* plan) {
  return call.product == BlockSparseProduct::forward && make_plan(call, plan) &&
         (plan->pays || !expand_fits(call));
}
bool gathers(const BlockSparseCall& call, GradPlan* plan) {
  return call.product == BlockSparseProduct::weight_grad && make_grad_plan(call, plan) &&
         (plan->pays || !expand_fits(call));
}

bool expands(const BlockSparseCall& call) {
  // Without the speed of 16 bits or tf32, zeros are not worth their multiplications.
  return call.type != Type::float64 && (call.type != Type::float32 || call.tf32) &&
         expand_fits(call);
}

bool fits(const BlockSparseCall& call) {
  Plan plan;
  GradPlan grad;
  return gathers(call, &plan) || gathers(call, &grad) || expands(call);
}

Int workspace(const BlockSparseCall& call) {
  Plan plan;
  GradPlan grad;
  Pieces pieces(nullptr);
  if (gathers(call, &plan)) {
    take_lists(call, plan.geometry, /*grad=*/false, &pieces);
  } else if (gathers(call, &grad)) {
    const Lists lists = take_lists(call, grad.x, /*grad=*/true, &pieces);
    pieces.next<float>(grad_sums(grad, lists));
  } else {
    return expand_workspace(call);
  }
  return pieces.used();
}

Status run_forward(const BlockSparseCall& call, const Plan& plan, Stream stream) {
  Pieces pieces(call.workspace);
  const Lists lists = take_lists(call, plan.geometry, /*grad=*/false, &pieces);
  const Status made = make_lists(call, plan.geometry, plan.shared.zeros, lists, stream);
  return made ? made : forward(call, plan, lists, stream);
}

Status run_weight_grad(const BlockSparseCall& call, const GradPlan& plan, Stream stream) {
  Pieces pieces(call.workspace);
  const Lists lists = take_lists(call, plan.x, /*grad=*/true, &pieces);
  float* sums = pieces.next<float>(grad_sums(plan, lists));
  const Status made = make_lists(call, plan.x, plan.at_x.zeros, lists, stream);
  return made ? made : weight_grad(call, plan, lists, sums, stream);
}

Status run(const BlockSparseCall& call, Stream stream) {
  Plan plan;
  GradPlan grad;
  if (gathers(call, &plan)) return run_forward(call, plan, stream);
  if (gathers(call, &grad)) return run_weight_grad(call, grad, stream);
  return expand(call, stream);
}

}  // namespace
}  // namespace fine

extern const BlockSparsePath block_sparse_fine = {fine::fits, fine::workspace, fine::run};

}  // namespace resgrow
