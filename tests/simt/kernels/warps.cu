// What lanes of a warp do together, for comparison with plain loops; x and y are bits.
#include "case.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace {

constexpr unsigned kAll = 0xffffffff;

RESGROW_DEVICE const unsigned* bits(const CaseArgs& args) {
  return reinterpret_cast<const unsigned*>(args.x);
}
RESGROW_DEVICE unsigned* results(const CaseArgs& args) {
  return reinterpret_cast<unsigned*>(args.y);
}

// Row r of y (32 values each) is the r-th of these.
RESGROW_KERNEL(32) void shuffles(CaseArgs args) {
  const unsigned v = bits(args)[threadIdx.x], l = threadIdx.x;
  unsigned* y = results(args) + l;
  y[0 * 32] = __shfl_sync(kAll, v, 5);
  y[1 * 32] = __shfl_sync(kAll, v, static_cast<int>(31 - l));
  y[2 * 32] = __shfl_xor_sync(kAll, v, 6);
  y[3 * 32] = __shfl_up_sync(kAll, v, 3);
  y[4 * 32] = __shfl_down_sync(kAll, v, 3);
  y[5 * 32] = __shfl_sync(kAll, v, 1, 8);
  y[6 * 32] = __shfl_up_sync(kAll, v, 2, 8);
  y[7 * 32] = __shfl_down_sync(kAll, v, 2, 8);
  const double wide = __shfl_xor_sync(kAll, static_cast<double>(l) + 0.1, 1);
  y[8 * 32] = wide == static_cast<double>(l ^ 1) + 0.1;
}

RESGROW_KERNEL(32) void votes(CaseArgs args) {
  const unsigned v = bits(args)[threadIdx.x];
  unsigned* y = results(args) + threadIdx.x;
  y[0 * 32] = __ballot_sync(kAll, v & 1);
  y[1 * 32] = __any_sync(kAll, v & 2);
  y[2 * 32] = __all_sync(kAll, v & 4);
  y[3 * 32] = __popc(v);
  y[4 * 32] = __clz(static_cast<int>(v));
  y[5 * 32] = __brev(v);
  y[6 * 32] = __ffs(static_cast<int>(v));
}

RESGROW_KERNEL(64) void block_votes(CaseArgs args) {
  const unsigned v = bits(args)[threadIdx.x];
  unsigned* y = results(args) + threadIdx.x;
  y[0 * 64] = __syncthreads_count(v & 1);
  y[1 * 64] = __syncthreads_or(v & 2);
  y[2 * 64] = __syncthreads_and(v & 4);
}

// Every thread of every block updates every result.
RESGROW_KERNEL(64) void atomics(CaseArgs args) {
  const unsigned v = bits(args)[blockIdx.x * 64 + threadIdx.x];
  unsigned* y = results(args);
  atomicAdd(y + 0, v);
  atomicMin(y + 1, v);
  atomicMax(y + 2, v);
  atomicOr(y + 3, v);
  atomicMin(reinterpret_cast<int*>(y) + 4, static_cast<int>(v));
  atomicMax(reinterpret_cast<int*>(y) + 5, static_cast<int>(v));
  atomicAdd(reinterpret_cast<unsigned long long*>(y) + 3, static_cast<unsigned long long>(v));
  for (unsigned seen = y[8] * 0, expected = kAll; seen != expected;) {
    expected = seen;
    seen = atomicCAS(y + 8, expected, expected + v);
  }
}

// x: 32 rows of 8 values of 16 bits. y: 4 registers per lane, first as they are, then transposed,
// then 2 and 2 of the first two matrices.
RESGROW_KERNEL(32) void matrices(CaseArgs args) {
  unsigned* shared = shared_memory<unsigned>();
  for (int i = 0; i < 4; ++i) shared[4 * threadIdx.x + i] = bits(args)[4 * threadIdx.x + i];
  __syncwarp();
  unsigned all[4], two[2];
  unsigned* y = results(args) + threadIdx.x;
  load_matrices(all, shared + 4 * threadIdx.x);
  for (int i = 0; i < 4; ++i) y[32 * i] = all[i];
  load_matrices_transposed(all, shared + 4 * threadIdx.x);
  for (int i = 0; i < 4; ++i) y[32 * (4 + i)] = all[i];
  // The addresses of the other lanes do not count.
  const unsigned* row = threadIdx.x < 16 ? shared + 4 * threadIdx.x : nullptr;
  load_matrices(two, row);
  for (int i = 0; i < 2; ++i) y[32 * (8 + i)] = two[i];
  load_matrices_transposed(two, row);
  for (int i = 0; i < 2; ++i) y[32 * (10 + i)] = two[i];
}

// y (16x8 floats) += a (16x16) b (16x8), both of 16-bit values in x, through the layout that
// device.h describes.
template <class T>
RESGROW_KERNEL(32)
void products(CaseArgs args) {
  const auto* a = reinterpret_cast<const unsigned short*>(args.x);
  const auto* b = a + 16 * 16;
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](unsigned low, unsigned high) { return low | high << 16; };
  unsigned fa[4], fb[2];
  for (int r = 0; r < 4; ++r) {
    const unsigned short* at = a + (g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8;
    fa[r] = pair(at[0], at[1]);
  }
  for (int r = 0; r < 2; ++r) {
    const unsigned short* at = b + (2 * t + r * 8) * 8 + g;
    fb[r] = pair(at[0], at[8]);
  }
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = args.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  multiply_add<T>(d, fa, fb);
  for (int i = 0; i < 4; ++i) args.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// y (16x8) += a (16x8) b (8x8) in tf32; n = 0: operands are cut off, as they come; 1: rounded.
RESGROW_KERNEL(32) void products_tf32(CaseArgs args) {
  const float *a = args.x, *b = args.x + 16 * 8;
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned fa[4], fb[2];
  for (int r = 0; r < 4; ++r) {
    const float v = a[(g + r % 2 * 8) * 8 + t + r / 2 * 4];
    fa[r] = args.n ? tf32(v) : __float_as_uint(v);
  }
  for (int r = 0; r < 2; ++r) {
    const float v = b[(t + r * 4) * 8 + g];
    fb[r] = args.n ? tf32(v) : __float_as_uint(v);
  }
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = args.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  multiply_add_tf32(d, fa, fb);
  for (int i = 0; i < 4; ++i) args.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// y[i] = the float of the bits i; x: floats, and y[n + i] their bits.
template <class T>
RESGROW_KERNEL(256)
void widened(CaseArgs args) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  args.y[i] = to_float(T{static_cast<unsigned short>(i)});
}
template <class T>
RESGROW_KERNEL(256)
void narrowed(CaseArgs args) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  results(args)[i] = from_float<T>(args.x[i]).bits;
}

// n floats apart, in global and in shared memory.
RESGROW_KERNEL(32)
void strided(CaseArgs args) {
  float* shared = shared_memory<float>();
  shared[threadIdx.x * args.n] = args.x[threadIdx.x * args.n];
  args.y[threadIdx.x] = shared[threadIdx.x * args.n];
}
// 16 bytes per lane, rows of n floats apart.
RESGROW_KERNEL(32)
void strided_vectors(CaseArgs args) {
  float* shared = shared_memory<float>();
  store(shared + threadIdx.x * args.n, load<uint4>(args.x + threadIdx.x * args.n));
  __syncwarp();
  unsigned r[4];
  load_matrices(r, shared + threadIdx.x * args.n);
  store(args.y + 4 * threadIdx.x, uint4{r[0], r[1], r[2], r[3]});
}

// Lanes part before they meet.
template <bool right>
RESGROW_KERNEL(32)
void shuffle_of_some(CaseArgs args) {
  float v = args.x[threadIdx.x];
  if (right || threadIdx.x < 16) v = __shfl_xor_sync(kAll, v, 1);
  args.y[threadIdx.x ^ 1] = v;
}
template <bool right>
RESGROW_KERNEL(32)
void shuffle_and_vote(CaseArgs args) {
  float v = args.x[threadIdx.x];
  if (right || threadIdx.x < 16) {
    v = __shfl_xor_sync(kAll, v, 1);
  } else {
    v = __any_sync(kAll, v > 0);
  }
  args.y[threadIdx.x ^ 1] = v;
}
template <bool right>
RESGROW_KERNEL(32)
void partly_masked(CaseArgs args) {
  args.y[threadIdx.x ^ 1] = __shfl_xor_sync(right ? kAll : 0xffff, args.x[threadIdx.x], 1);
}

}  // namespace

const Case warp_cases[] = {
    {"shuffles", &shuffles, nullptr, 1, 32, 0},
    {"votes", &votes, nullptr, 1, 32, 0},
    {"block_votes", &block_votes, nullptr, 1, 64, 0},
    {"atomics", &atomics, nullptr, 4, 64, 0},
    {"matrices", &matrices, nullptr, 1, 32, 512},
    {"products<BFloat16>", &products<BFloat16>, nullptr, 1, 32, 0},
    {"products<Half>", &products<Half>, nullptr, 1, 32, 0},
    {"products_tf32", &products_tf32, nullptr, 1, 32, 0},
    {"widened<BFloat16>", &widened<BFloat16>, nullptr, 256, 256, 0},
    {"widened<Half>", &widened<Half>, nullptr, 256, 256, 0},
    {"narrowed<BFloat16>", &narrowed<BFloat16>, nullptr, 256, 256, 0},
    {"narrowed<Half>", &narrowed<Half>, nullptr, 256, 256, 0},
    {"strided", &strided, nullptr, 1, 32, 4096},
    {"strided_vectors", &strided_vectors, nullptr, 1, 32, 8192},
    {"shuffle_of_some", &shuffle_of_some<true>, &shuffle_of_some<false>, 1, 32, 0},
    {"shuffle_and_vote", &shuffle_and_vote<true>, &shuffle_and_vote<false>, 1, 32, 0},
    {"partly_masked", &partly_masked<true>, &partly_masked<false>, 1, 32, 0},
    {},
};

Status launch_case(const Case& row, bool wrong, const CaseArgs& args, Stream stream) {
  return launch(wrong ? row.wrong : row.right, row.blocks, row.threads, row.shared, stream, args);
}

}  // namespace resgrow
