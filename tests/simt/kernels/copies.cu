// Asynchronous copies and matrix loads: each rightly, and with a fault.
#include "case.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace {

// y = x, 16 bytes per thread, each read by another thread than the one that copied it.
RESGROW_DEVICE void read_reversed(const float* shared, float* y) {
  store(y + 4 * (63 - threadIdx.x), load<uint4>(shared + 4 * (63 - threadIdx.x)));
}

template <bool right>
RESGROW_KERNEL(64)
void waited(CaseArgs args) {
  float* shared = shared_memory<float>();
  copy_async<16>(shared + 4 * threadIdx.x, args.x + 4 * threadIdx.x);
  copy_async_commit();
  if (right) copy_async_wait<0>();
  __syncthreads();
  read_reversed(shared, args.y);
}

// Waiting is for groups: what was not committed is not waited for.
template <bool right>
RESGROW_KERNEL(64)
void committed(CaseArgs args) {
  float* shared = shared_memory<float>();
  copy_async<16>(shared + 4 * threadIdx.x, args.x + 4 * threadIdx.x);
  if (right) copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  read_reversed(shared, args.y);
}

template <bool right>
RESGROW_KERNEL(64)
void waited_for_both(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int half = 0; half < 2; ++half) {
    copy_async<8>(shared + 4 * threadIdx.x + 2 * half, args.x + 4 * threadIdx.x + 2 * half);
    copy_async_commit();
  }
  copy_async_wait<right ? 0 : 1>();
  __syncthreads();
  read_reversed(shared, args.y);
}

// Each thread waits for its own copies only.
template <bool right>
RESGROW_KERNEL(64)
void published(CaseArgs args) {
  float* shared = shared_memory<float>();
  copy_async<16>(shared + 4 * threadIdx.x, args.x + 4 * threadIdx.x);
  copy_async_commit();
  if (!right) __syncthreads();
  copy_async_wait<0>();
  if (right) __syncthreads();
  read_reversed(shared, args.y);
}

// A buffer is refilled while others still read it.
template <bool right>
RESGROW_KERNEL(64)
void refilled(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int turn = 0; turn < 2; ++turn) {
    copy_async<4>(shared + threadIdx.x, args.x + 64 * turn + threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    args.y[64 * turn + 63 - threadIdx.x] = shared[63 - threadIdx.x];
    if (right) __syncthreads();
  }
}

// The last four values are not there: zeros in their place.
template <bool right>
RESGROW_KERNEL(64)
void cut_off(CaseArgs args) {
  float* shared = shared_memory<float>();
  const bool valid = 4 * static_cast<int>(threadIdx.x) < args.n;
  copy_async<16>(shared + 4 * threadIdx.x, args.x + 4 * threadIdx.x, !right || valid);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  read_reversed(shared, args.y);
}

template <bool right>
RESGROW_KERNEL(64)
void copied_aligned(CaseArgs args) {
  float* shared = shared_memory<float>();
  copy_async<16>(shared + 4 * threadIdx.x, args.x + 4 * threadIdx.x + (right ? 0 : 2));
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  read_reversed(shared, args.y);
}

// Rows of a matrix, 16 bytes apart or, wrongly, 20.
template <bool right>
RESGROW_KERNEL(32)
void rows_aligned(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int i = threadIdx.x; i < 32 * 5; i += 32) shared[i] = args.x[i];
  __syncwarp();
  unsigned r[4];
  load_matrices(r, shared + threadIdx.x * (right ? 4 : 5));
  for (int i = 0; i < 4; ++i) args.y[4 * threadIdx.x + i] = __uint_as_float(r[i]);
}

// All matrix instructions of a warp are one instruction.
template <bool right>
RESGROW_KERNEL(32)
void rows_together(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int i = threadIdx.x; i < 32 * 4; i += 32) shared[i] = args.x[i];
  __syncwarp();
  unsigned r[4];
  if (right || threadIdx.x < 16) {
    load_matrices(r, shared + threadIdx.x * 4);
  } else {
    load_matrices(r, shared + threadIdx.x * 4);
  }
  for (int i = 0; i < 4; ++i) args.y[4 * threadIdx.x + i] = __uint_as_float(r[i]);
}

// Reads rows that other lanes wrote.
template <bool right>
RESGROW_KERNEL(32)
void rows_written(CaseArgs args) {
  float* shared = shared_memory<float>();
  for (int i = threadIdx.x; i < 32 * 4; i += 32) shared[i] = args.x[i];
  if (right) __syncwarp();
  unsigned r[4];
  load_matrices(r, shared + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) args.y[4 * threadIdx.x + i] = __uint_as_float(r[i]);
}

}  // namespace

const Case copy_cases[] = {
    {"waited", &waited<true>, &waited<false>, 1, 64, 1024},
    {"committed", &committed<true>, &committed<false>, 1, 64, 1024},
    {"waited_for_both", &waited_for_both<true>, &waited_for_both<false>, 1, 64, 1024},
    {"published", &published<true>, &published<false>, 1, 64, 1024},
    {"refilled", &refilled<true>, &refilled<false>, 1, 64, 256},
    {"cut_off", &cut_off<true>, &cut_off<false>, 1, 64, 1024},
    {"copied_aligned", &copied_aligned<true>, &copied_aligned<false>, 1, 64, 1024},
    {"rows_aligned", &rows_aligned<true>, &rows_aligned<false>, 1, 32, 640},
    {"rows_together", &rows_together<true>, &rows_together<false>, 1, 32, 512},
    {"rows_written", &rows_written<true>, &rows_written<false>, 1, 32, 512},
    {},
};

}  // namespace resgrow
