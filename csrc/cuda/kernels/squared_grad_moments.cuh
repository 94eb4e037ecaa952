// Squared per-sample gradients of biases and of norm layers' gains: one pass over x and grad.
//
// Memory-bound: 2 or 4 operations per element read. Each thread has four loads of 16 bytes of each
// operand in flight, a block of 256 threads 16 KiB, a multiprocessor with two or three of them 48
// to 64 KiB. By Little's law 4.8 TB/s at 0.8 us of latency ask for 29 KiB per multiprocessor, so
// there is room for the reductions in between.
// A block sums whole samples, squares each sum and adds up its samples; the blocks' totals are
// added in order by a second, tiny kernel.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/squared_grad_args.h"
#include "cuda/kernels/value.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = 256;
constexpr int kFlight = 4;  // loads in flight per operand

// VECTOR values of T, 16 bytes at once where there are so many.
template <class T, int VECTOR>
struct Pack {
  T value[VECTOR];
};

template <class T, int VECTOR>
RESGROW_DEVICE Pack<T, VECTOR> fetch(const T* p) {
  if constexpr (VECTOR == 1) {
    return {p[0]};
  } else {
    static_assert(sizeof(Pack<T, VECTOR>) == sizeof(uint4), "16 bytes");
    union {
      uint4 bytes;
      Pack<T, VECTOR> pack;
    } u;
    u.bytes = load_once(p);
    return u.pack;
  }
}

// Samples are dealt to the parts blockIdx.y: `each` to every part, one more to the first `more`.
struct Deal {
  Int each, more;
};
struct Share {
  Int first, last;
};

RESGROW_DEVICE Share share_of(const Deal& deal) {
  const Int part = blockIdx.y;
  const Int first = part * deal.each + min(part, deal.more);
  return {first, first + deal.each + (part < deal.more ? 1 : 0)};
}

// sums[0]: of grad; sums[1]: of grad times centred x, or times its square.
template <class T, int VECTOR, int SUMS, class A>
RESGROW_DEVICE void add(A (&sums)[SUMS][VECTOR], const Pack<T, VECTOR>& g, const Pack<T, VECTOR>& x,
                        const A (&mean)[VECTOR], bool square_input) {
  RESGROW_UNROLL
  for (int v = 0; v < VECTOR; ++v) {
    const A grad = widen(g.value[v]);
    sums[0][v] += grad;
    if constexpr (SUMS == 2) {
      const A centred = static_cast<A>(widen(x.value[v])) - mean[v];
      sums[1][v] += grad * (square_input ? centred * centred : centred);
    }
  }
}

template <class A>
RESGROW_DEVICE A sample_term(A sum, bool square_input) {
  return square_input ? sum : sum * sum;
}

// Channels side by side. The block's threads are LANES vectors of channels wide; the remaining
// dimension is split into `along` threads that share a sample's positions and groups of such
// threads that take every so-manieth sample, so that short samples keep all threads busy.
struct ChannelPlan {
  int lanes, along;  // powers of two; lanes * along <= kThreads
};

// 16 sums, their totals and means and the loads in flight want more than the 80 registers that
// three blocks leave to a thread.
template <class T, int VECTOR, int SUMS>
RESGROW_KERNEL_OF(kThreads, VECTOR* SUMS > 8 ? 2 : 3)
void moments_channels(const SquaredGradMoments a, const Deal deal, const ChannelPlan plan) {
  using A = typename SumOf<T>::type;
  A* const shared = shared_memory<A>();
  const int lane = threadIdx.x % plan.lanes, row = threadIdx.x / plan.lanes;
  const int along = row % plan.along, turn = row / plan.along;
  const int turns = kThreads / (plan.lanes * plan.along);
  const Int channel = (Int(blockIdx.x) * plan.lanes + lane) * VECTOR;
  const bool inside = channel < a.channels;
  const Share share = share_of(deal);

  A mean[VECTOR] = {}, total[SUMS][VECTOR] = {};
  if constexpr (SUMS == 2) {
    if (inside) {
      RESGROW_UNROLL
      for (int v = 0; v < VECTOR; ++v) mean[v] = static_cast<const A*>(a.mean)[channel + v];
    }
  }
  // A sample's value belongs to one thread of those that share the sample: value i to thread i.
  const int values = plan.lanes * VECTOR * SUMS;  // of one sample
  for (Int start = share.first; start < share.last; start += turns) {
    const Int n = start + turn;
    A sums[SUMS][VECTOR] = {};
    if (inside && n < share.last) {
      const T* const grad = static_cast<const T*>(a.grad) + n * a.grad_sample + channel;
      const T* const x =
          SUMS == 2 ? static_cast<const T*>(a.x) + n * a.x_sample + channel : nullptr;
      Int t = along;
      const auto step = Int(plan.along);
      for (; t + (kFlight - 1) * step < a.positions; t += kFlight * step) {
        Pack<T, VECTOR> g[kFlight], v[kFlight] = {};
        RESGROW_UNROLL
        for (int i = 0; i < kFlight; ++i) {
          g[i] = fetch<T, VECTOR>(grad + (t + i * step) * a.grad_position);
          if constexpr (SUMS == 2) v[i] = fetch<T, VECTOR>(x + (t + i * step) * a.x_position);
        }
        RESGROW_UNROLL
        for (int i = 0; i < kFlight; ++i) {
          add<T, VECTOR, SUMS>(sums, g[i], v[i], mean, a.square_input);
        }
      }
      for (; t < a.positions; t += step) {
        Pack<T, VECTOR> v = {};
        if constexpr (SUMS == 2) v = fetch<T, VECTOR>(x + t * a.x_position);
        add<T, VECTOR, SUMS>(sums, fetch<T, VECTOR>(grad + t * a.grad_position), v, mean,
                             a.square_input);
      }
    }
    if (plan.along > 1) {
      // Sums in the order of `along`: the same whatever the schedule.
      __syncthreads();
      RESGROW_UNROLL
      for (int s = 0; s < SUMS; ++s) {
        RESGROW_UNROLL
        for (int v = 0; v < VECTOR; ++v) {
          shared[row * values + (s * VECTOR + v) * plan.lanes + lane] = sums[s][v];
        }
      }
      __syncthreads();
      // The first of the threads takes no more than the others: thread `along` sums the values
      // along, along + plan.along, ... of its lane.
      RESGROW_UNROLL
      for (int i = 0; i < SUMS * VECTOR; ++i) {
        if (i % plan.along != along) continue;
        A sum = 0;
        for (int r = 0; r < plan.along; ++r) {
          sum += shared[(turn * plan.along + r) * values + i * plan.lanes + lane];
        }
        total[i / VECTOR][i % VECTOR] += sample_term(sum, a.square_input);
      }
    } else {
      RESGROW_UNROLL
      for (int i = 0; i < SUMS * VECTOR; ++i) {
        total[i / VECTOR][i % VECTOR] += sample_term(sums[i / VECTOR][i % VECTOR], a.square_input);
      }
    }
  }

  // The turns' totals, in order; value i of a lane lies with the thread that added it up.
  __syncthreads();
  RESGROW_UNROLL
  for (int i = 0; i < SUMS * VECTOR; ++i) {
    if (i % plan.along == along) {
      shared[turn * values + i * plan.lanes + lane] = total[i / VECTOR][i % VECTOR];
    }
  }
  __syncthreads();
  A* const partial = static_cast<A*>(a.workspace);
  for (int i = threadIdx.x; i < values; i += kThreads) {
    const int which = i / plan.lanes, s = which / VECTOR;
    const Int c = (Int(blockIdx.x) * plan.lanes + i % plan.lanes) * VECTOR + which % VECTOR;
    if (c >= a.channels) continue;
    A sum = 0;
    for (int t = 0; t < turns; ++t) sum += shared[t * values + i];
    partial[(Int(s) * gridDim.y + blockIdx.y) * a.channels + c] = sum;
  }
}

// Positions side by side: a warp per channel, its samples one after the other.
template <class T, int VECTOR, int SUMS>
RESGROW_KERNEL(kThreads)
void moments_positions(const SquaredGradMoments a, const Deal deal) {
  using A = typename SumOf<T>::type;
  const int lane = threadIdx.x % 32;
  const Int channel = Int(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (channel >= a.channels) return;
  const Share share = share_of(deal);
  A mean[VECTOR] = {}, total[SUMS] = {};
  if constexpr (SUMS == 2) {
    RESGROW_UNROLL
    for (int v = 0; v < VECTOR; ++v) mean[v] = static_cast<const A*>(a.mean)[channel];
  }
  const Int vectors = a.positions / VECTOR;
  for (Int n = share.first; n < share.last; ++n) {
    const T* const grad =
        static_cast<const T*>(a.grad) + n * a.grad_sample + channel * a.grad_channel;
    const T* const x =
        SUMS == 2 ? static_cast<const T*>(a.x) + n * a.x_sample + channel * a.x_channel : nullptr;
    A sums[SUMS][VECTOR] = {};
    Int t = lane;
    for (; t + (kFlight - 1) * 32 < vectors; t += kFlight * 32) {
      Pack<T, VECTOR> g[kFlight], v[kFlight] = {};
      RESGROW_UNROLL
      for (int i = 0; i < kFlight; ++i) {
        g[i] = fetch<T, VECTOR>(grad + (t + i * 32) * VECTOR);
        if constexpr (SUMS == 2) v[i] = fetch<T, VECTOR>(x + (t + i * 32) * VECTOR);
      }
      RESGROW_UNROLL
      for (int i = 0; i < kFlight; ++i) {
        add<T, VECTOR, SUMS>(sums, g[i], v[i], mean, a.square_input);
      }
    }
    for (; t < vectors; t += 32) {
      Pack<T, VECTOR> v = {};
      if constexpr (SUMS == 2) v = fetch<T, VECTOR>(x + t * VECTOR);
      add<T, VECTOR, SUMS>(sums, fetch<T, VECTOR>(grad + t * VECTOR), v, mean, a.square_input);
    }
    RESGROW_UNROLL
    for (int s = 0; s < SUMS; ++s) {
      A sum = 0;
      RESGROW_UNROLL
      for (int v = 0; v < VECTOR; ++v) sum += sums[s][v];
      RESGROW_UNROLL
      for (int width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, width);
      total[s] += sample_term(sum, a.square_input);
    }
  }
  if (lane == 0) {
    A* const partial = static_cast<A*>(a.workspace);
    RESGROW_UNROLL
    for (int s = 0; s < SUMS; ++s) {
      partial[(Int(s) * gridDim.y + blockIdx.y) * a.channels + channel] = total[s];
    }
  }
}

// The parts' totals: eight threads per channel take every eighth, and their sums are added in
// order. rstd is a factor of every sample's sum, and its square one of the total.
constexpr int kWays = 8;

template <class A>
RESGROW_KERNEL(kThreads)
void moments_finish(const SquaredGradMoments a, int parts) {
  A* const shared = shared_memory<A>();
  constexpr int kAcross = kThreads / kWays;
  const int lane = threadIdx.x % kAcross, way = threadIdx.x / kAcross, s = blockIdx.y;
  const Int c = Int(blockIdx.x) * kAcross + lane;
  A sum = 0;
  if (c < a.channels) {
    const A* const partial = static_cast<const A*>(a.workspace) + s * parts * a.channels + c;
    for (int part = way; part < parts; part += kWays) sum += partial[part * a.channels];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (way > 0 || c >= a.channels) return;
  RESGROW_UNROLL
  for (int other = 1; other < kWays; ++other) sum += shared[other * kAcross + lane];
  if (s == 0) {
    static_cast<A*>(a.bias)[c] = sum;
  } else {
    const A rstd = static_cast<const A*>(a.rstd)[c];
    static_cast<A*>(a.weight)[c] = sum * rstd * rstd;
  }
}

}  // namespace
}  // namespace resgrow
