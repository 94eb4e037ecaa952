// Kernels of tristate_relu: one pass over x (and grad) for the output and all sums.
// Included once per instruction set (unit.inc): torch-free and std-free. Expects ISA and
// VECTOR_BYTES.
#include "cpu/kernels/tristate_relu_args.h"

namespace resgrow {
namespace ISA {

// What a value is computed in.
template <class T>
struct TriStateCompute {
  using type = T;
};
template <>
struct TriStateCompute<BFloat16> {
  using type = float;
};

// Slopes are 0 or 1, so that a product is a bfloat16 again (or NaN) and truncation is exact.
inline void narrow(float v, float* p) {
  *p = v;
}
inline void narrow(double v, double* p) {
  *p = v;
}
inline void narrow(float v, BFloat16* p) {
  unsigned int bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  p->bits = static_cast<unsigned short>(bits >> 16);
}

template <class V, class T>
inline void store_narrowed(const V& v, T* p) {
  store(p, v);
}
template <class V>
inline void store_narrowed(const V& v, BFloat16* p) {
  constexpr int lanes = sizeof(V) / sizeof(float);
  typename Vector<unsigned int, lanes>::type bits;
  __builtin_memcpy(&bits, &v, sizeof(bits));
  store(p, __builtin_convertvector(bits >> 16, typename Vector<unsigned short, lanes>::type));
}

// {sum of a's lanes, sum of b's}: halves are added down to 16 bytes, where the two share a vector.
template <class A, int LANES>
__attribute__((always_inline)) inline typename Vector<A, 2>::type sum_lanes(
    const typename Vector<A, LANES>::type& a, const typename Vector<A, LANES>::type& b) {
  using Half = typename Vector<A, LANES / 2>::type;
  if constexpr (LANES == 2) {
    using Pair = typename Vector<A, 2>::type;
    return Pair{a[0], b[0]} + Pair{a[1], b[1]};
  } else {
    Half parts[4];
    __builtin_memcpy(parts, &a, sizeof(a));
    __builtin_memcpy(parts + 2, &b, sizeof(b));
    if constexpr (LANES * sizeof(A) == 16) {
      using V = typename Vector<A, LANES>::type;
      const V both = V{a[0], b[0], a[1], b[1]} + V{a[2], b[2], a[3], b[3]};
      __builtin_memcpy(parts, &both, sizeof(both));
      return parts[0] + parts[1];
    } else {
      return sum_lanes<A, LANES / 2>(parts[0] + parts[1], parts[2] + parts[3]);
    }
  }
}

// 0, 1, 2 ...
template <class A, int LANES>
inline typename Vector<A, LANES>::type numbered() {
  A lanes[LANES];
  for (int i = 0; i < LANES; ++i) lanes[i] = A(i);
  return load<typename Vector<A, LANES>::type>(lanes);
}

// The pointers of one row, and what is done with one vector or one value of it.
template <class T, bool FORWARD, bool OUT, bool SUMS>
struct TriStateRow {
  using A = typename TriStateCompute<T>::type;
  static constexpr int lanes = VECTOR_BYTES / sizeof(A);
  using V = typename Vector<A>::type;

  const T* x;
  const T* grad;
  T* out;

  TriStateRow(const TriStateRelu& a, Int row)
      : x(static_cast<const T*>(a.x) + row * a.stride),
        grad(FORWARD ? x : static_cast<const T*>(a.grad) + row * a.stride),
        out(OUT ? static_cast<T*>(a.out) + row * a.stride : nullptr) {}

  // PART: lanes below `from` have been here before; writing those over the input itself is no
  // harm, as slopes are 0 or 1.
  template <bool PART = false>
  __attribute__((always_inline)) void vector(Int i, const V& positive, const V& negative, V& above,
                                             V& below, A from = 0) const {
    const V v = load_widened<A, lanes>(x + i);
    const V g = FORWARD ? v : load_widened<A, lanes>(grad + i);
    const auto side = v >= V{};
    if (OUT) store_narrowed(g * (side ? positive : negative), out + i);
    if (SUMS) {
      V product = g * v;
      if (PART) product = numbered<A, lanes>() >= from ? product : V{};
      above += side ? product : V{};
      below += side ? V{} : product;
    }
  }

  void value(Int i, A positive, A negative, A& above, A& below) const {
    const A v = widen(x[i]);
    const A g = FORWARD ? v : widen(grad[i]);
    const bool side = v >= 0;
    if (OUT) narrow(g * (side ? positive : negative), out + i);
    if (SUMS) (side ? above : below) += g * v;
  }
};

template <class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_runs(const TriStateRelu& args) {
  const TriStateRelu a = args;  // a copy, which no store can be taken to change
  using Row = TriStateRow<T, FORWARD, OUT, SUMS>;
  using A = typename Row::A;
  using V = typename Row::V;
  using Pair = typename Vector<A, 2>::type;
  Int channel = a.channel;
  for (Int r = 0; r < a.rows; ++r) {
    const Row row(a, r);
    const A positive = static_cast<const A*>(a.positive)[channel];
    const A negative = static_cast<const A*>(a.negative)[channel];
    const V positives = positive - V{}, negatives = negative - V{};
    V above[2] = {}, below[2] = {};  // two chains each: an addition takes several cycles
    Int i = 0;
    for (; i + 2 * Row::lanes <= a.cols; i += 2 * Row::lanes) {
      row.vector(i, positives, negatives, above[0], below[0]);
      row.vector(i + Row::lanes, positives, negatives, above[1], below[1]);
    }
    if (i + Row::lanes <= a.cols) {
      row.vector(i, positives, negatives, above[0], below[0]);
      i += Row::lanes;
    }
    A sum_above = 0, sum_below = 0;
    if (i < a.cols && a.cols >= Row::lanes) {
      const Int last = a.cols - Row::lanes;
      row.template vector<true>(last, positives, negatives, above[1], below[1], A(i - last));
    } else {
      for (; i < a.cols; ++i) row.value(i, positive, negative, sum_above, sum_below);
    }
    if (SUMS) {
      const Pair rest{sum_above, sum_below};
      store(static_cast<A*>(a.sums) + 2 * r,
            rest + sum_lanes<A, Row::lanes>(above[0] + above[1], below[0] + below[1]));
    }
    if (++channel == a.channels) channel = 0;
  }
}

// ROWS rows at once: the slopes and sums of a column are read and written once for all of them.
template <int ROWS, class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_column_rows(const TriStateRelu& args, Int first) {
  const TriStateRelu a = args;  // a copy, which no store can be taken to change
  using Row = TriStateRow<T, FORWARD, OUT, SUMS>;
  using A = typename Row::A;
  using V = typename Row::V;
  const A* positive = static_cast<const A*>(a.positive);
  const A* negative = static_cast<const A*>(a.negative);
  A* above = static_cast<A*>(a.sums);
  A* below = SUMS ? above + a.cols : nullptr;
  const Row row(a, first);
  Int i = 0;
  for (; i + Row::lanes <= a.cols; i += Row::lanes) {
    const V p = load<V>(positive + i), n = load<V>(negative + i);
    V va = {}, vb = {};
    if (SUMS) {
      va = load<V>(above + i);
      vb = load<V>(below + i);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) row.vector(i + r * a.stride, p, n, va, vb);
    if (SUMS) {
      store(above + i, va);
      store(below + i, vb);
    }
  }
  for (; i < a.cols; ++i) {
    A va = 0, vb = 0;
    for (int r = 0; r < ROWS; ++r) {
      row.value(i + r * a.stride, positive[i], negative[i], va, vb);
    }
    if (SUMS) {
      above[i] += va;
      below[i] += vb;
    }
  }
}

template <class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_columns(const TriStateRelu& a) {
  // Rows a multiple of 2 KiB apart fall into the same one or two sets of the first-level cache:
  // four at once would drive each other out.
  const bool conflict = a.stride * sizeof(T) % 2048 == 0;
  Int row = 0;
  for (; !conflict && row + 4 <= a.rows; row += 4) {
    tristate_column_rows<4, T, FORWARD, OUT, SUMS>(a, row);
  }
  for (; row < a.rows; ++row) tristate_column_rows<1, T, FORWARD, OUT, SUMS>(a, row);
}

template <class T>
void tristate_relu_runs(const TriStateRelu& a) {
  if (!a.grad) return tristate_runs<T, true, true, false>(a);
  if (!a.sums) return tristate_runs<T, false, true, false>(a);
  if (!a.out) return tristate_runs<T, false, false, true>(a);
  tristate_runs<T, false, true, true>(a);
}

template <class T>
void tristate_relu_columns(const TriStateRelu& a) {
  if (!a.grad) return tristate_columns<T, true, true, false>(a);
  if (!a.sums) return tristate_columns<T, false, true, false>(a);
  if (!a.out) return tristate_columns<T, false, false, true>(a);
  tristate_columns<T, false, true, true>(a);
}

template <class T>
constexpr TriStateReluKernels tristate_relu_kernels() {
  return {tristate_relu_runs<T>, tristate_relu_columns<T>};
}

}  // namespace ISA
}  // namespace resgrow
