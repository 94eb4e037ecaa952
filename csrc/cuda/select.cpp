// select on CUDA: exact ranks over many tensors at once, and masks from them.
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks/select.h"
#include "cuda/glue.h"
#include "cuda/kernels/select_args.h"

namespace resgrow {
namespace {

#ifdef RESGROW_SIMT
// Sizes that can be interpreted take the paths of large ones.
constexpr Int kSample = 512;
constexpr Int kSampled = 3000;
#else
constexpr Int kSample = kSelectSample;
// From how many scores on a sample pays: fewer lie in the second-level cache, and digits are found
// there in less time than a sample is drawn and ranked.
constexpr Int kSampled = Int{1} << 23;
#endif

// Scores, or weights and curvatures, of which the tensors are kept as long as kernels may run.
struct Scores {
  const char* op;
  std::vector<at::Tensor> scores, curvatures;  // contiguous
  std::vector<SelectTensor> table;
  SelectCall call{};

  Scores(const char* name, at::TensorList tensors, at::TensorList of_tensors) : op(name) {
    for (const at::Tensor& t : tensors) scores.push_back(t.contiguous());
    for (const at::Tensor& t : of_tensors) curvatures.push_back(t.contiguous());
    call.type = type_of(tensors[0]);
    call.obd = !curvatures.empty();
    for (size_t i = 0; i < scores.size(); ++i) {
      const Int size = scores[i].numel();
      if (size == 0) continue;
      table.push_back({scores[i].const_data_ptr(),
                       call.obd ? curvatures[i].const_data_ptr() : nullptr, nullptr, size,
                       call.size, call.items, static_cast<int>(i)});
      const Int items = call.items + (size + kSelectItem - 1) / kSelectItem;
      TORCH_CHECK_VALUE(items < Int{1} << 31 && table.size() < size_t{1} << 21, op,
                        ": there must be at most 2^42 scores in 2^21 tensors");
      call.items = static_cast<unsigned>(items);
      call.size += size;
    }
    call.tensors = static_cast<int>(table.size());
  }

  // The masks of the call's results.
  std::vector<at::Tensor> empty_masks() {
    std::vector<at::Tensor> keep;
    for (const at::Tensor& t : scores) {
      keep.push_back(at::empty(t.sizes(), t.options().dtype(at::kBool)));
    }
    for (SelectTensor& t : table) t.keep = keep[t.index].mutable_data_ptr<bool>();
    call.masks = true;
    return keep;
  }
};

// How a sample brackets the rank. Its ranks are off by more than 3 standard deviations once in
// 400 times; then all scores are ranked by digits.
void plan_sample(SelectCall& call) {
  if (call.size < kSampled) return;
  const double share = static_cast<double>(call.k) / static_cast<double>(call.size);
  const double margin = 3 * std::sqrt(kSample * share * (1 - share) + 1);
  const auto from = std::llround(share * kSample - margin);
  const auto to = std::llround(share * kSample + margin);
  call.sample = kSample;
  call.from = static_cast<int>(from);
  call.to = static_cast<int>(to);
  // Half as much again as is likely.
  call.between =
      (call.size / kSample + 1) * (std::min(to, kSample) - std::max(from, Int{0})) * 3 / 2;
}

// Queues all that finds the rank; the result is the workspace.
at::Tensor rank(Scores& scores, const OnDeviceOf& on, int64_t k) {
  SelectCall& call = scores.call;
  call.k = k;
  call.processors = on.multiprocessors();
  plan_sample(call);
  at::Tensor workspace =
      at::empty({select_workspace(call)}, scores.scores[0].options().dtype(at::kByte));
  call.workspace = workspace.mutable_data_ptr();
  for (int from = 0; from < call.tensors; from += kSelectTable) {
    const int count = std::min(kSelectTable, call.tensors - from);
    succeeded(scores.op,
              launch_select_describe(call, scores.table.data() + from, from, count, on.stream()));
  }
  succeeded(scores.op, launch_select_rank(call, on.stream()));
  return workspace;
}

// The one place where the host waits; within a CUDA graph it cannot.
void check_nan(const Scores& scores, const OnDeviceOf& on, const at::Tensor& workspace) {
  if (on.capturing()) return;
  const at::Tensor first = workspace.narrow(0, 0, sizeof(int)).view(at::kInt);
  check_select_nan(scores.op, at::_local_scalar_dense(first).toLong(), kSelectNoNan);
}

at::Tensor select_threshold(at::TensorList tensors, int64_t k) {
  check_select_scores("select_threshold", tensors, k, 1, true);
  const OnDeviceOf on(tensors[0]);
  Scores scores("select_threshold", tensors, {});
  at::Tensor out = at::empty({}, tensors[0].options());
  const at::Tensor workspace = rank(scores, on, k);
  succeeded(scores.op, launch_select_threshold(scores.call, out.mutable_data_ptr(), on.stream()));
  check_nan(scores, on, workspace);
  return out;
}

std::vector<at::Tensor> masks(Scores scores, const OnDeviceOf& on, int64_t k) {
  std::vector<at::Tensor> keep = scores.empty_masks();
  if (scores.call.size == 0) return keep;
  // With k = 0 the bound is the smallest score and all its ties stay; it is sought for the NaN
  // check.
  const at::Tensor workspace = rank(scores, on, std::max<int64_t>(k, 1));
  succeeded(scores.op, launch_select_masks(scores.call, k, on.stream()));
  check_nan(scores, on, workspace);
  return keep;
}

std::vector<at::Tensor> select_mask(at::TensorList tensors, int64_t k) {
  check_select_scores("select_mask", tensors, k, 0, true);
  const OnDeviceOf on(tensors[0]);
  return masks(Scores("select_mask", tensors, {}), on, k);
}

std::vector<at::Tensor> select_mask_obd(at::TensorList weights, at::TensorList curvatures,
                                        double damping, int64_t k) {
  check_select_obd("select_mask_obd", weights, curvatures, damping, k, true);
  const OnDeviceOf on(weights[0]);
  Scores scores("select_mask_obd", weights, curvatures);
  scores.call.damping = damping;
  return masks(std::move(scores), on, k);
}

}  // namespace
}  // namespace resgrow

RESGROW_CUDA_LIBRARY(m) {
  m.impl("select_threshold", &resgrow::select_threshold);
  m.impl("select_mask", &resgrow::select_mask);
  m.impl("select_mask_obd", &resgrow::select_mask_obd);
}
