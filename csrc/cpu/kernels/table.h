// What every instruction set offers: one table of function pointers, filled by the unit
// isa_<name>.cpp. Torch-free and std-free, because those units are compiled for another
// processor than the rest and must not emit shared inline functions.
#pragma once

namespace resgrow {

struct KernelTable {
  int vector_bytes;
};

const KernelTable* kernel_table_base();
const KernelTable* kernel_table_avx2();
const KernelTable* kernel_table_avx512();

}  // namespace resgrow
