// What the glue of tristate_relu checks and prepares, whatever the device.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>

#include "check.h"

namespace resgrow {

// half: the device has kernels for float16.
inline void check_tristate_relu(const char* op, const at::Tensor& x, const at::Tensor& w,
                                const at::Tensor& d, bool half) {
  check_floating(op, "x", x, half);
  check_floating(op, "w", w, half);
  check_floating(op, "d", d, half);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x must be (N, C, *) (got ", x.sizes(),
                    "); unsqueeze a batch dimension");
  TORCH_CHECK_VALUE(w.dim() == 1 && w.size(0) == x.size(1), op,
                    ": w must be (C,), one gate per channel of x (got w ", w.sizes(), " for x ",
                    x.sizes(), ")");
  TORCH_CHECK_VALUE(d.dim() == 0, op, ": d must be 0-dim, one gate per layer (got ", d.sizes(),
                    ")");
}

inline void check_tristate_relu_backward(const char* op, const at::Tensor& grad,
                                         const at::Tensor& x, const at::Tensor& w,
                                         const at::Tensor& d, bool half) {
  check_tristate_relu(op, x, w, d, half);
  check_same_dtype(op, "grad", grad, "x", x);
  check_same_sizes(op, "grad", grad, "x", x);
}

// `t` itself where it is laid out like `like`, else a copy that is.
inline at::Tensor laid_out(const at::Tensor& t, const at::Tensor& like) {
  return t.strides() == like.strides() ? t : at::empty_like(like).copy_(t);
}

// What the backward's tensors are laid out like: x where that is dense.
inline at::Tensor dense_like(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : at::empty_like(x);
}

// Writes what `into(dense x, y laid out like it)` makes over x itself.
template <class Into>
void write_over(const at::Tensor& x, const Into& into) {
  at::assert_no_internal_overlap(x);
  if (x.numel() == 0) return;
  if (x.is_non_overlapping_and_dense()) {
    into(x, x);
  } else {
    const at::Tensor dense = at::empty_like(x).copy_(x);
    into(dense, dense);
    x.copy_(dense);
  }
}

// Any dense tensor is, in the order of its memory, (outer, channels, inner).
struct ChannelLayout {
  int64_t outer, channels, inner;

  explicit ChannelLayout(const at::Tensor& x)
      : channels(x.size(1)), inner(channels == 1 ? x.numel() : x.stride(1)) {
    outer = x.numel() == 0 ? 0 : x.numel() / (channels * inner);
  }
};

}  // namespace resgrow
