// Masks from the rank of a score: one pass over the scores, and a second one over the items in
// which ties are parted or stay.
#pragma once

#include "cuda/kernels/select_source.cuh"

namespace resgrow {

// What stays, of a rank that is known: the same for every thread.
template <class Source>
struct Bound {
  using Value = typename Source::Value;
  using Ord = Order<Value>;

  Value limit, tie;  // scores stay unless they are <= limit, which is NaN where all stay
  U64 going;         // of the ties
  bool parted;       // some ties go and some stay

  RESGROW_DEVICE Bound(const SelectWork& work, U64 drop) {
    const SelectState& s = *work.state;
    const auto key = static_cast<typename Ord::Key>(s.key);
    going = drop - s.below;
    parted = s.nan == kSelectNoNan && 0 < going && going < s.equal;
    tie = Ord::value(key);
    limit = s.nan != kSelectNoNan ? Ord::nan() : Ord::value(going == 0 ? key - 1 : key);
  }
};

template <class Source>
RESGROW_DEVICE unsigned tied(const Step<Source>& step, typename Source::Value tie) {
  unsigned bits = 0;
  RESGROW_UNROLL
  for (int b = 0; b < Step<Source>::kEach; ++b) bits |= unsigned{step.value(b) == tie} << b;
  return bits & step.valid;
}

// One byte of 0 or 1 for each of four bits: the products of the multiplication do not meet.
RESGROW_DEVICE unsigned spread(unsigned bits) {
  return (bits & 15) * 0x00204081u & 0x01010101u;
}

// A lane writes the bytes of one vector's elements, a warp a whole line's (float32): wider stores
// would only need shuffles before them.
template <class Source>
RESGROW_DEVICE void write(const Step<Source>& step, bool* keep, int start, unsigned kept) {
  constexpr int per = Source::kPer;
  if (step.valid != step.kAll) {
    RESGROW_NO_UNROLL
    for (unsigned left = step.valid; left != 0; left &= left - 1) {
      const int b = __ffs(left) - 1;
      keep[step.place(start, b / per) + b % per] = kept >> b & 1;
    }
    return;
  }
  RESGROW_UNROLL
  for (int j = 0; j < Source::kVectors; ++j) {
    bool* target = keep + step.place(start, j);
    const unsigned bits = kept >> (per * j);
    if constexpr (per == 8) {
      store(target, uint2{spread(bits), spread(bits >> 4)});
    } else if constexpr (per == 4) {
      store(target, spread(bits));
    } else {
      store(target, static_cast<unsigned short>(spread(bits & 3)));
    }
  }
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
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_mask_all(SelectWork work, U64 drop) {
  U64* sums = shared_memory<U64>();
  const Bound<Source> bound(work, drop);
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
    if (threadIdx.x % 32 == 0) work.ties[run.item] = static_cast<unsigned short>(sum);
    ties_of_run += sum;
  }
  if (!bound.parted) return;
  if (threadIdx.x % 32 == 0) {
    work.runs[blockIdx.x * kSelectWarps + threadIdx.x / 32] = ties_of_run;
  }
  if (!last_block(work.state, reinterpret_cast<unsigned*>(sums + kSelectWarps))) return;
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
