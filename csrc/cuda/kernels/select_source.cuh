// Where scores come from: memory, or weights and curvatures from which they are computed in
// registers. A warp takes a step of kStep consecutive elements; vector j of lane l holds the
// elements (32 j + l) kPer and on, so that a warp's loads and stores cover whole lines.
#pragma once

#include "cuda/kernels/select_state.cuh"

namespace resgrow {

// Of an element i, a constant, of 16 bytes of T.
template <class T>
struct Lanes;

RESGROW_DEVICE unsigned word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <>
struct Lanes<float> {
  using Value = float;
  static constexpr int kZeroBits = 0;  // low bits of Value that are zero in every T
  static RESGROW_DEVICE float get(const uint4& v, int i) { return __uint_as_float(word(v, i)); }
  static RESGROW_DEVICE void put(unsigned (&words)[4], int i, float v) {
    words[i] = __float_as_uint(v);
  }
  static RESGROW_DEVICE float from(float v) { return v; }
};

template <>
struct Lanes<double> {
  using Value = double;
  static constexpr int kZeroBits = 0;
  static RESGROW_DEVICE double get(const uint4& v, int i) {
    const U64 bits = U64{word(v, 2 * i + 1)} << 32 | word(v, 2 * i);
    return __longlong_as_double(static_cast<Int>(bits));
  }
  static RESGROW_DEVICE void put(unsigned (&words)[4], int i, double v) {
    const U64 bits = static_cast<U64>(__double_as_longlong(v));
    words[2 * i] = static_cast<unsigned>(bits);
    words[2 * i + 1] = static_cast<unsigned>(bits >> 32);
  }
  static RESGROW_DEVICE double from(double v) { return v; }
};

// 16-bit types as float, which holds and orders all their values.
template <class T, int zero_bits>
struct Halves {
  using Value = float;
  static constexpr int kZeroBits = zero_bits;
  static RESGROW_DEVICE void put(unsigned (&words)[4], int i, T v) {
    words[i / 2] |= unsigned{v.bits} << (16 * (i % 2));
  }
  static RESGROW_DEVICE T from(float v) { return from_float<T>(v); }
};

template <>
struct Lanes<BFloat16> : Halves<BFloat16, 16> {
  static RESGROW_DEVICE float get(const uint4& v, int i) {
    const unsigned pair = word(v, i / 2);
    return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
  }
};

template <>
struct Lanes<Half> : Halves<Half, 13> {
  static RESGROW_DEVICE float get(const uint4& v, int i) {
    return to_float(Half{static_cast<unsigned short>(word(v, i / 2) >> (16 * (i % 2)))});
  }
};

// 16 bytes from p, of which the first `count` elements exist; zeros elsewhere.
template <class T>
RESGROW_DEVICE uint4 load_elements(const T* p, int count) {
  unsigned words[4] = {0, 0, 0, 0};
  RESGROW_UNROLL
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    if (i < count) Lanes<T>::put(words, i, p[i]);
  }
  return {words[0], words[1], words[2], words[3]};
}

// 16 bytes from where no wide load can begin: from the two that hold them. Elements are of `size`
// bytes. Both loads go through the first-level cache, as neighbours share them.
template <int size>
RESGROW_DEVICE uint4 load_shifted(const void* p) {
  const U64 address = reinterpret_cast<U64>(p);
  const uint4* wide = reinterpret_cast<const uint4*>(address - address % 16);
  const uint4 low = __ldg(wide), high = __ldg(wide + 1);
  unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  RESGROW_UNROLL
  for (int bytes = 8; bytes >= 4 && bytes >= size; bytes /= 2) {
    if ((address & bytes) == 0) continue;
    RESGROW_UNROLL
    for (int i = 0; i + bytes / 4 < 8; ++i) words[i] = words[i + bytes / 4];
  }
  if (size == 2 && (address & 2) != 0) {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = words[i] >> 16 | words[i + 1] << 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

// Whether the tensor has as many elements as one vector before an item, and after a whole item.
template <int per>
struct Surroundings {
  bool before, after;

  RESGROW_DEVICE Surroundings(const SelectTensor& t, Int offset)
      : before(offset > 0), after(t.size - offset >= kSelectItem + per) {}
};

RESGROW_DEVICE uint4 load_vector(const void* p, bool again) {
  return again ? __ldg(static_cast<const uint4*>(p)) : load_once(p);
}

template <class T>
struct Stored {
  using Element = T;
  using Value = typename Lanes<T>::Value;
  static constexpr int kZeroBits = Lanes<T>::kZeroBits;
  // As many bytes on their way as registers hold: 16-bit values take twice their size there.
  static constexpr int kPer = 16 / sizeof(T), kVectors = sizeof(T) == 2 ? 2 : 4;

  const T* scores;
  Surroundings<kPer> around;

  RESGROW_DEVICE Stored(const SelectWork&, const SelectTensor& t, Int offset)
      : scores(static_cast<const T*>(t.scores) + offset), around(t, offset) {}
  RESGROW_DEVICE bool wide() const { return reinterpret_cast<U64>(scores) % 16 == 0; }
  RESGROW_DEVICE Value at(int i) const {
    uint4 v = load_elements(scores + i, 1);
    return Lanes<T>::get(v, 0);
  }

  struct Raw {
    uint4 v;
  };
  RESGROW_DEVICE Raw load_wide(int i, bool again) const { return {load_vector(scores + i, again)}; }
  RESGROW_DEVICE Raw load_narrow(int i) const { return {load_shifted<sizeof(T)>(scores + i)}; }
  RESGROW_DEVICE Raw load_some(int i, int count) const {
    return {load_elements(scores + i, count)};
  }
  RESGROW_DEVICE Value value(const Raw& raw, int i) const { return Lanes<T>::get(raw.v, i); }
};

// Optimal Brain Damage: 1/2 (max(h, 0) + d) w^2, rounded as by the reference.
template <class T>
struct Obd {
  using Element = T;
  using Value = typename Lanes<T>::Value;
  static constexpr int kZeroBits = 0;
  static constexpr int kPer = 16 / sizeof(T), kVectors = sizeof(T) == 2 ? 1 : 2;

  const T *weight, *curvature;
  Value damping;
  Surroundings<kPer> around;

  RESGROW_DEVICE Obd(const SelectWork& work, const SelectTensor& t, Int offset)
      : weight(static_cast<const T*>(t.scores) + offset),
        curvature(static_cast<const T*>(t.curvature) + offset),
        damping(static_cast<Value>(work.damping)),
        around(t, offset) {}
  RESGROW_DEVICE bool wide() const {
    return (reinterpret_cast<U64>(weight) | reinterpret_cast<U64>(curvature)) % 16 == 0;
  }
  RESGROW_DEVICE Value at(int i) const { return value(load_some(i, 1), 0); }

  struct Raw {
    uint4 w, h;
  };
  RESGROW_DEVICE Raw load_wide(int i, bool again) const {
    return {load_vector(weight + i, again), load_vector(curvature + i, again)};
  }
  RESGROW_DEVICE Raw load_narrow(int i) const {
    return {load_shifted<sizeof(T)>(weight + i), load_shifted<sizeof(T)>(curvature + i)};
  }
  RESGROW_DEVICE Raw load_some(int i, int count) const {
    return {load_elements(weight + i, count), load_elements(curvature + i, count)};
  }
  RESGROW_DEVICE Value value(const Raw& raw, int i) const {
    const Value w = Lanes<T>::get(raw.w, i), h = Lanes<T>::get(raw.h, i);
    const Value damped = (h < 0 ? Value{0} : h) + damping;  // NaN stays NaN
    return Value{0.5} * damped * (w * w);
  }
};

// A lane's share of a step: bit b of `valid` says whether element b exists.
template <class Source>
struct Step {
  using Value = typename Source::Value;
  static constexpr int kPer = Source::kPer, kVectors = Source::kVectors;
  static constexpr int kEach = kPer * kVectors, kStep = 32 * kEach;
  static constexpr unsigned kAll = 0xffffffffu >> (32 - kEach);
  static_assert(kSelectItem % kStep == 0, "items consist of whole steps");

  const Source& source;
  typename Source::Raw raw[kVectors];
  unsigned valid;

  // Element 0 of vector j, counted from the item's first.
  static RESGROW_DEVICE int place(int start, int j) {
    return start + (32 * j + static_cast<int>(threadIdx.x % 32)) * kPer;
  }

  // again: some elements are read once more; they stay in the first-level cache.
  RESGROW_DEVICE Step(const Source& from, int start, int size, bool again = false) : source(from) {
    valid = kAll;
    const auto& around = source.around;
    if (source.wide() && start + kStep <= size) {
      RESGROW_UNROLL
      for (int j = 0; j < kVectors; ++j) raw[j] = source.load_wide(place(start, j), again);
    } else if (start + kStep <= size && (start > 0 || around.before) &&
               (start + kStep + kPer <= size || around.after)) {
      RESGROW_UNROLL
      for (int j = 0; j < kVectors; ++j) raw[j] = source.load_narrow(place(start, j));
    } else {
      valid = 0;
      RESGROW_UNROLL
      for (int j = 0; j < kVectors; ++j) {
        const int count = max(0, min(kPer, size - place(start, j)));
        raw[j] = source.load_some(place(start, j), count);
        valid |= ((1u << count) - 1) << (kPer * j);
      }
    }
  }

  RESGROW_DEVICE Value value(int b) const { return source.value(raw[b / kPer], b % kPer); }
};

}  // namespace resgrow
