// Atomics on int, unsigned and unsigned long long, the fence and the read-only load.
#pragma once

#include "simt/conversions.h"
#include "simt/interface.h"

namespace simt {

// Only one thread runs at a time: what makes an access atomic is that it is reported as such.
template <class T, class Update>
SIMT_UNSEEN __attribute__((noinline)) T atomically(T* p, T v, Update update) {
  access(p, sizeof(T), Access::atomic, __builtin_return_address(0));
  const T old = *p;
  *p = update(old, v);
  return old;
}

struct Add {
  template <class T>
  T operator()(T old, T v) const {
    return static_cast<T>(static_cast<unsigned long long>(old) +
                          static_cast<unsigned long long>(v));
  }
};
struct Min {
  template <class T>
  T operator()(T old, T v) const {
    return v < old ? v : old;
  }
};
struct Max {
  template <class T>
  T operator()(T old, T v) const {
    return old < v ? v : old;
  }
};
struct Or {
  template <class T>
  T operator()(T old, T v) const {
    return old | v;
  }
};

}  // namespace simt

#define SIMT_ATOMIC(name, Update, T)               \
  SIMT_INLINE T name(T* p, T v) {                  \
    return simt::atomically(p, v, simt::Update{}); \
  }
#define SIMT_ATOMICS(T)                                                                        \
  SIMT_ATOMIC(atomicAdd, Add, T)                                                               \
  SIMT_ATOMIC(atomicMin, Min, T)                                                               \
  SIMT_ATOMIC(atomicMax, Max, T)                                                               \
  SIMT_ATOMIC(atomicOr, Or, T)                                                                 \
  SIMT_UNSEEN inline __attribute__((noinline)) T atomicCAS(T* p, T expected, T desired,        \
                                                           simt::Where where = simt::here()) { \
    simt::access(p, sizeof(T), simt::Access::atomic, __builtin_return_address(0));             \
    const T old = *p;                                                                          \
    if (old == expected) *p = desired;                                                         \
    return old;                                                                                \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS
#undef SIMT_ATOMIC

SIMT_INLINE void __threadfence() {
  simt::fence();
}

template <class T>
SIMT_INLINE T __ldg(const T* p) {
  return *p;
}
