// Launchers of select for one source of scores.
#pragma once

#include "cuda/kernels/select_mask.cuh"
#include "cuda/kernels/select_rank.cuh"
#include "cuda/kernels/select_sample.cuh"

namespace resgrow {

struct SelectPlan {
  SelectWork work;
  unsigned blocks;
  Int bytes;  // of the workspace
};

SelectPlan plan_select(const SelectCall& call, int key_bytes);

struct SelectLaunches {
  int key_bytes;
  Status (*rank)(const SelectCall&, const SelectPlan&, Stream);
  Status (*masks)(const SelectPlan&, Int drop, Stream);
};

SelectLaunches select_launches_obd(Type type);

template <class Source>
Status launch_rank(const SelectCall& call, const SelectPlan& plan, Stream stream) {
  using Ord = Order<typename Source::Value>;
  const dim3 grid(plan.blocks), block(kSelectThreads);
  Status status = 0;
  if (call.sample > 0) {
    status =
        launch(&select_bracket<Source>, dim3(1), dim3(kSelectSampleThreads),
               sizeof(SelectBracketShared), stream, plan.work, call.sample, call.from, call.to);
    if (status == 0) {
      status = launch(&select_partition<Source>, grid, block, (kSelectParts + 1) * sizeof(U64),
                      stream, plan.work);
    }
  }
  // Digits that are not left, of candidates that differ in few, are passed over.
  constexpr int digits = (Ord::kBits - Source::kZeroBits + kSelectDigitBits - 1) / kSelectDigitBits;
  for (int i = 0; i < digits && status == 0; ++i) {
    status = launch(&select_digit<Source>, grid, block, sizeof(SelectHistogramShared), stream,
                    plan.work, i == 0 && call.sample == 0);
  }
  return status;
}

template <class Source>
Status launch_masks(const SelectPlan& plan, Int drop, Stream stream) {
  const dim3 grid(plan.blocks), block(kSelectThreads);
  const Status status = launch(&select_masks<Source>, grid, block, (kSelectWarps + 1) * sizeof(U64),
                               stream, plan.work, static_cast<U64>(drop));
  if (status != 0) return status;
  return launch(&select_mask_ties<Source>, grid, block, 0, stream, plan.work,
                static_cast<U64>(drop));
}

template <class Source>
SelectLaunches select_launches() {
  return {sizeof(typename Source::Value), &launch_rank<Source>, &launch_masks<Source>};
}

// Source<T> of a type.
template <template <class> class Source>
SelectLaunches select_launches_of(Type type) {
  switch (type) {
    case Type::float64:
      return select_launches<Source<double>>();
    case Type::bfloat16:
      return select_launches<Source<BFloat16>>();
    case Type::float16:
      return select_launches<Source<Half>>();
    default:
      return select_launches<Source<float>>();
  }
}

}  // namespace resgrow
