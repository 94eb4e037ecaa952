// The rank of a score, second part: digit by digit, among the candidates that a sample has left or
// among all scores.
#pragma once

#include "cuda/kernels/select_source.cuh"

namespace resgrow {

// Contention: 32 adds of 1 without a result to one address are one operation (ATOMS.POPC.INC), so
// that equal and clustered scores are the cheap case; different bins of one bank take turns, about
// 3.5 for digits that spread at random. Blocks add up in private histograms.
struct SelectHistogramShared {
  unsigned counts[kSelectBins];
  U64 sums[kSelectWarps];
  SelectChosen chosen;
  unsigned last;
};

// The next digit of the keys: those with the digits found so far are less than 2^left above them.
template <class Key>
struct Digit {
  unsigned* counts;
  Key found;
  int shift, bits;

  // zero_bits: low bits of all keys that are zero.
  RESGROW_DEVICE Digit(const SelectState& state, int zero_bits, unsigned* counts)
      : counts(counts),
        found(static_cast<Key>(state.key)),
        bits(min(kSelectDigitBits, state.left - zero_bits)) {
    shift = state.left - bits;
  }

  RESGROW_DEVICE void count(Key key) const {
    const Key digit = static_cast<Key>(key - found) >> shift;
    if (digit >> bits == 0) atomicAdd(&counts[digit], 1u);
  }
};

template <class Source, class Key>
RESGROW_DEVICE void count_all(const SelectWork& work, const Digit<Key>& digit, bool look_for_nan) {
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
        digit.count(Order<typename Source::Value>::key(v));
      }
    }
    if (nan && look_for_nan) atomicMin(&work.state->nan, t.index);
  }
}

template <class Key>
RESGROW_DEVICE void count_candidates(const SelectWork& work, const Digit<Key>& digit,
                                     unsigned blocks) {
  const Key* keys = static_cast<const Key*>(work.candidates);
  const unsigned size = work.state->pages * kSelectPage, stride = blocks * kSelectThreads;
  for (unsigned i = blockIdx.x * kSelectThreads + threadIdx.x; i < size; i += stride) {
    digit.count(keys[i]);
  }
}

// Blocks that look at candidates. Each may add to every bin of the global histogram: few do, so
// that this takes less time than reading.
RESGROW_DEVICE unsigned candidate_blocks(const SelectState& state) {
  constexpr unsigned pages = 64 * kSelectThreads / kSelectPage;
  return min(gridDim.x, (state.pages + pages - 1) / pages);
}

template <class Source>
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_digit(SelectWork work, bool look_for_nan) {
  using Key = typename Order<typename Source::Value>::Key;
  SelectHistogramShared& shared = *shared_memory<SelectHistogramShared>();
  SelectState& state = *work.state;
  const int where = state.where;
  if (where == kSelectFound) return;
  const unsigned blocks = where == kSelectAll ? gridDim.x : candidate_blocks(state);
  if (blockIdx.x >= blocks || state.left <= Source::kZeroBits) return;
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) shared.counts[bin] = 0;
  const Digit<Key> digit(state, Source::kZeroBits, shared.counts);
  __syncthreads();
  if (where == kSelectAll) {
    count_all<Source>(work, digit, look_for_nan);
  } else {
    count_candidates(work, digit, blocks);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) {
    if (shared.counts[bin] > 0) atomicAdd(&work.histogram[bin], U64{shared.counts[bin]});
  }
  if (!last_block(&state, blocks, &shared.last)) return;
  choose(work.histogram, state.rank, shared.sums, &shared.chosen);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kSelectBins; bin += kSelectThreads) work.histogram[bin] = 0;
  if (threadIdx.x > 0) return;
  state.left = digit.shift;
  state.key += U64{shared.chosen.bin} << digit.shift;
  state.rank -= shared.chosen.below;
  state.below += shared.chosen.below;
  state.equal = shared.chosen.equal;
}

}  // namespace resgrow
