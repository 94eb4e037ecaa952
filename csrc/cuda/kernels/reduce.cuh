// Sums over a warp and a block in one fixed order: the same bits in every run and for every
// scheduling. All threads of the block take part; blocks are one-dimensional, of whole warps.
#pragma once

#include "cuda/kernels/device.h"

namespace resgrow {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// In every lane: both partners of an exchange add the same two values.
template <class T>
RESGROW_DEVICE T warp_sum(T v) {
  RESGROW_UNROLL
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    v += __shfl_xor_sync(kAllLanes, v, distance);
  }
  return v;
}

// In every thread. shared: 32 values that no thread uses until the next barrier.
template <class T>
RESGROW_DEVICE T block_sum(T v, T* shared) {
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  v = warp_sum(v);
  if (lane == 0) shared[threadIdx.x / kWarp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : T(0));
}

}  // namespace resgrow
