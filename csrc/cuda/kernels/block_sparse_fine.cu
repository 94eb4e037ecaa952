// Thin blocks: the path of the glue.
#include "cuda/kernels/block_sparse_fine.cuh"

namespace resgrow {
namespace fine {
namespace {

// Cuts memory into pieces aligned to 256 bytes.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}
  template <class T>
  T* next(Int count) {
    T* piece = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * static_cast<Int>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
  Int used() const { return used_; }

 private:
  unsigned char* memory_;
  Int used_ = 0;
};

Lists take_lists(const BlockSparseCall& call, const Geometry& g, Pieces* pieces) {
  Lists lists{};
  lists.steps = list_steps(call, g);
  lists.ranges = pieces->next<int2>(static_cast<Int>(g.rows) * g.chunks);
  lists.offsets = pieces->next<int>(lists.steps * kStep);
  lists.weights = pieces->next<uint4>(lists.steps * (g.block_out / kOutputs) * 32);
  return lists;
}

bool fits(const BlockSparseCall& call) {
  Plan plan;
  return call.product == BlockSparseProduct::forward && make_plan(call, &plan);
}

Int workspace(const BlockSparseCall& call) {
  Plan plan;
  make_plan(call, &plan);
  Pieces pieces(nullptr);
  take_lists(call, plan.geometry, &pieces);
  return pieces.used();
}

Status run(const BlockSparseCall& call, Stream stream) {
  Plan plan;
  make_plan(call, &plan);
  Pieces pieces(call.workspace);
  const Lists lists = take_lists(call, plan.geometry, &pieces);
  const Status made = make_lists(call, plan.geometry, plan.shared.zeros, lists, stream);
  return made ? made : forward(call, plan, lists, stream);
}

}  // namespace
}  // namespace fine

extern const BlockSparsePath block_sparse_fine = {fine::fits, fine::workspace, fine::run};

}  // namespace resgrow
