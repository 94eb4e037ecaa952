// What kernels use of the machine, and all they use: the same names exist twice, here on top of
// CUDA and in tests/simt/ on top of an interpreter that runs the same sources on a host.
//
// Beside these: threadIdx, blockIdx, blockDim, gridDim; __syncthreads, __syncthreads_or/and/count,
// __syncwarp; __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync, __ballot_sync,
// __any_sync, __all_sync; atomicAdd, atomicMin, atomicMax, atomicOr, atomicCAS on int, unsigned and
// unsigned long long; __threadfence, __ldg; __popc, __popcll, __ffs, __clz, __brev, __byte_perm;
// __float_as_uint, __uint_as_float, __double_as_longlong, __longlong_as_double; fmaf, fma, fabsf,
// fabs, sqrtf, rsqrtf, min, max. All masks are full: every lane of a warp takes part.
//
// Shared memory is the dynamic one only: shared_memory<T>().
#pragma once

#include "cuda/border.h"

#ifdef RESGROW_SIMT
#  include "simt/device.h"
#else

#  include <cuda_runtime.h>

// Kernels are declared as  RESGROW_KERNEL(256) void name(Args args)  with the number of threads
// they are launched with; RESGROW_KERNEL_OF(256, 2) asks for room for two blocks per
// multiprocessor.
#  define RESGROW_KERNEL(threads) static __global__ __launch_bounds__(threads)
#  define RESGROW_KERNEL_OF(threads, blocks) static __global__ __launch_bounds__(threads, blocks)
#  define RESGROW_DEVICE __device__ __forceinline__
#  define RESGROW_UNROLL _Pragma("unroll")
#  define RESGROW_NO_UNROLL _Pragma("unroll 1")

namespace resgrow {

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
RESGROW_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char resgrow_shared_memory[];
  return reinterpret_cast<T*>(resgrow_shared_memory);
}

// Launches and says whether that worked; `shared` in bytes, up to what the device has.
template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, Stream stream,
              const Args&... args) {
  if (shared > 48 * 1024) {
    const cudaError_t raised = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (raised != cudaSuccess) return raised;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// Bytes of shared memory that a block may have on the current device.
inline int most_shared_memory() {
  int device = 0, bytes = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                            device) == cudaSuccess;
  return known ? bytes : 48 * 1024;
}

// 16-bit floating point is storage: arithmetic is in float. Conversions round to nearest even.
RESGROW_DEVICE float to_float(float v) {
  return v;
}
RESGROW_DEVICE float to_float(BFloat16 v) {
  return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}
RESGROW_DEVICE float to_float(Half v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
template <class T>
RESGROW_DEVICE T from_float(float v);
template <>
RESGROW_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
RESGROW_DEVICE BFloat16 from_float<BFloat16>(float v) {
  BFloat16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
template <>
RESGROW_DEVICE Half from_float<Half>(float v) {
  Half r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}

// 16, 8 or 4 bytes at once, from and to memory aligned to as many. load_once: read-only memory that
// is not read again; it is kept out of the first-level cache. load_whole, store_whole: global
// memory that may also be written, in one instruction (where a store depends on a condition, the
// compiler may cut it into four).
template <class V>
RESGROW_DEVICE V load(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
RESGROW_DEVICE void store(void* p, const V& v) {
  *static_cast<V*>(p) = v;
}
RESGROW_DEVICE uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
RESGROW_DEVICE uint4 load_whole(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
RESGROW_DEVICE void store_whole(void* p, const uint4& v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Copies `bytes` (4, 8 or 16) from global to shared memory, both aligned to as many, or writes
// zeros where not `valid` (the source is not read then, but must be a pointer that could be). The
// data are there after copy_async_wait and, for other threads, a barrier.
template <int bytes>
RESGROW_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "sizes that cp.async has");
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int read = valid ? bytes : 0;
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(global), "r"(read),
                 "n"(bytes)
                 : "memory");
  }
}
// Closes a group of this thread's copies.
RESGROW_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of this thread's youngest groups are under way.
template <int pending>
RESGROW_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Loads 8x8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of
// matrix l / 8, 16 bytes aligned to 16. Lane l receives of each matrix the values (l / 4, 2 (l %
// 4)) and (l / 4, 2 (l % 4) + 1), the first in the low half; transposed: (2 (l % 4), l / 4) and (2
// (l % 4) + 1, l / 4).
RESGROW_DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
RESGROW_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
// Two matrices; the addresses of lanes 0 to 15 count.
RESGROW_DEVICE void load_matrices(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
RESGROW_DEVICE void load_matrices_transposed(unsigned (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d (16x8, float) += a (16x16) b (16x8). With g = lane / 4, t = lane % 4, and pairs in one
// register, the lower index in the low half:
//   a[0]: (g, 2t..) a[1]: (g + 8, 2t..) a[2]: (g, 2t + 8..) a[3]: (g + 8, 2t + 8..)
//   b[0]: (2t.., g) b[1]: (2t + 8.., g)
//   d[0], d[1]: (g, 2t), (g, 2t + 1)    d[2], d[3]: (g + 8, 2t), (g + 8, 2t + 1)
// These are the registers of load_matrices over the four 8x8 quarters of row-major a, in the order
// upper left, lower left, upper right, lower right.
template <class T>
RESGROW_DEVICE void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <>
RESGROW_DEVICE void multiply_add<BFloat16>(float (&d)[4], const unsigned (&a)[4],
                                           const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
RESGROW_DEVICE void multiply_add<Half>(float (&d)[4], const unsigned (&a)[4],
                                       const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// float with the mantissa of tf32 (10 bits), rounded to nearest, as the bits of a float: what
// multiply_add_tf32 takes. v - tf32(v) is what is lost; its tf32 gives almost all of it back.
RESGROW_DEVICE unsigned tf32(float v) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  return r;
}
// d (16x8, float) += a (16x8) b (8x8):
//   a[0]: (g, t) a[1]: (g + 8, t) a[2]: (g, t + 4) a[3]: (g + 8, t + 4)    b[0]: (t, g) b[1]: (t +
//   4, g)
RESGROW_DEVICE void multiply_add_tf32(float (&d)[4], const unsigned (&a)[4],
                                      const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace resgrow

#endif
