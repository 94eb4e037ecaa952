// What every instruction set offers: one table of function pointers, filled by the unit
// isa_<name>.cpp. Torch-free and std-free, because those units are compiled for another
// processor than the rest and must not emit shared inline functions.
#pragma once

#include "cpu/kernels/block_sparse_args.h"
#include "cpu/kernels/select_args.h"
#include "cpu/kernels/squared_grad_args.h"
#include "cpu/kernels/tristate_relu_args.h"

namespace resgrow {

struct KernelTable {
  int vector_bytes;
  BlockSparseKernels<float> block_sparse_float;
  BlockSparseKernels<double> block_sparse_double;
  SquaredGradKernels<float> squared_grad_float;
  SquaredGradKernels<double> squared_grad_double;
  SelectKernels select_float, select_double, select_bfloat16;
  TriStateReluKernels tristate_relu_float, tristate_relu_double, tristate_relu_bfloat16;
};

const KernelTable* kernel_table_base();
const KernelTable* kernel_table_avx2();
const KernelTable* kernel_table_avx512();

}  // namespace resgrow
