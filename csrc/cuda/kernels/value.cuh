// Types that are stored and types that are summed in.
#pragma once

#include "cuda/kernels/device.h"

namespace resgrow {

// Sums are in float, those of double in double.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

template <class T>
RESGROW_DEVICE float widen(T v) {
  return to_float(v);
}
RESGROW_DEVICE double widen(double v) {
  return v;
}
template <class T>
RESGROW_DEVICE T narrow(float v) {
  return from_float<T>(v);
}
template <class T>
RESGROW_DEVICE T narrow(double v) {
  return static_cast<T>(v);
}

// `run` of a value of the type.
template <class Run>
Status with_type(Type type, const Run& run) {
  switch (type) {
    case Type::float64:
      return run(double{});
    case Type::bfloat16:
      return run(BFloat16{});
    case Type::float16:
      return run(Half{});
    default:
      return run(float{});
  }
}

}  // namespace resgrow
