// The interpreter's side of csrc/cuda/kernels/device.h: the same names with the same meaning.
#pragma once

#include <cmath>

#include "simt/atomics.h"
#include "simt/conversions.h"
#include "simt/interface.h"
#include "simt/types.h"
#include "simt/warp.h"

#define RESGROW_KERNEL(threads) static
#define RESGROW_KERNEL_OF(threads, blocks) static
#define RESGROW_DEVICE inline __attribute__((always_inline))
#define RESGROW_UNROLL
#define RESGROW_NO_UNROLL
#define __restrict__

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

namespace resgrow {

template <class T>
RESGROW_DEVICE T* shared_memory() {
  return static_cast<T*>(::simt::shared_memory());
}

template <class Body>
SIMT_UNSEEN void simt_call(const void* body) {
  (*static_cast<const Body*>(body))();
}

template <class... Params, class... Args>
SIMT_UNSEEN Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, Stream,
                          const Args&... args) {
  const auto body = [&]() SIMT_UNSEEN { kernel(Params(args)...); };
  return ::simt::run(grid, block, shared, &simt_call<decltype(body)>, &body,
                     reinterpret_cast<const void*>(kernel));
}

// An H200's.
inline int most_shared_memory() {
  return 227 * 1024;
}

template <class V>
SIMT_UNSEEN __attribute__((noinline)) V load(const void* p) {
  ::simt::access(p, sizeof(V), ::simt::Access::read, __builtin_return_address(0));
  return *static_cast<const V*>(p);
}
template <class V>
SIMT_UNSEEN __attribute__((noinline)) void store(void* p, V v) {
  ::simt::access(p, sizeof(V), ::simt::Access::write, __builtin_return_address(0));
  *static_cast<V*>(p) = v;
}
RESGROW_DEVICE uint4 load_once(const void* p) {
  return load<uint4>(p);
}
RESGROW_DEVICE uint4 load_whole(const void* p) {
  return load<uint4>(p);
}
RESGROW_DEVICE void store_whole(void* p, const uint4& v) {
  store(p, v);
}

template <int bytes>
RESGROW_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "sizes that cp.async has");
  ::simt::copy_async(shared, global, bytes, valid);
}
RESGROW_DEVICE void copy_async_commit() {
  ::simt::copy_async_commit();
}
template <int pending>
RESGROW_DEVICE void copy_async_wait() {
  ::simt::copy_async_wait(pending);
}

RESGROW_DEVICE void load_matrices(unsigned (&r)[4], const void* row,
                                  ::simt::Where where = ::simt::here()) {
  const auto all = ::simt::load_matrices<4>(row, false, where);
  for (int i = 0; i < 4; ++i) r[i] = all[i];
}
RESGROW_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row,
                                             ::simt::Where where = ::simt::here()) {
  const auto all = ::simt::load_matrices<4>(row, true, where);
  for (int i = 0; i < 4; ++i) r[i] = all[i];
}
RESGROW_DEVICE void load_matrices(unsigned (&r)[2], const void* row,
                                  ::simt::Where where = ::simt::here()) {
  const auto all = ::simt::load_matrices<2>(row, false, where);
  r[0] = all[0], r[1] = all[1];
}
RESGROW_DEVICE void load_matrices_transposed(unsigned (&r)[2], const void* row,
                                             ::simt::Where where = ::simt::here()) {
  const auto all = ::simt::load_matrices<2>(row, true, where);
  r[0] = all[0], r[1] = all[1];
}

template <::simt::Float type>
RESGROW_DEVICE void simt_multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                      ::simt::Where where) {
  const auto sums = ::simt::multiply_add(::simt::Floats4{d[0], d[1], d[2], d[3]},
                                         ::simt::Words4{a[0], a[1], a[2], a[3]},
                                         ::simt::Words2{b[0], b[1]}, type, where);
  for (int i = 0; i < 4; ++i) d[i] = sums[i];
}
template <class T>
RESGROW_DEVICE void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                 ::simt::Where where = ::simt::here()) {
  static_assert(sizeof(T) == 2, "BFloat16 or Half");
  constexpr bool half = ::simt::is_half<T>;
  simt_multiply_add<half ? ::simt::Float::float16 : ::simt::Float::bfloat16>(d, a, b, where);
}
RESGROW_DEVICE void multiply_add_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                      ::simt::Where where = ::simt::here()) {
  simt_multiply_add<::simt::Float::tf32>(d, a, b, where);
}

}  // namespace resgrow
