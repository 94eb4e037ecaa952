// The rank of a score, first part: a sample brackets it, one pass over all scores counts what lies
// below the bracket and collects the little that lies inside, and the rank among that is found
// digit by digit. Few scores, and those whose sample misled, are ranked by digits alone.
//
// Traffic, in bytes of all scores: 1 with a sample (the candidates are about 2 % of the scores, and
// mostly stay in the second-level cache), against 3 for the digits of float32. Masks are written
// in the same pass, but for the candidates, whose places are kept.
//
// All counts are of integers and exact, so that neither the sample nor the order in which blocks
// run shows in the result.
#pragma once

#include "cuda/kernels/select_source.cuh"
#include "cuda/kernels/select_write.cuh"

namespace resgrow {

constexpr int kSelectSampleThreads = 1024;

// Where in all scores the sample's i-th score is drawn: one from each of equal stretches, at a
// place that no period of the data follows (the finaliser of splitmix64).
RESGROW_DEVICE U64 sampled_place(unsigned i, U64 stretch) {
  U64 x = (U64{i} + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return i * stretch + (((x ^ (x >> 31)) >> 32) * stretch >> 32);
}

template <class Source>
RESGROW_DEVICE typename Source::Value score_at(const SelectWork& work, Int place) {
  int tensor = 0;
  for (int end = work.tensors; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    (work.table[middle].start <= place ? tensor : end) = middle;
  }
  const SelectTensor& t = work.table[tensor];
  return Source(work, t, place - t.start).at(0);
}

struct SelectBracketShared {
  unsigned histograms[2][kSelectBins];
  U64 sums[kSelectSampleThreads / 32];
  SelectChosen chosen[2];
};

// Adds the digits above `shift` of the keys whose known bits are those found.
template <class Key, int each>
RESGROW_DEVICE void count_sample(const Key (&keys)[each], Key found, Key known, int shift, int bits,
                                 unsigned* counts) {
  RESGROW_UNROLL
  for (int i = 0; i < each; ++i) {
    const unsigned digit = static_cast<unsigned>(keys[i] >> shift) & ((1u << bits) - 1);
    if (((keys[i] ^ found) & known) == 0) atomicAdd(&counts[digit], 1u);
  }
}

// One block: the keys of the sample's ranks from and to, which bracket the rank that is sought.
template <class Source>
RESGROW_KERNEL(kSelectSampleThreads)
void select_bracket(SelectWork work, int sample, int from, int to) {
  using Ord = Order<typename Source::Value>;
  using Key = typename Ord::Key;
  constexpr int each = kSelectSample / kSelectSampleThreads;
  SelectBracketShared& shared = *shared_memory<SelectBracketShared>();
  Key keys[each];
  RESGROW_UNROLL
  for (int i = 0; i < each; ++i) {
    const int number = i * kSelectSampleThreads + static_cast<int>(threadIdx.x);
    keys[i] = ~Key{0};
    if (number < sample) {
      const U64 place = sampled_place(number, static_cast<U64>(work.size) / sample);
      keys[i] = Ord::key(score_at<Source>(work, static_cast<Int>(place)));
    }
  }
  U64 ranks[2] = {static_cast<U64>(max(from, 1)), static_cast<U64>(min(to, sample))};
  Key found[2] = {0, 0}, known = 0;
  RESGROW_NO_UNROLL
  for (int shift = Ord::kBits; shift > Source::kZeroBits;) {
    const int bits = min(kSelectDigitBits, shift - Source::kZeroBits);
    shift -= bits;
    for (int i = threadIdx.x; i < 2 * kSelectBins; i += kSelectSampleThreads) {
      shared.histograms[i / kSelectBins][i % kSelectBins] = 0;
    }
    __syncthreads();
    const bool both = found[0] == found[1];
    count_sample(keys, found[0], known, shift, bits, shared.histograms[0]);
    if (!both) count_sample(keys, found[1], known, shift, bits, shared.histograms[1]);
    __syncthreads();
    choose(shared.histograms[0], ranks[0], shared.sums, &shared.chosen[0]);
    choose(shared.histograms[both ? 0 : 1], ranks[1], shared.sums, &shared.chosen[1]);
    __syncthreads();
    for (int end = 0; end < 2; ++end) {
      found[end] |= static_cast<Key>(shared.chosen[end].bin) << shift;
      ranks[end] -= shared.chosen[end].below;
    }
    known |= static_cast<Key>((1u << bits) - 1) << shift;
    __syncthreads();
  }
  if (threadIdx.x > 0) return;
  // An end is sought itself if it fills its side of the bracket: it has many ties then.
  const U64 most = max(shared.chosen[0].equal, shared.chosen[1].equal);
  work.state->ends = from < 1 || to > sample || 4 * most >= static_cast<U64>(to - from);
  work.state->lower = from < 1 ? Ord::key(-Ord::infinity()) : found[0];
  work.state->upper = to > sample ? Ord::key(Ord::infinity()) : found[1];
}

// A warp's pages of candidates. Every lane holds the same.
template <class Source>
struct Candidates {
  using Ord = Order<typename Source::Value>;
  using Key = typename Ord::Key;

  Key* keys;
  U64* places;
  unsigned* taken;
  unsigned pages, next = 0, room = 0;

  RESGROW_DEVICE explicit Candidates(const SelectWork& work)
      : keys(static_cast<Key*>(work.candidates)),
        places(work.places),
        taken(&work.state->pages),
        pages(work.pages) {}

  // Appends the lanes' elements of a step whose bits are set; all lanes call it. `item` is the
  // place of the item's first. Returns whether this lane's were numbers. A register cannot be
  // indexed, so that scores are read again: few.
  RESGROW_DEVICE bool append(const Step<Source>& step, U64 item, int start, unsigned bits) {
    const unsigned count = __popc(bits);
    unsigned number = warp_before(count);
    const unsigned total = __shfl_sync(0xffffffffu, number + count, 31);
    const unsigned more = total > room ? (total - room + kSelectPage - 1) / kSelectPage : 0;
    unsigned fresh = 0;
    if (more > 0) {
      if (threadIdx.x % 32 == 0) fresh = atomicAdd(taken, more) * kSelectPage;
      fresh = __shfl_sync(0xffffffffu, fresh, 0);
    }
    bool numbers = true;
    for (; bits != 0; bits &= bits - 1, ++number) {
      const int b = __ffs(bits) - 1, i = step.place(start, b / Source::kPer) + b % Source::kPer;
      const auto v = step.source.at(i);
      numbers &= v == v;
      const unsigned target = number < room ? next + number : fresh + number - room;
      if (target / kSelectPage >= pages) continue;
      keys[target] = Ord::key(v);
      if (places != nullptr) places[target] = item + i;
    }
    next = more > 0 ? fresh + total - room : next + total;
    room = room + more * kSelectPage - total;
    return numbers;
  }

  // The rest of the last page ranks behind every number.
  RESGROW_DEVICE void close() const {
    RESGROW_NO_UNROLL
    for (unsigned i = threadIdx.x % 32; i < room; i += 32) {
      if ((next + i) / kSelectPage < pages) keys[next + i] = ~Key{0};
    }
  }
};

// One lane's share of a pass that parts all scores at the bracket.
template <class Source>
struct Partition {
  using Value = typename Source::Value;
  using Ord = Order<Value>;
  static constexpr int kEach = Step<Source>::kEach;

  Value lower, upper;
  bool ends;
  Candidates<Source> candidates;
  unsigned parts[kSelectParts] = {};

  RESGROW_DEVICE explicit Partition(const SelectWork& work)
      : lower(Ord::value(static_cast<typename Ord::Key>(work.state->lower))),
        upper(Ord::value(static_cast<typename Ord::Key>(work.state->upper))),
        ends(work.state->ends),
        candidates(work) {}

  // Comparisons of values cost three operations less than those of keys, and NaN, which fails them
  // all, is met among the few scores inside. Returns whether there was none. `keep`, if not null:
  // the item's mask, True where scores are not below the bracket's upper end.
  RESGROW_DEVICE bool operator()(const Step<Source>& step, U64 item, bool* keep, int start) {
    unsigned above = 0, inside = 0;
    RESGROW_UNROLL
    for (int b = 0; b < kEach; ++b) {
      const Value v = step.value(b);
      const bool more = !(v <= lower);
      above |= unsigned{more} << b;
      inside |= unsigned{more && !(v >= upper)} << b;
    }
    inside &= step.valid;
    parts[kSelectToLower] += __popc(step.valid & ~above);
    parts[kSelectInside] += __popc(inside);
    if (keep != nullptr) write(step, keep, start, above & ~inside);
    if (ends) count_ends(step);
    return !__any_sync(0xffffffffu, inside != 0) || candidates.append(step, item, start, inside);
  }

  RESGROW_DEVICE void count_ends(const Step<Source>& step) {
    unsigned below = 0, above = 0;
    RESGROW_UNROLL
    for (int b = 0; b < kEach; ++b) {
      below |= unsigned{step.value(b) < lower} << b;
      above |= unsigned{step.value(b) > upper} << b;
    }
    parts[kSelectBelow] += __popc(below & step.valid);
    parts[kSelectAbove] += __popc(above & step.valid);
  }
};

// What the bracket says of the rank, once all scores are parted. If it says nothing, all scores
// are ranked as without a sample.
RESGROW_DEVICE void conclude_partition(const SelectWork& work) {
  SelectState& s = *work.state;
  const U64 size = static_cast<U64>(work.size), below = s.parts[kSelectBelow];
  const U64 to_lower = s.parts[kSelectToLower], to_inside = to_lower + s.parts[kSelectInside];
  const U64 to_upper = size - s.parts[kSelectAbove];
  if (work.rank > to_lower && work.rank <= to_inside) {
    if (s.pages > work.pages) return;
    s.where = kSelectCandidates;
    s.key = s.lower;
    s.rank = work.rank - to_lower;
    s.left = 0;
    for (U64 range = s.upper - s.lower; range > 0; range >>= 1) ++s.left;
    s.below = to_lower;
  } else if (s.ends && work.rank > below && work.rank <= to_lower) {
    s.where = kSelectFound;
    s.key = s.lower;
    s.below = below;
    s.equal = to_lower - below;
  } else if (s.ends && work.rank > to_inside && work.rank <= to_upper) {
    s.where = kSelectFound;
    s.key = s.upper;
    s.below = to_inside;
    s.equal = to_upper - to_inside;
  }
}

template <class Source>
RESGROW_KERNEL_OF(kSelectThreads, 2)
void select_partition(SelectWork work) {
  U64* sums = shared_memory<U64>();  // of the parts, and whether the block is the last
  if (threadIdx.x < kSelectParts) sums[threadIdx.x] = 0;
  __syncthreads();
  Partition<Source> partition(work);
  RESGROW_NO_UNROLL
  for (SelectRun run(work); !run.done(); run.next(work)) {
    const SelectTensor& t = work.table[run.tensor];
    const Source source(work, t, run.offset(t));
    const int size = run.size(t);
    const U64 item = (static_cast<U64>(run.tensor) << kSelectPlaceBits) + run.offset(t);
    bool* keep = t.keep == nullptr ? nullptr : t.keep + run.offset(t);
    if (threadIdx.x % 32 == 0) work.ties[run.item] = 0;
    bool numbers = true;
    RESGROW_NO_UNROLL
    for (int start = 0; start < size; start += Step<Source>::kStep) {
      numbers &= partition(Step<Source>(source, start, size, true), item, keep, start);
    }
    if (!numbers) atomicMin(&work.state->nan, t.index);
  }
  if (threadIdx.x % 32 == 0) work.runs[blockIdx.x * kSelectWarps + threadIdx.x / 32] = 0;
  partition.candidates.close();
  RESGROW_UNROLL
  for (int part = 0; part < kSelectParts; ++part) {
    const U64 sum = warp_sum(partition.parts[part]);
    if (threadIdx.x % 32 == 0) atomicAdd(&sums[part], sum);
  }
  __syncthreads();
  if (threadIdx.x < kSelectParts) atomicAdd(&work.state->parts[threadIdx.x], sums[threadIdx.x]);
  if (!last_block(work.state, gridDim.x, reinterpret_cast<unsigned*>(sums + kSelectParts))) return;
  if (threadIdx.x == 0) conclude_partition(work);
}

}  // namespace resgrow
