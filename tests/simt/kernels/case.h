// Kernels that test the interpreter, by name.
#pragma once

#include "cuda/border.h"

namespace resgrow {

struct CaseArgs {
  const float* x;
  float* y;
  float* parts;
  int* counter;
  int n;
};

struct Case {
  const char* name;
  void (*right)(CaseArgs);
  void (*wrong)(CaseArgs);  // the same with a fault, or null
  unsigned blocks, threads, shared;
};
// The tables of the units of this folder; the last row has no name.
extern const Case fault_cases[];
extern const Case copy_cases[];
extern const Case warp_cases[];

Status launch_case(const Case&, bool wrong, const CaseArgs&, Stream);

}  // namespace resgrow
