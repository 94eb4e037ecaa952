// What the kernels of tristate_relu share: values in vectors of 16 bytes, gates, the inner loop.
//
// The work is memory: forward reads x and writes out, 2 values moved for 5 instructions each;
// backward reads x and grad and writes grad_x, 3 values for 10. At 4.3 TB/s (H200) a multiprocessor
// moves 18 bytes per cycle, 4.5 bfloat16 values of the forward, and could issue 28 instructions for
// each: what matters is the bytes in flight. By Little's law the backward's 2.9 TB/s of reads at
// 0.8 us of latency are 17 KB per multiprocessor; a thread keeps four loads of 16 bytes in flight,
// so that 280 threads suffice, and at least 768 are resident (512 where loads are narrower).
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/tristate_relu_args.h"

namespace resgrow {

constexpr int kTriStateThreads = 256;
// Blocks per multiprocessor that registers are left for.
constexpr int resident(bool sums, bool aligned) {
  return !aligned ? 2 : sums ? 3 : 4;
}

// How a pass is split. It follows from the sizes alone, and so does the order of its sums: results
// are the same on every device.
//
// Memory is cut into `bands`, each of `runs` runs of one channel, the channels in turn; a run has
// `run` columns. `tiles` of `tile` columns cut a band; a run touches `parts` of them at most. What
// one block or warp finds for one channel goes to the slot of its run and its tile, run + tile: the
// part of the next run in the same tile and that of the same run in the next tile follow.
struct TriStatePlan {
  TriStatePass pass;
  Int bands, runs, tiles, blocks;
  int run, tile, parts;
  // Long runs: a band is an index of outer, a column is a piece of `piece` values, and so is a
  // tile.
  Int piece;
  // Columns: a band is a group of rows, `cols` values each, and of a last, shorter one of `rest`
  // values. A block has `lines` rows of `width` vectors, `rows` times.
  Int full_rows;
  int cols, rest;
  int width, lines, rows;
  int stride;  // of a line's sums in shared memory
};

// Sums: first those of the slots, then each block's sum for d.
template <class A>
RESGROW_DEVICE A* slot_sum(const TriStatePlan& plan, Int band, Int run, Int tile) {
  return static_cast<A*>(plan.pass.workspace) + band * (plan.runs + plan.tiles) + run + tile;
}
// The first tile that a run touches. Where tiles are wider than one column, columns are below 2^31.
RESGROW_DEVICE Int first_tile(const TriStatePlan& plan, Int run) {
  if (plan.tile == 1) return run * plan.run;
  return static_cast<unsigned>(run * plan.run) / static_cast<unsigned>(plan.tile);
}
template <class A>
RESGROW_DEVICE A* block_sums(const TriStatePlan& plan) {
  return slot_sum<A>(plan, plan.bands, 0, 0);
}

// Vectors of 16 bytes, and what their values are computed in. Slopes are 0 or 1: a product has the
// type of its factor again, and rounding is exact.
template <class T>
struct Values {
  using Compute = float;
  static constexpr int count = 8;

  RESGROW_DEVICE static float widen(T v) { return to_float(v); }
  RESGROW_DEVICE static T narrow(float v) { return from_float<T>(v); }

  RESGROW_DEVICE static void unpack(const unsigned (&words)[4], float (&v)[count]) {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = to_float(T{static_cast<unsigned short>(words[i])});
      v[2 * i + 1] = to_float(T{static_cast<unsigned short>(words[i] >> 16)});
    }
  }
  RESGROW_DEVICE static void pack(const float (&v)[count], unsigned (&words)[4]) {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      words[i] = static_cast<unsigned>(from_float<T>(v[2 * i + 1]).bits) << 16 |
                 from_float<T>(v[2 * i]).bits;
    }
  }
};

template <>
struct Values<float> {
  using Compute = float;
  static constexpr int count = 4;

  RESGROW_DEVICE static float widen(float v) { return v; }
  RESGROW_DEVICE static float narrow(float v) { return v; }

  RESGROW_DEVICE static void unpack(const unsigned (&words)[4], float (&v)[count]) {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(words[i]);
  }
  RESGROW_DEVICE static void pack(const float (&v)[count], unsigned (&words)[4]) {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = __float_as_uint(v[i]);
  }
};

template <>
struct Values<double> {
  using Compute = double;
  static constexpr int count = 2;

  RESGROW_DEVICE static double widen(double v) { return v; }
  RESGROW_DEVICE static double narrow(double v) { return v; }

  RESGROW_DEVICE static void unpack(const unsigned (&words)[4], double (&v)[count]) {
    RESGROW_UNROLL
    for (int i = 0; i < 2; ++i) {
      v[i] = __longlong_as_double(static_cast<Int>(words[2 * i + 1]) << 32 | words[2 * i]);
    }
  }
  RESGROW_DEVICE static void pack(const double (&v)[count], unsigned (&words)[4]) {
    RESGROW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const auto bits = static_cast<unsigned long long>(__double_as_longlong(v[i]));
      words[2 * i] = static_cast<unsigned>(bits);
      words[2 * i + 1] = static_cast<unsigned>(bits >> 32);
    }
  }
};

// 16 bytes of values; x and out may be one. Not ALIGNED, where a tensor starts inside a storage: in
// the units that its type leaves; neighbouring threads find the same lines in the caches.
template <class T, bool ALIGNED>
RESGROW_DEVICE uint4 load_values(const T* p) {
  if constexpr (ALIGNED) {
    return load_whole(p);
  } else {
    unsigned words[4];
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        words[i] = static_cast<unsigned>(p[2 * i + 1].bits) << 16 | p[2 * i].bits;
      } else {
        words[i] = load<unsigned>(reinterpret_cast<const char*>(p) + 4 * i);
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }
}
template <class T, bool ALIGNED>
RESGROW_DEVICE void store_values(T* p, const unsigned (&words)[4]) {
  if constexpr (ALIGNED) {
    store_whole(p, uint4{words[0], words[1], words[2], words[3]});
  } else {
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (sizeof(T) == 2) {
        p[2 * i].bits = static_cast<unsigned short>(words[i]);
        p[2 * i + 1].bits = static_cast<unsigned short>(words[i] >> 16);
      } else {
        store(reinterpret_cast<char*>(p) + 4 * i, words[i]);
      }
    }
  }
}

// 1[gate >= .5], compared in the gate's own precision.
RESGROW_DEVICE bool is_open(double gate) {
  return gate >= 0.5;
}
template <class G>
RESGROW_DEVICE bool is_open(G gate) {
  return to_float(gate) >= 0.5f;
}

RESGROW_DEVICE bool gate_open(const void* gates, Type type, Int at) {
  switch (type) {
    case Type::float64:
      return is_open(static_cast<const double*>(gates)[at]);
    case Type::bfloat16:
      return is_open(static_cast<const BFloat16*>(gates)[at]);
    case Type::float16:
      return is_open(static_cast<const Half*>(gates)[at]);
    default:
      return is_open(static_cast<const float*>(gates)[at]);
  }
}

// A thread's part of a pass: the inner loop of both ways to go through memory.
template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
struct TriStateThread {
  using V = Values<T>;
  using A = typename V::Compute;
  static constexpr int count = V::count;
  static constexpr int batch = FORWARD ? 4 : 2;  // four loads in flight

  const T* x;
  const T* grad;
  T* out;
  bool deep;       // d'
  A sum_d = A(0);  // of grad x w' over x < 0

  RESGROW_DEVICE explicit TriStateThread(const TriStatePass& pass)
      : x(static_cast<const T*>(pass.x)),
        grad(static_cast<const T*>(pass.grad)),
        out(static_cast<T*>(pass.out)),
        deep(gate_open(pass.d, pass.d_type, 0)) {}

  // Zero slopes multiply too: zero times infinity is NaN.
  RESGROW_DEVICE A term(A v, A g, A width, A& sum_w) {
    const bool positive = v >= A(0), passes = positive || deep;
    if constexpr (SUMS) {
      const A product = g * v;
      sum_w += product * (passes ? A(1) : A(0));
      if (!positive) sum_d += product * width;
    }
    return g * (passes ? width : A(0));
  }

  RESGROW_DEVICE void value(Int i, A width, A& sum_w) {
    const A v = V::widen(x[i]);
    const A result = term(v, FORWARD ? v : V::widen(grad[i]), width, sum_w);
    if (FORWARD || out) out[i] = V::narrow(result);
  }

  RESGROW_DEVICE void vector(Int i, const uint4& xs, const uint4& gs, const A (&width)[count],
                             A (&sum_w)[count]) {
    A v[count], g[count], results[count];
    V::unpack({xs.x, xs.y, xs.z, xs.w}, v);
    if constexpr (!FORWARD) V::unpack({gs.x, gs.y, gs.z, gs.w}, g);
    RESGROW_UNROLL
    for (int j = 0; j < count; ++j) {
      results[j] = term(v[j], FORWARD ? v[j] : g[j], width[j], sum_w[j]);
    }
    if (FORWARD || out) {
      unsigned words[4];
      V::pack(results, words);
      store_values<T, ALIGNED>(out + i, words);
    }
  }

  // n vectors, the first at value i, `step` values apart. width and sum_w belong to their places.
  RESGROW_DEVICE void vectors(Int i, Int step, int n, const A (&width)[count], A (&sum_w)[count]) {
    RESGROW_NO_UNROLL
    for (int first = 0; first < n; first += batch, i += batch * step) {
      uint4 xs[batch], gs[batch];
      RESGROW_UNROLL
      for (int k = 0; k < batch; ++k) {
        if (first + k >= n) continue;
        xs[k] = load_values<T, ALIGNED>(x + i + k * step);
        if constexpr (!FORWARD) gs[k] = load_values<T, ALIGNED>(grad + i + k * step);
      }
      RESGROW_UNROLL
      for (int k = 0; k < batch; ++k) {
        if (first + k < n) vector(i + k * step, xs[k], gs[k], width, sum_w);
      }
    }
  }
};

inline bool aligned(const void* p) {
  return reinterpret_cast<unsigned long long>(p) % 16 == 0;
}

// Calls LAUNCH<T, FORWARD, SUMS, ALIGNED>::run(plan, stream).
template <template <class, bool, bool, bool> class LAUNCH, class T, bool ALIGNED>
Status for_wanted(const TriStatePlan& plan, Stream stream) {
  if (!plan.pass.grad) return LAUNCH<T, true, false, ALIGNED>::run(plan, stream);
  if (!plan.pass.grad_w) return LAUNCH<T, false, false, ALIGNED>::run(plan, stream);
  return LAUNCH<T, false, true, ALIGNED>::run(plan, stream);
}
template <template <class, bool, bool, bool> class LAUNCH, class T>
Status for_alignment(const TriStatePlan& plan, Stream stream) {
  const bool whole = aligned(plan.pass.x) && aligned(plan.pass.grad) && aligned(plan.pass.out);
  return whole ? for_wanted<LAUNCH, T, true>(plan, stream)
               : for_wanted<LAUNCH, T, false>(plan, stream);
}
template <template <class, bool, bool, bool> class LAUNCH>
Status for_type(const TriStatePlan& plan, Stream stream) {
  switch (plan.pass.type) {
    case Type::float64:
      return for_alignment<LAUNCH, double>(plan, stream);
    case Type::bfloat16:
      return for_alignment<LAUNCH, BFloat16>(plan, stream);
    case Type::float16:
      return for_alignment<LAUNCH, Half>(plan, stream);
    default:
      return for_alignment<LAUNCH, float>(plan, stream);
  }
}

// Channels in long runs, and in short ones.
Status launch_tristate_runs(const TriStatePlan& plan, Stream stream);
Status launch_tristate_columns(const TriStatePlan& plan, Stream stream);

}  // namespace resgrow
