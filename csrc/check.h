// Checks used by the glue. Messages name the op, the rule and what was given.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace resgrow {

// The types the kernels are written for, float16 those on CUDA only. Everything below float32
// accumulates in float32.
inline void check_floating(const char* op, const char* name, const at::Tensor& t,
                           bool half = false) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 ||
                       (half && type == at::kHalf),
                   op, ": ", name, " must be float32, float64",
                   half ? ", bfloat16 or float16" : " or bfloat16", " (got ", type,
                   "); convert it with .to(torch.float32)");
}

inline void check_same_dtype(const char* op, const char* a_name, const at::Tensor& a,
                             const char* b_name, const at::Tensor& b) {
  TORCH_CHECK_TYPE(a.scalar_type() == b.scalar_type(), op, ": ", a_name, " and ", b_name,
                   " must have one dtype (got ", a.scalar_type(), " and ", b.scalar_type(), ")");
}

// A kernel is given pointers: those of another device would end the process.
inline void check_same_device(const char* op, const char* a_name, const at::Tensor& a,
                              const char* b_name, const at::Tensor& b) {
  TORCH_CHECK_VALUE(a.device() == b.device(), op, ": ", a_name, " and ", b_name,
                    " must be on one device (got ", a.device(), " and ", b.device(), ")");
}

inline void check_same_sizes(const char* op, const char* a_name, const at::Tensor& a,
                             const char* b_name, const at::Tensor& b) {
  TORCH_CHECK_VALUE(a.sizes() == b.sizes(), op, ": ", a_name, " and ", b_name,
                    " must have one shape (got ", a.sizes(), " and ", b.sizes(), ")");
}

}  // namespace resgrow
