// Kernels with a planted fault each, and the same without it.
#include "case.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace {

// y[i] = x[n - 1 - i] through shared memory.
template <bool right>
RESGROW_KERNEL(64)
void reversed(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = args.x[threadIdx.x];
  if (right) __syncthreads();
  args.y[threadIdx.x] = shared[63 - threadIdx.x];
}

// Two turns over one buffer: the second overwrites what others may still read.
template <bool right>
RESGROW_KERNEL(64)
void reversed_twice(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int turn = 0; turn < 2; ++turn) {
    shared[threadIdx.x] = args.x[64 * turn + threadIdx.x];
    __syncthreads();
    args.y[64 * turn + threadIdx.x] = shared[63 - threadIdx.x];
    if (right) __syncthreads();
  }
}

template <bool right>
RESGROW_KERNEL(32)
void swapped(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = args.x[threadIdx.x];
  if (right) __syncwarp();
  args.y[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// A shuffle brings lanes together but orders no memory.
template <bool right>
RESGROW_KERNEL(32)
void swapped_after_shuffle(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = args.x[threadIdx.x];
  const float first = __shfl_sync(0xffffffff, args.x[threadIdx.x], 0);
  if (right) __syncwarp();
  args.y[threadIdx.x] = shared[threadIdx.x ^ 1] + 0 * first;
}

template <bool right>
RESGROW_KERNEL(32)
void sum_over_blocks(CaseArgs args) {
  if (threadIdx.x == 0) args.y[right ? blockIdx.x : 0] += args.x[blockIdx.x];
}

// Values of two bytes, so that neighbours share a word.
template <bool right>
RESGROW_KERNEL(32)
void overlapping(CaseArgs args) {
  const int first = blockIdx.x * 32 + threadIdx.x;
  auto* y = reinterpret_cast<BFloat16*>(args.y);
  y[first].bits = 1;
  if (!right && threadIdx.x == 31 && blockIdx.x == 0) y[first + 1].bits = 1;
}

template <bool right>
RESGROW_KERNEL(64)
void differences(CaseArgs args) {
  const int i = threadIdx.x;
  if (i < args.n - right) args.y[i] = args.x[i + 1] - args.x[i];
}

template <bool right>
RESGROW_KERNEL(64)
void shifted(CaseArgs args) {
  const int i = threadIdx.x;
  if (i < args.n) args.y[i - !right] = args.x[i];
}

template <bool right>
RESGROW_KERNEL(64)
void filled(CaseArgs args) {
  const int i = threadIdx.x;
  if (i < args.n + !right) args.y[i] = 1;
}

template <bool right>
RESGROW_KERNEL(32)
void shared_end(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x + !right] = args.x[threadIdx.x];
  __syncwarp();
  args.y[threadIdx.x] = shared[threadIdx.x + !right];
}

template <bool right>
RESGROW_KERNEL(32)
void shared_end_read(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x] = args.x[threadIdx.x];
  __syncwarp();
  args.y[threadIdx.x] = shared[threadIdx.x + !right];
}

template <bool right>
RESGROW_KERNEL(32)
void half_filled(CaseArgs args) {
  float* shared = shared_memory<float>();
  if (right || threadIdx.x < 31) shared[threadIdx.x] = args.x[threadIdx.x];
  __syncwarp();
  args.y[threadIdx.x] = shared[threadIdx.x];
}

template <bool right>
RESGROW_KERNEL(64)
void barrier_of_some(CaseArgs args) {
  if (right || threadIdx.x < 48) __syncthreads();
  args.y[threadIdx.x] = args.x[threadIdx.x];
}

template <bool right>
RESGROW_KERNEL(64)
void barrier_after_return(CaseArgs args) {
  if (!right && threadIdx.x == 5) return;
  args.y[threadIdx.x] = args.x[threadIdx.x];
  __syncthreads();
}

template <bool right>
RESGROW_KERNEL(64)
void two_barriers(CaseArgs args) {
  if (right || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  args.y[threadIdx.x] = args.x[threadIdx.x];
}

// A local array: indices beyond it are the compiler's to turn into anything.
template <bool right>
RESGROW_KERNEL(32)
void local_end(CaseArgs args) {
  float four[4] = {args.x[0], args.x[1], args.x[2], args.x[3]};
  args.y[threadIdx.x] = four[threadIdx.x % (4 + !right)];
}

template <bool right>
RESGROW_KERNEL(32)
void vectors(CaseArgs args) {
  store(args.y + 4 * threadIdx.x, load<uint4>(args.x + 4 * threadIdx.x + (right ? 0 : 1)));
}

template <bool right>
RESGROW_KERNEL(32)
void vectors_by_pointer(CaseArgs args) {
  const float2 v = *reinterpret_cast<const float2*>(args.x + 2 * threadIdx.x + (right ? 0 : 1));
  args.y[threadIdx.x] = v.x;
}

// Every block adds up its part, and the last one to finish all parts.
template <bool right>
RESGROW_KERNEL(64)
void last_block(CaseArgs args) {
  float* last = shared_memory<float>();
  if (threadIdx.x == 0) {
    args.parts[blockIdx.x] = args.x[blockIdx.x];
    if (right) __threadfence();
    last[0] = atomicAdd(args.counter, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last[0] != 0 && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += args.parts[i];
    args.y[0] = sum;
  }
}

// A thread that waits for another's word waits for ever where it has the processor for itself.
template <bool right>
RESGROW_KERNEL(32)
void waiting(CaseArgs args) {
  args.y[threadIdx.x] = args.x[threadIdx.x];
  while (!right && atomicAdd(args.counter, 0) == 0) {
  }
}

// What is one thread's own may be handed on by accident.
template <bool right>
RESGROW_KERNEL(32)
void local_of_another(CaseArgs args) {
  float own[1] = {args.x[threadIdx.x]};
  auto** shared = shared_memory<float*>();
  shared[threadIdx.x] = own;
  __syncwarp();
  args.y[threadIdx.x] = *shared[right ? threadIdx.x : threadIdx.x ^ 1];
}

template <bool right>
RESGROW_KERNEL(64)
void histogram(CaseArgs args) {
  int* counts = shared_memory<int>();
  if (threadIdx.x < 32) counts[threadIdx.x] = 0;
  __syncthreads();
  if (right) {
    atomicAdd(counts + threadIdx.x / 2, 1);
  } else {
    ++counts[threadIdx.x / 2];
  }
  __syncthreads();
  args.y[threadIdx.x] = counts[threadIdx.x / 2] == 2 ? args.x[threadIdx.x] : 0;
}

}  // namespace

const Case fault_cases[] = {
    {"reversed", &reversed<true>, &reversed<false>, 1, 64, 256},
    {"reversed_twice", &reversed_twice<true>, &reversed_twice<false>, 1, 64, 256},
    {"swapped", &swapped<true>, &swapped<false>, 1, 32, 128},
    {"swapped_after_shuffle", &swapped_after_shuffle<true>, &swapped_after_shuffle<false>, 1, 32,
     128},
    {"sum_over_blocks", &sum_over_blocks<true>, &sum_over_blocks<false>, 4, 32, 0},
    {"overlapping", &overlapping<true>, &overlapping<false>, 2, 32, 0},
    {"differences", &differences<true>, &differences<false>, 1, 64, 0},
    {"shifted", &shifted<true>, &shifted<false>, 1, 64, 0},
    {"filled", &filled<true>, &filled<false>, 1, 64, 0},
    {"shared_end", &shared_end<true>, &shared_end<false>, 1, 32, 128},
    {"shared_end_read", &shared_end_read<true>, &shared_end_read<false>, 1, 32, 128},
    {"half_filled", &half_filled<true>, &half_filled<false>, 1, 32, 128},
    {"barrier_of_some", &barrier_of_some<true>, &barrier_of_some<false>, 1, 64, 0},
    {"barrier_after_return", &barrier_after_return<true>, &barrier_after_return<false>, 1, 64, 0},
    {"two_barriers", &two_barriers<true>, &two_barriers<false>, 1, 64, 0},
    {"local_end", &local_end<true>, &local_end<false>, 1, 32, 0},
    {"vectors", &vectors<true>, &vectors<false>, 1, 32, 0},
    {"vectors_by_pointer", &vectors_by_pointer<true>, &vectors_by_pointer<false>, 1, 32, 0},
    {"last_block", &last_block<true>, &last_block<false>, 4, 64, 4},
    {"waiting", &waiting<true>, &waiting<false>, 1, 32, 0},
    {"local_of_another", &local_of_another<true>, &local_of_another<false>, 1, 32, 256},
    {"histogram", &histogram<true>, &histogram<false>, 1, 64, 128},
    {},
};

}  // namespace resgrow
