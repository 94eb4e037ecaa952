// Border between the CUDA glue of tristate_relu and its kernels.
#pragma once

#include "cuda/border.h"

namespace resgrow {

// Dense tensors, in the order of their memory (outer, channels, inner). With w' = 1[w >= .5],
// d' = 1[d >= .5] and slope = w' where x >= 0 and w' d' elsewhere: out = slope * x where grad is
// null, else out = slope * grad.
struct TriStatePass {
  const void *x, *grad;
  void* out;  // null: not wanted (backward only); may be x
  const void *w, *d;
  Int w_stride;
  Type type, w_type, d_type;
  // Both or none: sums of grad x slope / w' over a channel, and of grad x w' over all x < 0.
  void *grad_w, *grad_d;  // of the gates' types
  Int outer, channels, inner;
  void* workspace;  // of tristate_relu_workspace(pass) bytes, aligned to 16
};

Int tristate_relu_workspace(const TriStatePass& pass);

// Of a pass with values.
Status launch_tristate_relu(const TriStatePass& pass, Stream stream);

}  // namespace resgrow
