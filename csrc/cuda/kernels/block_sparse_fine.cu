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

// The forward gathers unless blocks are so dense that whole tiles are faster.
bool gathers(const BlockSparseCall& call, Plan* plan) {
  return call.product == BlockSparseProduct::forward && make_plan(call, plan) &&
         (plan->pays || !expand_fits(call));
}

bool expands(const BlockSparseCall& call) {
  // Without tensor cores' 16-bit speed, zeros are not worth their multiplications.
  const bool fast = call.type != Type::float64 && (call.type != Type::float32 || call.tf32);
  return fast && call.product != BlockSparseProduct::weight_grad && expand_fits(call);
}

bool fits(const BlockSparseCall& call) {
  Plan plan;
  GradPlan grad;
  if (call.product == BlockSparseProduct::weight_grad) return make_grad_plan(call, &grad);
  return gathers(call, &plan) || expands(call);
}

Int workspace(const BlockSparseCall& call) {
  Plan plan;
  GradPlan grad;
  Pieces pieces(nullptr);
  if (call.product == BlockSparseProduct::weight_grad) {
    make_grad_plan(call, &grad);
    const Lists lists = take_lists(call, grad.x, /*grad=*/true, &pieces);
    pieces.next<float>(grad_sums(grad, lists));
  } else if (gathers(call, &plan)) {
    take_lists(call, plan.geometry, /*grad=*/false, &pieces);
  } else {
    return expand_workspace(call);
  }
  return pieces.used();
}

Status run_weight_grad(const BlockSparseCall& call, Stream stream) {
  GradPlan plan;
  make_grad_plan(call, &plan);
  Pieces pieces(call.workspace);
  const Lists lists = take_lists(call, plan.x, /*grad=*/true, &pieces);
  float* sums = pieces.next<float>(grad_sums(plan, lists));
  const Status made = make_lists(call, plan.x, plan.at_x.zeros, lists, stream);
  return made ? made : weight_grad(call, plan, lists, sums, stream);
}

Status run(const BlockSparseCall& call, Stream stream) {
  if (call.product == BlockSparseProduct::weight_grad) return run_weight_grad(call, stream);
  Plan plan;
  if (!gathers(call, &plan)) return expand(call, stream);
  Pieces pieces(call.workspace);
  const Lists lists = take_lists(call, plan.geometry, /*grad=*/false, &pieces);
  const Status made = make_lists(call, plan.geometry, plan.shared.zeros, lists, stream);
  return made ? made : forward(call, plan, lists, stream);
}

}  // namespace
}  // namespace fine

extern const BlockSparsePath block_sparse_fine = {fine::fits, fine::workspace, fine::run};

}  // namespace resgrow
