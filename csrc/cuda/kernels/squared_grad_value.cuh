// What a stored value is summed in.
#pragma once

#include "cuda/kernels/device.h"

namespace resgrow {

template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

RESGROW_DEVICE double widen(double v) {
  return v;
}
template <class T>
RESGROW_DEVICE float widen(T v) {
  return to_float(v);
}

}  // namespace resgrow
