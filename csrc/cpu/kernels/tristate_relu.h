// Kernels of tristate_relu: one pass over x (and grad) for the output and all sums.
// Included once per instruction set (unit.inc): torch-free and std-free. Expects ISA and
// VECTOR_BYTES.
#include "cpu/kernels/tristate_relu_args.h"

namespace resgrow {
namespace ISA {

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

// What is taken of a row at once, in vectors: `parts` of them.
template <class T>
struct TriStateStep {
  using A = T;
  using V = typename Vector<A>::type;
  static constexpr int lanes = VECTOR_BYTES / sizeof(A), parts = 1;

  static constexpr int place(int, int lane) { return lane; }
  static void read(const T* p, V* v) { v[0] = load<V>(p); }
  static void write(T* p, const V* v) { store(p, v[0]); }
  static void read_columns(const A* p, V* v) { v[0] = load<V>(p); }
  static void add_columns(A* p, const V* v) { store(p, load<V>(p) + v[0]); }
};

// A vector of bfloat16 makes two of float32 without leaving its lanes: of the values at even and at
// odd places, which are the lower and the upper halves of 32 bits.
template <>
struct TriStateStep<BFloat16> {
  using A = float;
  using V = typename Vector<A>::type;
  using Bits = typename Vector<unsigned int>::type;
  static constexpr int lanes = VECTOR_BYTES / sizeof(A), parts = 2;
  static constexpr unsigned int upper = 0xffff0000u;

  static constexpr int place(int part, int lane) { return 2 * lane + part; }
  static void read(const BFloat16* p, V* v) {
    const Bits both = load<Bits>(p), even = both << 16, odd = both & upper;
    v[0] = load<V>(&even);
    v[1] = load<V>(&odd);
  }
  // Slopes are 0 or 1, so that a product is a bfloat16 again (or NaN) and truncation is exact.
  static void write(BFloat16* p, const V* v) {
    store(p, load<Bits>(v) >> 16 | (load<Bits>(v + 1) & upper));
  }
  static void read_columns(const A* p, V* v) {
    A apart[2][lanes];
    for (int i = 0; i < lanes; ++i) {
      apart[0][i] = p[2 * i];
      apart[1][i] = p[2 * i + 1];
    }
    v[0] = load<V>(apart[0]);
    v[1] = load<V>(apart[1]);
  }
  static void add_columns(A* p, const V* v) {
    A apart[2][lanes];
    store(apart[0], v[0]);
    store(apart[1], v[1]);
    for (int i = 0; i < 2 * lanes; ++i) p[i] += apart[i % 2][i / 2];
  }
};

// The pointers of one row, and what is done with one step or one value of it.
template <class T, bool FORWARD, bool OUT, bool SUMS>
struct TriStateRow {
  using Step = TriStateStep<T>;
  using A = typename Step::A;
  using V = typename Step::V;
  static constexpr int lanes = Step::lanes, parts = Step::parts, width = parts * lanes;

  const T* x;
  const T* grad;
  T* out;

  TriStateRow(const TriStateRelu& a, Int row)
      : x(static_cast<const T*>(a.x) + row * a.stride),
        grad(FORWARD ? x : static_cast<const T*>(a.grad) + row * a.stride),
        out(OUT ? static_cast<T*>(a.out) + row * a.stride : nullptr) {}

  // REST: places below `from` have been here before; writing those over the input itself is no
  // harm, as slopes are 0 or 1.
  template <bool REST = false>
  __attribute__((always_inline)) void step(Int i, const V* positive, const V* negative, V* above,
                                           V* below, Int from = 0) const {
    V v[parts], g[parts], y[parts];
    Step::read(x + i, v);
    Step::read(grad + i, g);
#pragma GCC unroll 2
    for (int k = 0; k < parts; ++k) {
      const auto side = v[k] >= V{};
      y[k] = g[k] * (side ? positive[k] : negative[k]);
      if (!SUMS) continue;
      V product = g[k] * v[k];
      if (REST) product = numbered(k) >= A(from) ? product : V{};
      above[k] = side ? above[k] + product : above[k];
      below[k] = side ? below[k] : below[k] + product;
    }
    if (OUT) Step::write(out + i, y);
  }

  void prefetch(Int i) const {
    __builtin_prefetch(x + i, 0, 2);
    if (!FORWARD) __builtin_prefetch(grad + i, 0, 2);
    if (OUT) __builtin_prefetch(out + i, 1, 2);
  }

  static V numbered(int part) {
    A places[lanes];
    for (int i = 0; i < lanes; ++i) places[i] = A(Step::place(part, i));
    return load<V>(places);
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
    const V p[2] = {positive - V{}, positive - V{}}, n[2] = {negative - V{}, negative - V{}};
    constexpr int chains = 2, steps = chains / Row::parts;  // an addition takes several cycles
    V above[chains] = {}, below[chains] = {};
    Int i = 0;
    for (; i + steps * Row::width <= a.cols; i += steps * Row::width) {
#pragma GCC unroll 4
      for (int s = 0; s < steps; ++s) {
        row.step(i + s * Row::width, p, n, above + s * Row::parts, below + s * Row::parts);
      }
    }
    for (; i + Row::width <= a.cols; i += Row::width) row.step(i, p, n, above, below);
    A sum_above = 0, sum_below = 0;
    if (i < a.cols && a.cols >= Row::width) {
      const Int last = a.cols - Row::width;
      row.template step<true>(last, p, n, above + chains - Row::parts, below + chains - Row::parts,
                              i - last);
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

// STEPS steps of columns from `first` on, down all rows: their slopes and sums stay in registers.
// REST: one step, whose places below `from` have been here before.
template <int STEPS, bool REST, class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_strip(const TriStateRelu& args, Int first, Int from = 0) {
  const TriStateRelu a = args;  // a copy, which no store can be taken to change
  using Row = TriStateRow<T, FORWARD, OUT, SUMS>;
  using Step = typename Row::Step;
  using A = typename Row::A;
  using V = typename Row::V;
  constexpr int parts = Row::parts;
  V p[STEPS * parts], n[STEPS * parts], above[STEPS * parts] = {}, below[STEPS * parts] = {};
#pragma GCC unroll 4
  for (int s = 0; s < STEPS; ++s) {
    Step::read_columns(static_cast<const A*>(a.positive) + first + s * Row::width, p + s * parts);
    Step::read_columns(static_cast<const A*>(a.negative) + first + s * Row::width, n + s * parts);
  }
  const Row row(a, 0);
  for (Int r = 0, i = first; r < a.rows; ++r, i += a.stride) {
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; ++s) {
      row.template step<REST>(i + s * Row::width, p + s * parts, n + s * parts, above + s * parts,
                              below + s * parts, from);
    }
  }
#pragma GCC unroll 4
  for (int s = 0; SUMS && s < STEPS; ++s) {
    A* sums = static_cast<A*>(a.sums) + first + s * Row::width;
    Step::add_columns(sums, above + s * parts);
    Step::add_columns(sums + a.cols, below + s * parts);
  }
}

// The first `cols` columns, row by row: memory is fastest in its own order, though slopes and sums
// are read anew for every row. They are laid out as the steps take them.
template <class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_rows(const TriStateRelu& args, Int cols) {
  const TriStateRelu a = args;  // a copy, which no store can be taken to change
  using Row = TriStateRow<T, FORWARD, OUT, SUMS>;
  using Step = typename Row::Step;
  using A = typename Row::A;
  using V = typename Row::V;
  constexpr int vectors = kTriStateColumns / Row::lanes;
  constexpr Int ahead = 2048;  // what the processor fetches of itself comes later
  V p[vectors], n[vectors], above[vectors], below[vectors];
  for (Int i = 0; i < cols; i += Row::width) {
    Step::read_columns(static_cast<const A*>(a.positive) + i, p + i / Row::lanes);
    Step::read_columns(static_cast<const A*>(a.negative) + i, n + i / Row::lanes);
  }
  for (int k = 0; k < cols / Row::lanes; ++k) above[k] = below[k] = V{};
  for (Int r = 0; r < a.rows; ++r) {
    const Row row(a, r);
    for (Int i = 0, k = 0; i < cols; i += Row::width, k += Row::parts) {
      row.step(i, p + k, n + k, above + k, below + k);
      if (SUMS) row.prefetch(i + ahead);
    }
  }
  for (Int i = 0; SUMS && i < cols; i += Row::width) {
    Step::add_columns(static_cast<A*>(a.sums) + i, above + i / Row::lanes);
    Step::add_columns(static_cast<A*>(a.sums) + a.cols + i, below + i / Row::lanes);
  }
}

// Fewer columns than a step has.
template <class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_few_columns(const TriStateRelu& a) {
  using A = typename TriStateStep<T>::A;
  const A* positive = static_cast<const A*>(a.positive);
  const A* negative = static_cast<const A*>(a.negative);
  A* sums = static_cast<A*>(a.sums);
  for (Int r = 0; r < a.rows; ++r) {
    const TriStateRow<T, FORWARD, OUT, SUMS> row(a, r);
    for (Int i = 0; i < a.cols; ++i) {
      A above = 0, below = 0;
      row.value(i, positive[i], negative[i], above, below);
      if (!SUMS) continue;
      sums[i] += above;
      sums[a.cols + i] += below;
    }
  }
}

template <class T, bool FORWARD, bool OUT, bool SUMS>
void tristate_columns(const TriStateRelu& a) {
  using Row = TriStateRow<T, FORWARD, OUT, SUMS>;
  if (a.cols < Row::width) return tristate_few_columns<T, FORWARD, OUT, SUMS>(a);
  constexpr int steps = 4 / Row::parts;  // what registers hold
  Int i = 0;
  if (a.cached || a.cols <= steps * Row::width) {
    for (; i + steps * Row::width <= a.cols; i += steps * Row::width) {
      tristate_strip<steps, false, T, FORWARD, OUT, SUMS>(a, i);
    }
    for (; i + Row::width <= a.cols; i += Row::width) {
      tristate_strip<1, false, T, FORWARD, OUT, SUMS>(a, i);
    }
  } else {
    i = a.cols / Row::width * Row::width;
    tristate_rows<T, FORWARD, OUT, SUMS>(a, i);
  }
  const Int last = a.cols - Row::width;
  if (i < a.cols) tristate_strip<1, true, T, FORWARD, OUT, SUMS>(a, last, i - last);
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
