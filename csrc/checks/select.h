// What select asks of its arguments, on every device.
#pragma once

#include <cmath>

#include "check.h"

namespace resgrow {

// Tensors of one floating type on one device; there is at least one.
inline void check_select_tensors(const char* op, const char* name, at::TensorList tensors,
                                 bool half) {
  TORCH_CHECK_VALUE(!tensors.empty(), op, ": ", name,
                    " must hold at least one tensor (got an empty sequence)");
  const at::Tensor& first = tensors[0];
  check_floating(op, name, first, half);
  for (size_t i = 1; i < tensors.size(); ++i) {
    TORCH_CHECK_TYPE(tensors[i].scalar_type() == first.scalar_type(), op, ": all ", name,
                     " must have one dtype (got ", first.scalar_type(), " in ", name, "[0] and ",
                     tensors[i].scalar_type(), " in ", name, "[", i,
                     "]); convert them to one first");
    TORCH_CHECK_VALUE(tensors[i].device() == first.device(), op, ": all ", name,
                      " must be on one device (got ", first.device(), " for ", name, "[0] and ",
                      tensors[i].device(), " for ", name, "[", i, "]); move them to one first");
  }
}

inline void check_select_rank(const char* op, at::TensorList tensors, int64_t k,
                              int64_t smallest_k) {
  int64_t size = 0;
  for (const at::Tensor& t : tensors) size += t.numel();
  TORCH_CHECK_VALUE(smallest_k <= k && k <= size, op, ": k must lie between ", smallest_k,
                    " and the number of scores (got k=", k, " for ", size, " scores)");
}

inline void check_select_scores(const char* op, at::TensorList scores, int64_t k,
                                int64_t smallest_k, bool half = false) {
  check_select_tensors(op, "scores", scores, half);
  check_select_rank(op, scores, k, smallest_k);
}

inline void check_select_obd(const char* op, at::TensorList weights, at::TensorList curvatures,
                             double damping, int64_t k, bool half = false) {
  check_select_tensors(op, "weights", weights, half);
  TORCH_CHECK_VALUE(weights.size() == curvatures.size(), op,
                    ": there must be one curvature per weight (got ", weights.size(),
                    " weights and ", curvatures.size(), " curvatures)");
  check_select_tensors(op, "curvatures", curvatures, half);
  check_same_dtype(op, "weights", weights[0], "curvatures", curvatures[0]);
  TORCH_CHECK_VALUE(weights[0].device() == curvatures[0].device(), op,
                    ": weights and curvatures must be on one device (got ", weights[0].device(),
                    " and ", curvatures[0].device(), ")");
  for (size_t i = 0; i < weights.size(); ++i) {
    TORCH_CHECK_VALUE(weights[i].sizes() == curvatures[i].sizes(), op,
                      ": a weight and its curvature must have one shape (got ", weights[i].sizes(),
                      " and ", curvatures[i].sizes(), " at ", i, ")");
  }
  TORCH_CHECK_VALUE(std::isfinite(damping) && damping >= 0, op,
                    ": damping must be finite and at least 0 (got ", damping, ")");
  check_select_rank(op, weights, k, 0);
}

// `tensor`: the first whose scores hold NaN, or their number if none does.
inline void check_select_nan(const char* op, int64_t tensor, int64_t tensors) {
  TORCH_CHECK_VALUE(tensor >= tensors, op, ": scores must not hold NaN (got NaN in scores[", tensor,
                    "]); look for the step that made it, or replace it with torch.nan_to_num");
}

}  // namespace resgrow
