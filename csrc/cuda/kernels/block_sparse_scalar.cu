// block_sparse without tensor cores: any block, any geometry, any type.
#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace {

const ScalarProduct& product_of(const BlockSparseCall& call) {
  switch (call.product) {
    case BlockSparseProduct::input_grad:
      return scalar_input_grad;
    case BlockSparseProduct::weight_grad:
      return scalar_weight_grad;
    default:
      return scalar_forward;
  }
}

bool fits(const BlockSparseCall&) {
  return true;
}
Int workspace(const BlockSparseCall& call) {
  return product_of(call).workspace(call);
}
Status run(const BlockSparseCall& call, Stream stream) {
  return product_of(call).run(call, stream);
}

// The number of blocks of rows below r, whatever the entries are: between 0 and `blocks`.
RESGROW_KERNEL(kScalarThreads) void row_starts(const int* row, int blocks, int rows, int* starts) {
  const int r = blockIdx.x * kScalarThreads + threadIdx.x;
  if (r > rows) return;
  int low = 0, high = blocks;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (row[middle] < r) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[r] = low;
}

}  // namespace

Status find_row_starts(const BlockSparseCall& call, int* starts, Stream stream) {
  const int rows = static_cast<int>(call.shape.rows);
  return launch(&row_starts, dim3(rows / kScalarThreads + 1), dim3(kScalarThreads), 0, stream,
                call.row, static_cast<int>(call.blocks), rows, starts);
}

const BlockSparsePath block_sparse_scalar = {fits, workspace, run};

}  // namespace resgrow
