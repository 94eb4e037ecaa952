// Numbers and bits: the conversions of device.h in software, and CUDA's functions on integers and
// floating point that kernels use.
#pragma once

#include <cmath>

#include "cuda/border.h"

#define SIMT_INLINE inline __attribute__((always_inline))

SIMT_INLINE unsigned __float_as_uint(float v) {
  return __builtin_bit_cast(unsigned, v);
}
SIMT_INLINE float __uint_as_float(unsigned v) {
  return __builtin_bit_cast(float, v);
}
SIMT_INLINE int __float_as_int(float v) {
  return __builtin_bit_cast(int, v);
}
SIMT_INLINE float __int_as_float(int v) {
  return __builtin_bit_cast(float, v);
}
SIMT_INLINE long long __double_as_longlong(double v) {
  return __builtin_bit_cast(long long, v);
}
SIMT_INLINE double __longlong_as_double(long long v) {
  return __builtin_bit_cast(double, v);
}
SIMT_INLINE int __popc(unsigned v) {
  return __builtin_popcount(v);
}
SIMT_INLINE int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
SIMT_INLINE int __ffs(int v) {
  return __builtin_ffs(v);
}
SIMT_INLINE int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
SIMT_INLINE unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1) << (31 - i);
  return reversed;
}
// Selectors 0 to 7 only: the mode that copies signs is not used.
SIMT_INLINE unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (selectors >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}
SIMT_INLINE float rsqrtf(float v) {
  return 1 / sqrtf(v);
}
// As CUDA's, those of floating point return the number where one of two is none.
#define SIMT_MIN_MAX(T)                   \
  SIMT_INLINE constexpr T min(T a, T b) { \
    return b < a ? b : a;                 \
  }                                       \
  SIMT_INLINE constexpr T max(T a, T b) { \
    return a < b ? b : a;                 \
  }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
SIMT_INLINE float min(float a, float b) {
  return fminf(a, b);
}
SIMT_INLINE float max(float a, float b) {
  return fmaxf(a, b);
}
SIMT_INLINE double min(double a, double b) {
  return fmin(a, b);
}
SIMT_INLINE double max(double a, double b) {
  return fmax(a, b);
}

namespace simt {

template <class T>
inline constexpr bool is_half = false;
template <>
inline constexpr bool is_half<resgrow::Half> = true;

}  // namespace simt

namespace resgrow {

SIMT_INLINE float to_float(float v) {
  return v;
}
SIMT_INLINE float to_float(BFloat16 v) {
  return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}
SIMT_INLINE float to_float(Half v) {
  const unsigned sign = (v.bits & 0x8000u) << 16;
  const unsigned magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  // 2^112 moves the exponent's bias from 15 to 127, and makes numbers of what is subnormal here.
  const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(scaled));
}

template <class T>
T from_float(float v);
template <>
SIMT_INLINE float from_float<float>(float v) {
  return v;
}
template <>
SIMT_INLINE BFloat16 from_float<BFloat16>(float v) {
  const unsigned bits = __float_as_uint(v);
  if (v != v) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
SIMT_INLINE Half from_float<Half>(float v) {
  const unsigned bits = __float_as_uint(v);
  const unsigned sign = bits >> 16 & 0x8000;
  const unsigned magnitude = bits & 0x7fffffff;
  if (v != v) return {0x7fff};
  if (magnitude >= 0x477ff000) return {static_cast<unsigned short>(sign | 0x7c00)};  // >= 65520
  unsigned rounded;
  if (magnitude >= 0x38800000) {  // 2^-14: normal
    rounded = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  } else {  // 2^-24, a half's smallest step, is the last place of floats from 1/2 on
    rounded = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
  }
  return {static_cast<unsigned short>(sign | rounded)};
}

SIMT_INLINE unsigned tf32(float v) {
  if (v != v) return 0x7fffffff;
  return (__float_as_uint(v) + 0x1000) & ~0x1fffu;
}

}  // namespace resgrow
