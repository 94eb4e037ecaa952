// What the kernels of select share: ranks as integers, the workspace, and a warp's run of items.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/select_args.h"

namespace resgrow {

using U64 = unsigned long long;

constexpr int kSelectThreads = 512;
constexpr int kSelectWarps = kSelectThreads / 32;
constexpr int kSelectDigitBits = 11;
constexpr int kSelectBins = 1 << kSelectDigitBits;

// Keys are unsigned integers in the order of the values, one for both zeros; NaNs have the keys
// beyond those of the infinities. No value has key 0, and no number has the greatest.
template <class Value>
struct Order;

template <>
struct Order<float> {
  using Key = unsigned;
  static constexpr int kBits = 32;
  static RESGROW_DEVICE Key key(float v) {
    const unsigned bits = __float_as_uint(v);
    const unsigned negative = static_cast<unsigned>(static_cast<int>(bits) >> 31);
    return (bits ^ (negative & 0x7fffffffu)) - negative + 0x80000000u;
  }
  static RESGROW_DEVICE float value(Key key) {
    return __uint_as_float(key < 0x80000000u ? 0u - key : key - 0x80000000u);
  }
  static RESGROW_DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
  static RESGROW_DEVICE float nan() { return __uint_as_float(0x7fc00000u); }
};

template <>
struct Order<double> {
  using Key = U64;
  static constexpr int kBits = 64;
  static constexpr Key kSign = Key{1} << 63;
  static RESGROW_DEVICE Key key(double v) {
    const Key bits = static_cast<Key>(__double_as_longlong(v));
    const Key negative = static_cast<Key>(static_cast<Int>(bits) >> 63);
    return (bits ^ (negative & ~kSign)) - negative + kSign;
  }
  static RESGROW_DEVICE double value(Key key) {
    return __longlong_as_double(static_cast<Int>(key < kSign ? 0 - key : key - kSign));
  }
  static RESGROW_DEVICE double infinity() { return __longlong_as_double(0x7ff0000000000000); }
  static RESGROW_DEVICE double nan() { return __longlong_as_double(0x7ff8000000000000); }
};

enum SelectWhere { kSelectAll, kSelectCandidates, kSelectFound };
// Numbers of scores: <= lower, between lower and upper, < lower, > upper.
enum SelectPart { kSelectToLower, kSelectInside, kSelectBelow, kSelectAbove, kSelectParts };

// What one kernel leaves to the next. Keys are of the values' width.
struct SelectState {
  int nan;           // the first tensor that holds NaN, or kSelectNoNan; the host reads it
  unsigned ticket;   // blocks of the running kernel that are done
  unsigned pages;    // of candidates that are taken
  int where;         // what holds the score that is sought: a SelectWhere
  U64 lower, upper;  // keys of the bracket
  int ends;          // whether scores < lower and > upper are counted
  U64 parts[kSelectParts];
  // The key that is sought is less than 2^left above `key`; `rank` is its rank among such keys.
  U64 key, rank;
  int left;
  U64 below, equal;  // scores with a smaller key and with this one, as far as it is known
};

// Candidates are kept in pages that warps take one by one, so that appending to the own page needs
// neither barriers nor more than one atomic operation per page.
constexpr int kSelectPage = 128;

// The workspace's parts, and what every kernel is told.
struct SelectWork {
  SelectState* state;
  U64* histogram;       // (kSelectBins), zero between kernels
  SelectTensor* table;  // (tensors)
  U64* runs;            // (warps): ties in each warp's run, then those before it
  unsigned* ties;       // (items): ties in each
  void* candidates;     // (pages, kSelectPage) keys
  U64* places;          // (pages, kSelectPage) theirs, or null where no masks are wanted
  U64 rank;             // that is sought among all
  Int size;
  unsigned items, pages;
  int tensors, key_bits;
  double damping;
};

// A warp's run of consecutive items; every lane holds the same.
struct SelectRun {
  unsigned item, last;
  int tensor;

  RESGROW_DEVICE explicit SelectRun(const SelectWork& work) {
    const U64 warps = U64{gridDim.x} * kSelectWarps;
    const U64 warp = U64{blockIdx.x} * kSelectWarps + threadIdx.x / 32;
    item = static_cast<unsigned>(work.items * warp / warps);
    last = static_cast<unsigned>(work.items * (warp + 1) / warps);
    tensor = 0;
    // The last tensor that begins at the item or before, sought at 32 places at once.
    for (int end = work.tensors; end - tensor > 1;) {
      const int stride = (end - tensor + 31) / 32;
      const int place = tensor + static_cast<int>(threadIdx.x % 32) * stride;
      const bool before = place < end && work.table[place].first <= item;
      tensor += (__popc(__ballot_sync(0xffffffffu, before)) - 1) * stride;
      end = min(end, tensor + stride);
    }
  }

  RESGROW_DEVICE bool done() const { return item >= last; }
  RESGROW_DEVICE void next(const SelectWork& work) {
    ++item;
    if (tensor + 1 < work.tensors && work.table[tensor + 1].first <= item) ++tensor;
  }
  // Of the item's first element in its tensor, and how many it has.
  RESGROW_DEVICE Int offset(const SelectTensor& t) const {
    return Int{item - t.first} * kSelectItem;
  }
  RESGROW_DEVICE int size(const SelectTensor& t) const {
    return static_cast<int>(min(Int{kSelectItem}, t.size - offset(t)));
  }
};

RESGROW_DEVICE U64 warp_sum(U64 v) {
  for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

// The sum over the lanes before this one.
template <class T>
RESGROW_DEVICE T warp_before(T v) {
  const int lane = threadIdx.x % 32;
  T sum = v;
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, sum, lanes);
    if (lane >= lanes) sum += other;
  }
  return sum - v;
}

// The sum over the threads before this one; `sums` is shared, one per warp.
RESGROW_DEVICE U64 block_before(U64 v, U64* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  U64 before = warp_before(v);
  __syncthreads();
  if (lane == 31) sums[warp] = before + v;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += sums[w];
  return before;
}

// Whether this block is the last of the first `blocks`: what the others wrote before is seen by all
// its threads.
RESGROW_DEVICE bool last_block(SelectState* state, unsigned blocks, unsigned* shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *shared = atomicAdd(&state->ticket, 1u) == blocks - 1;
    if (*shared) state->ticket = 0;
  }
  __syncthreads();
  if (!*shared) return false;
  __threadfence();  // drops what this multiprocessor has cached since before
  return true;
}

// The bin that holds a rank, and what lies in the bins before it and in itself.
struct SelectChosen {
  U64 below, equal;
  unsigned bin;
};

// 1 <= rank <= sum of the histogram; the answer is shared and ready after a barrier. (With NaN
// among the scores ranks may be missing: the bin is the last then.)
template <class Count>
RESGROW_DEVICE void choose(const Count* histogram, U64 rank, U64* sums, SelectChosen* chosen) {
  constexpr int most = kSelectBins / kSelectThreads;
  const int share = kSelectBins / static_cast<int>(blockDim.x);  // 4, or 2 in blocks of 1024
  Count counts[most];
  U64 sum = 0;
  RESGROW_UNROLL
  for (int i = 0; i < most; ++i) {
    counts[i] = i < share ? histogram[threadIdx.x * share + i] : Count{0};
    sum += counts[i];
  }
  if (threadIdx.x == 0) *chosen = {0, 0, kSelectBins - 1};
  U64 below = block_before(sum, sums);
  if (rank <= below || rank > below + sum) return;
  RESGROW_UNROLL
  for (int i = 0; i < most; ++i) {
    if (rank > below && rank <= below + counts[i]) {
      *chosen = {below, counts[i], threadIdx.x * share + i};
    }
    below += counts[i];
  }
}

}  // namespace resgrow
