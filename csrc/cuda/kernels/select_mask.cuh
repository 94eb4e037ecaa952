// Masks from the rank of a score. Where a sample has left candidates, all other scores have theirs,
// and candidates are looked at alone; elsewhere one pass over the scores writes them. A last one
// writes items again in which ties stay, where others go: only such items are read.
#pragma once

#include "cuda/kernels/select_source.cuh"
#include "cuda/kernels/select_write.cuh"

namespace resgrow {

// What stays, of a rank that is known: the same for every thread.
template <class Source>
struct Bound {
  using Value = typename Source::Value;
  using Ord = Order<Value>;
  using Key = typename Ord::Key;

  Key key;
  Value limit, tie;  // scores stay unless they are <= limit, which is NaN where all stay
  U64 going;         // of the ties
  bool parted;       // some ties go and some stay
  bool written;      // all masks are, but those of candidates

  RESGROW_DEVICE Bound(const SelectWork& work, U64 drop) {
    const SelectState& s = *work.state;
    const bool numbers = s.nan == kSelectNoNan;
    key = static_cast<Key>(s.key);
    going = drop - s.below;
    parted = numbers && 0 < going && going < s.equal;
    written = numbers && s.where == kSelectCandidates;
    tie = Ord::value(key);
    limit = numbers ? Ord::value(going == 0 ? key - 1 : key) : Ord::nan();
  }
};

template <class Source>
RESGROW_DEVICE unsigned tied(const Step<Source>& step, typename Source::Value tie) {
  unsigned bits = 0;
  RESGROW_UNROLL
  for (int b = 0; b < Step<Source>::kEach; ++b) bits |= unsigned{step.value(b) == tie} << b;
  return bits & step.valid;
}

// runs: from the ties in each warp's run to those in the runs before it, and after the last.
RESGROW_DEVICE void sum_runs(U64* runs, U64* sums) {
  const int count = gridDim.x * kSelectWarps, share = (count + kSelectThreads - 1) / kSelectThreads;
  const int from = min(count, static_cast<int>(threadIdx.x) * share), to = min(count, from + share);
  U64 sum = 0;
  for (int i = from; i < to; ++i) sum += runs[i];
  U64 before = block_before(sum, sums);
  for (int i = from; i < to; ++i) {
    const U64 here = runs[i];
    runs[i] = before;
    before += here;
  }
  if (from < to && to == count) runs[count] = before;
}

// keep = score above the bound, or at it if all ties stay. Where ties are parted they are False at
// first, and counted.
template <class Source>
RESGROW_DEVICE void write_all(const SelectWork& work, const Bound<Source>& bound) {
  U64 ties_of_run = 0;
  RESGROW_NO_UNROLL
  for (SelectRun run(work); !run.done(); run.next(work)) {
    const SelectTensor& t = work.table[run.tensor];
    const Source source(work, t, run.offset(t));
    bool* keep = t.keep + run.offset(t);
    const int size = run.size(t);
    unsigned ties = 0;
    RESGROW_NO_UNROLL
    for (int start = 0; start < size; start += Step<Source>::kStep) {
      const Step<Source> step(source, start, size);
      unsigned kept = 0;
      RESGROW_UNROLL
      for (int b = 0; b < Step<Source>::kEach; ++b) {
        kept |= unsigned{!(step.value(b) <= bound.limit)} << b;
      }
      if (bound.parted) ties += __popc(tied(step, bound.tie));
      write(step, keep, start, kept);
    }
    if (!bound.parted) continue;
    const U64 sum = warp_sum(ties);
    if (threadIdx.x % 32 == 0) work.ties[run.item] = static_cast<unsigned>(sum);
    ties_of_run += sum;
  }
  if (threadIdx.x % 32 == 0) {
    work.runs[blockIdx.x * kSelectWarps + threadIdx.x / 32] = ties_of_run;
  }
}

// The same of candidates, whose masks are False so far.
template <class Source>
RESGROW_DEVICE void write_candidates(const SelectWork& work, const Bound<Source>& bound) {
  using Key = typename Bound<Source>::Key;
  const Key* keys = static_cast<const Key*>(work.candidates);
  const unsigned size = work.state->pages * kSelectPage, stride = gridDim.x * kSelectThreads;
  const U64 warps = U64{gridDim.x} * kSelectWarps;
  for (unsigned i = blockIdx.x * kSelectThreads + threadIdx.x; i < size; i += stride) {
    const Key key = keys[i];
    if (key < bound.key || key == ~Key{0}) continue;
    const U64 place = work.places[i], offset = place & ((U64{1} << kSelectPlaceBits) - 1);
    const SelectTensor& t = work.table[place >> kSelectPlaceBits];
    if (key > bound.key || bound.going == 0) {
      t.keep[offset] = true;
    } else if (bound.parted) {
      const U64 item = t.first + offset / kSelectItem;
      atomicAdd(&work.ties[item], 1u);
      // The last run that begins at the item or before.
      atomicAdd(&work.runs[(warps * (item + 1) - 1) / work.items], U64{1});
    }
  }
}

template <class Source>
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_masks(SelectWork work, U64 drop) {
  U64* sums = shared_memory<U64>();
  const Bound<Source> bound(work, drop);
  if (bound.written) {
    write_candidates(work, bound);
  } else {
    write_all(work, bound);
  }
  if (!bound.parted) return;
  if (!last_block(work.state, gridDim.x, reinterpret_cast<unsigned*>(sums + kSelectWarps))) return;
  sum_runs(work.runs, sums);
}

// Writes an item again in which the first `going` ties go.
template <class Source>
RESGROW_DEVICE void part_ties(const SelectWork& work, const SelectRun& run, Bound<Source> bound,
                              unsigned going) {
  constexpr int per = Source::kPer;
  const SelectTensor& t = work.table[run.tensor];
  const Source source(work, t, run.offset(t));
  const int size = run.size(t);
  unsigned before = 0;
  RESGROW_NO_UNROLL
  for (int start = 0; start < size; start += Step<Source>::kStep) {
    const Step<Source> step(source, start, size);
    const unsigned ties = tied(step, bound.tie);
    unsigned kept = 0;
    RESGROW_UNROLL
    for (int j = 0; j < Source::kVectors; ++j) {
      const unsigned here = ties >> (per * j) & ((1u << per) - 1);
      const unsigned first = before + warp_before(static_cast<unsigned>(__popc(here)));
      RESGROW_UNROLL
      for (int i = 0; i < per; ++i) {
        const bool stays = first + __popc(here & ((1u << i) - 1)) >= going;
        const bool above = step.value(per * j + i) > bound.tie;
        kept |= unsigned{above || ((here >> i & 1) && stays)} << (per * j + i);
      }
      before = __shfl_sync(0xffffffffu, first + __popc(here), 31);
    }
    write(step, t.keep + run.offset(t), start, kept);
  }
}

template <class Source>
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_mask_ties(SelectWork work, U64 drop) {
  const Bound<Source> bound(work, drop);
  if (!bound.parted) return;
  const unsigned warp = blockIdx.x * kSelectWarps + threadIdx.x / 32;
  U64 before = work.runs[warp];
  if (before == work.runs[warp + 1] || work.runs[warp + 1] <= bound.going) return;
  RESGROW_NO_UNROLL
  for (SelectRun run(work); !run.done(); run.next(work)) {
    const unsigned ties = work.ties[run.item];
    if (ties > 0 && before + ties > bound.going) {
      const U64 going = bound.going > before ? bound.going - before : 0;
      part_ties(work, run, bound, static_cast<unsigned>(going));
    }
    before += ties;
  }
}

}  // namespace resgrow
