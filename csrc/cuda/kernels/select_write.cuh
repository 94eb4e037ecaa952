// How masks are written.
#pragma once

#include "cuda/kernels/select_source.cuh"

namespace resgrow {

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

}  // namespace resgrow
