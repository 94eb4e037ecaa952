// Barriers, shuffles and votes under CUDA's names. They carry the caller's place in the source.
#pragma once

#include "simt/conversions.h"
#include "simt/interface.h"

SIMT_INLINE void __syncthreads(simt::Where where = simt::here()) {
  simt::barrier(where);
}
SIMT_INLINE int __syncthreads_or(int v, simt::Where where = simt::here()) {
  return simt::barrier_vote(simt::Vote::any, v != 0, where);
}
SIMT_INLINE int __syncthreads_and(int v, simt::Where where = simt::here()) {
  return simt::barrier_vote(simt::Vote::all, v != 0, where);
}
SIMT_INLINE int __syncthreads_count(int v, simt::Where where = simt::here()) {
  return simt::barrier_vote(simt::Vote::count, v != 0, where);
}
SIMT_INLINE void __syncwarp(unsigned mask = 0xffffffff, simt::Where where = simt::here()) {
  simt::warp_barrier(mask, where);
}

SIMT_INLINE unsigned __ballot_sync(unsigned mask, int v, simt::Where where = simt::here()) {
  return simt::ballot(mask, v != 0, where);
}
SIMT_INLINE int __any_sync(unsigned mask, int v, simt::Where where = simt::here()) {
  return simt::ballot(mask, v != 0, where) != 0;
}
SIMT_INLINE int __all_sync(unsigned mask, int v, simt::Where where = simt::here()) {
  return simt::ballot(mask, v != 0, where) == 0xffffffff;
}

namespace simt {

template <unsigned size>
struct Bits;
template <>
struct Bits<4> {
  using type = uint32_t;
};
template <>
struct Bits<8> {
  using type = uint64_t;
};

template <class T>
SIMT_INLINE T shuffled(unsigned mask, T v, unsigned source, Where where) {
  using Word = typename Bits<sizeof(T)>::type;
  const uint64_t bits = __builtin_bit_cast(Word, v);
  return __builtin_bit_cast(T, static_cast<Word>(shuffle(mask, bits, source, where)));
}

// Shuffles stay within segments of `width` lanes; a lane whose source lies outside keeps its own.
SIMT_INLINE unsigned segment(unsigned width) {
  return lane() & ~(width - 1);
}

}  // namespace simt

template <class T>
SIMT_INLINE T __shfl_sync(unsigned mask, T v, int source, int width = 32,
                          simt::Where where = simt::here()) {
  return simt::shuffled(mask, v, simt::segment(width) + (source & (width - 1)), where);
}
template <class T>
SIMT_INLINE T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32,
                              simt::Where where = simt::here()) {
  // Lanes of earlier segments may be read, as on the machine.
  const unsigned source = simt::lane() ^ lanes;
  const bool inside = source < simt::segment(width) + width;
  return simt::shuffled(mask, v, inside ? source : simt::lane(), where);
}
template <class T>
SIMT_INLINE T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32,
                             simt::Where where = simt::here()) {
  const bool inside = simt::lane() >= simt::segment(width) + delta;
  return simt::shuffled(mask, v, inside ? simt::lane() - delta : simt::lane(), where);
}
template <class T>
SIMT_INLINE T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32,
                               simt::Where where = simt::here()) {
  const unsigned source = simt::lane() + delta;
  const bool inside = source < simt::segment(width) + width;
  return simt::shuffled(mask, v, inside ? source : simt::lane(), where);
}
