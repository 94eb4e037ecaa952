// The rank of a score, second part: digit by digit, among the candidates that a sample has left or
// among all scores.
#pragma once

#include "cuda/kernels/select_source.cuh"

namespace resgrow {

// One digit of the keys: `bits` bits above `shift`; `known` are the bits above those.
struct SelectDigit {
  int shift, bits;
  U64 known;
  bool look_for_nan;
};

// Contention: 32 adds of 1 without a result to one address are one operation (ATOMS.POPC.INC), so
// that equal and clustered scores are the cheap case; different bins of one bank take turns, about
// 3.5 for digits that spread at random. Blocks add up in private histograms.
struct SelectHistogramShared {
  unsigned counts[kSelectBins];
  U64 sums[kSelectWarps];
  SelectChosen chosen;
  unsigned last;
};

template <class Key>
RESGROW_DEVICE void count_digit(unsigned* counts, Key key, Key found, const SelectDigit& digit) {
  if (((key ^ found) & static_cast<Key>(digit.known)) != 0) return;
  atomicAdd(&counts[static_cast<unsigned>(key >> digit.shift) & ((1u << digit.bits) - 1)], 1u);
}

template <class Source>
RESGROW_DEVICE void count_all(const SelectWork& work, const SelectDigit& digit, unsigned* counts) {
  using Ord = Order<typename Source::Value>;
  const auto found = static_cast<typename Ord::Key>(work.state->key);
  RESGROW_NO_UNROLL
  for (SelectRun run(work); !run.done(); run.next(work)) {
    const SelectTensor& t = work.table[run.tensor];
    const Source source(work, t, run.offset(t));
    const int size = run.size(t);
    bool nan = false;
    RESGROW_NO_UNROLL
    for (int start = 0; start < size; start += Step<Source>::kStep) {
      const Step<Source> step(source, start, size);
      RESGROW_UNROLL
      for (int b = 0; b < Step<Source>::kEach; ++b) {
        const auto v = step.value(b);
        if ((step.valid >> b & 1) == 0) continue;
        nan |= v != v;
        count_digit(counts, Ord::key(v), found, digit);
      }
    }
    if (nan && digit.look_for_nan) atomicMin(&work.state->nan, t.index);
  }
}

template <class Key>
RESGROW_DEVICE void count_candidates(const SelectWork& work, const SelectDigit& digit,
                                     unsigned* counts) {
  const Key found = static_cast<Key>(work.state->key);
  const Key* keys = static_cast<const Key*>(work.candidates);
  const unsigned size = work.state->pages * kSelectPage, stride = gridDim.x * kSelectThreads;
  for (unsigned i = blockIdx.x * kSelectThreads + threadIdx.x; i < size; i += stride) {
    count_digit(counts, keys[i], found, digit);
  }
}

template <class Source>
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_digit(SelectWork work, SelectDigit digit) {
  SelectHistogramShared& shared = *shared_memory<SelectHistogramShared>();
  SelectState& state = *work.state;
  const int where = state.where;
  if (where == kSelectFound) return;
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) shared.counts[bin] = 0;
  __syncthreads();
  if (where == kSelectAll) {
    count_all<Source>(work, digit, shared.counts);
  } else {
    count_candidates<typename Order<typename Source::Value>::Key>(work, digit, shared.counts);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) {
    if (shared.counts[bin] > 0) atomicAdd(&work.histogram[bin], U64{shared.counts[bin]});
  }
  if (!last_block(&state, &shared.last)) return;
  choose(work.histogram, state.rank, shared.sums, &shared.chosen);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) work.histogram[bin] = 0;
  if (threadIdx.x > 0) return;
  state.key |= U64{shared.chosen.bin} << digit.shift;
  state.rank -= shared.chosen.below;
  state.below += shared.chosen.below;
  state.equal = shared.chosen.equal;
}

}  // namespace resgrow
