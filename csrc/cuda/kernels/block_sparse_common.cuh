// What the tensor-core paths of block_sparse share: pieces of 16 x 16 weights and rows of pixels in
// shared memory, their product, and the way of finished sums to memory.
//
// A product is  sums[pixel][target] += pixels[pixel][k] * weights[k][target].  Forward, k are input
// channels and targets outputs; for the input gradient k are outputs and targets input channels. A
// piece of `values` lies in memory as [input channel][output], so that k runs over its rows or its
// columns.
#pragma once

#include "cuda/kernels/block_sparse_args.h"
#include "cuda/kernels/device.h"

namespace resgrow {

using Byte = unsigned char;

RESGROW_DEVICE int lane_id() {
  return static_cast<int>(threadIdx.x) & 31;
}
RESGROW_DEVICE int warp_id() {
  return static_cast<int>(threadIdx.x) >> 5;
}

// Where 16-byte unit `unit` of pixel row `row` lies; rows have 1 << log_units units (4 or 8). Units
// are exchanged such that 8 neighbouring rows have theirs in 8 different groups of banks.
RESGROW_DEVICE int pixel_offset(int row, int unit, int log_units) {
  const int key = row << (1 + log_units) & ((16 << log_units) - 16);
  return (row << (4 + log_units)) + (unit << 4 ^ key);
}

// Operands of 16 bits: m16n8k16, twice.
template <class T>
struct Mma16 {
  using Value = T;
  static constexpr int kLogUnits = 1;  // of the 16-byte units in a row of a piece
  static constexpr int kUnits = 1 << kLogUnits;
  static constexpr int kPieceBytes = 16 * 16 * kUnits;

  struct Pixels {
    unsigned a[4];
  };
  struct Weights {
    unsigned b[4];  // of targets 0 to 7, of 8 to 15
  };

  // Units are exchanged such that 8 rows have one unit each in different banks.
  RESGROW_DEVICE static int piece_offset(int row, int unit) {
    return row * 32 + ((unit ^ ((row >> 2) & 1)) << 4);
  }

  // Lane l gives the place of pixel row l % 16 through `at`, a function of the even units; it adds
  // l / 16 to them.
  template <class Place>
  RESGROW_DEVICE static void load_pixels(Pixels& p, const Place& at) {
    load_matrices(p.a, at(0));
  }

  // The lane's place in a piece, for load_weights.
  template <bool k_in_rows>
  RESGROW_DEVICE static int weight_lane() {
    const int l = lane_id(), first = (l >> 3) & 1, second = l >> 4;
    return k_in_rows ? piece_offset((l & 7) + 8 * first, second)
                     : piece_offset((l & 7) + 8 * second, first);
  }
  template <bool k_in_rows>
  RESGROW_DEVICE static void load_weights(Weights& w, const Byte* piece, int lane) {
    if constexpr (k_in_rows) {
      load_matrices_transposed(w.b, piece + lane);
    } else {
      load_matrices(w.b, piece + lane);
    }
  }

  RESGROW_DEVICE static void multiply(float (&d)[2][4], const Pixels& p, const Weights& w) {
    const unsigned low[2] = {w.b[0], w.b[1]}, high[2] = {w.b[2], w.b[3]};
    multiply_add<T>(d[0], p.a, low);
    multiply_add<T>(d[1], p.a, high);
  }
};

// float on tf32 tensor cores: m16n8k8. One pass rounds operands to 10 bits of mantissa; three add
// the products with what the rounding lost, which leaves errors near float's own.
template <int passes>
struct MmaFloat {
  static_assert(passes == 1 || passes == 3, "tf32 or near float32");
  using Value = float;
  static constexpr int kLogUnits = 2;
  static constexpr int kUnits = 1 << kLogUnits;
  static constexpr int kPieceBytes = 16 * 16 * kUnits;

  struct Pixels {
    unsigned a[2][4];  // of the first and last 8 of k
  };
  struct Weights {
    unsigned b[2][2][2];  // [targets of 8][8 of k][register]
  };

  // 8 rows have one unit each in different banks (k in columns: load_matrices), and so have units
  // 2n and 2n + 1 of 4 neighbouring rows (k in rows: single words).
  RESGROW_DEVICE static int piece_offset(int row, int unit) {
    return row * 64 + ((unit ^ (((row >> 1) & 1) << 1 | ((row >> 2) & 1))) << 4);
  }

  template <class Place>
  RESGROW_DEVICE static void load_pixels(Pixels& p, const Place& at) {
    load_matrices(p.a[0], at(0));
    load_matrices(p.a[1], at(2));
  }

  template <bool k_in_rows>
  RESGROW_DEVICE static int weight_lane() {
    const int l = lane_id();
    return k_in_rows ? piece_offset(l & 3, l >> 4) + ((l >> 2) & 3) * 4
                     : piece_offset(l & 7, l >> 3);
  }
  template <bool k_in_rows>
  RESGROW_DEVICE static void load_weights(Weights& w, const Byte* piece, int lane) {
    RESGROW_UNROLL
    for (int n = 0; n < 2; ++n) {
      if constexpr (k_in_rows) {
        // Row 4 more and targets 8 more each flip one bit of the unit.
        RESGROW_UNROLL
        for (int r = 0; r < 4; ++r) {
          const int at = (lane ^ (16 * (r & 1) | 32 * n)) + 256 * r;
          w.b[n][r >> 1][r & 1] = load<unsigned>(piece + at);
        }
      } else {
        unsigned r[4];
        load_matrices(r, piece + lane + 512 * n);
        w.b[n][0][0] = r[0], w.b[n][0][1] = r[1];
        w.b[n][1][0] = r[2], w.b[n][1][1] = r[3];
      }
    }
  }

  RESGROW_DEVICE static void multiply(float (&d)[2][4], const Pixels& p, const Weights& w) {
    RESGROW_UNROLL
    for (int k = 0; k < 2; ++k) {
      unsigned a[4], a_lost[4];
      RESGROW_UNROLL
      for (int i = 0; i < 4; ++i) split(p.a[k][i], a[i], a_lost[i]);
      RESGROW_UNROLL
      for (int n = 0; n < 2; ++n) {
        unsigned b[2], b_lost[2];
        RESGROW_UNROLL
        for (int i = 0; i < 2; ++i) split(w.b[n][k][i], b[i], b_lost[i]);
        if constexpr (passes == 3) {
          multiply_add_tf32(d[n], a_lost, b);
          multiply_add_tf32(d[n], a, b_lost);
        }
        multiply_add_tf32(d[n], a, b);
      }
    }
  }

 private:
  RESGROW_DEVICE static void split(unsigned bits, unsigned& rounded, unsigned& lost) {
    const float v = __uint_as_float(bits);
    rounded = tf32(v);
    if constexpr (passes == 3) lost = tf32(v - __uint_as_float(rounded));
  }
};

// One warp copies a piece; `from` has rows `step` values apart.
template <class Mma>
RESGROW_DEVICE void copy_piece(Byte* to, const typename Mma::Value* from, Int step) {
  RESGROW_UNROLL
  for (int i = lane_id(); i < 16 * Mma::kUnits; i += 32) {
    const int row = i >> Mma::kLogUnits, unit = i & (Mma::kUnits - 1);
    copy_async<16>(to + Mma::piece_offset(row, unit),
                   from + row * step + unit * (16 / Mma::kUnits));
  }
}

// Of 16 x 16 sums, lane l receives 8 neighbouring targets of one pixel, so that 16-bit results are
// stored 16 bytes at a time and sectors of 32 bytes whole: pixel l / 4 + 8 (l % 4 / 2), targets
// from 8 (l % 2). The four lanes of a pair of pixels exchange quarters.
RESGROW_DEVICE int gathered_pixel() {
  return (lane_id() >> 2) + 8 * ((lane_id() >> 1) & 1);
}
RESGROW_DEVICE int gathered_target() {
  return 8 * (lane_id() & 1);
}
RESGROW_DEVICE void gather_targets(const float (&d)[2][4], float (&v)[8]) {
  const bool odd = lane_id() & 1, upper = lane_id() & 2;
  float pair[2][4];  // of pixels l / 4 and l / 4 + 8, 4 targets of the own half
  RESGROW_UNROLL
  for (int p = 0; p < 2; ++p) {
    RESGROW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float left = d[0][2 * p + i], right = d[1][2 * p + i];
      const float kept = odd ? right : left;
      const float given = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
      pair[p][i] = odd ? given : kept;
      pair[p][2 + i] = odd ? kept : given;
    }
  }
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float kept = upper ? pair[1][i] : pair[0][i];
    const float given = __shfl_xor_sync(0xffffffffu, upper ? pair[0][i] : pair[1][i], 2);
    v[i] = upper ? given : kept;
    v[4 + i] = upper ? kept : given;
  }
}

// Where sums go: (pixels, targets), and the epilogue, null where there is none.
struct BlockSparseOutput {
  void* out;
  const void *bias, *residual, *positive, *negative;
  Int targets;
  bool vectors;  // 8 neighbouring targets are aligned to their size, or to 16 bytes, everywhere
};

template <class T>
RESGROW_DEVICE void load8(const void* from, Int at, bool vectors, int count, float (&v)[8]) {
  const T* p = static_cast<const T*>(from) + at;
  if (vectors) {
    T own[8];
    RESGROW_UNROLL
    for (int i = 0; i < 8 * int(sizeof(T)); i += 16) {
      const uint4 part = load<uint4>(reinterpret_cast<const Byte*>(p) + i);
      const unsigned words[4] = {part.x, part.y, part.z, part.w};
      RESGROW_UNROLL
      for (int k = 0; k < 16 / int(sizeof(T)); ++k) {
        if constexpr (sizeof(T) == 2) {
          own[k].bits = static_cast<unsigned short>(words[k / 2] >> (16 * (k % 2)));
        } else {
          own[i / 4 + k] = __uint_as_float(words[k]);
        }
      }
    }
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = to_float(own[i]);
  } else {
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = i < count ? to_float(load<T>(p + i)) : 0.0f;
  }
}
template <class T>
RESGROW_DEVICE void store8(void* to, Int at, bool vectors, int count, const float (&v)[8]) {
  T* p = static_cast<T*>(to) + at;
  if (vectors) {
    RESGROW_UNROLL
    for (int i = 0; i < 8 * int(sizeof(T)); i += 16) {
      unsigned words[4];
      RESGROW_UNROLL
      for (int k = 0; k < 4; ++k) {
        if constexpr (sizeof(T) == 2) {
          words[k] = from_float<T>(v[2 * k]).bits |
                     static_cast<unsigned>(from_float<T>(v[2 * k + 1]).bits) << 16;
        } else {
          words[k] = __float_as_uint(v[i / 4 + k]);
        }
      }
      store(reinterpret_cast<Byte*>(p) + i, make_uint4(words[0], words[1], words[2], words[3]));
    }
  } else {
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i)
      if (i < count) store(p + i, from_float<T>(v[i]));
  }
}

// 8 neighbouring targets of a pixel, of which `count` exist.
template <class T>
RESGROW_DEVICE void finish(const BlockSparseOutput& o, Int pixel, int target, int count,
                           float (&v)[8]) {
  const Int at = pixel * o.targets + target;
  const bool vectors = o.vectors && count >= 8;
  float other[8];
  if (o.bias != nullptr) {
    load8<T>(o.bias, target, vectors, count, other);
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) v[i] += other[i];
  }
  if (o.residual != nullptr) {
    load8<T>(o.residual, at, vectors, count, other);
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) v[i] += other[i];
  }
  if (o.positive != nullptr) {
    float below[8];
    load8<T>(o.positive, target, vectors, count, other);
    load8<T>(o.negative, target, vectors, count, below);
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) v[i] *= v[i] >= 0 ? other[i] : below[i];
  }
  store8<T>(o.out, at, vectors, count, v);
}

// The output of a product: the epilogue is forward's.
inline BlockSparseOutput output_of(const BlockSparseCall& call) {
  const bool forward = call.product == BlockSparseProduct::forward;
  BlockSparseOutput o{};
  o.out = forward ? call.y : call.x;
  o.targets = forward ? call.shape.outputs : call.shape.channels;
  if (forward) {
    o.bias = call.bias, o.residual = call.residual;
    o.positive = call.positive, o.negative = call.negative;
  }
  const void* const all[] = {o.out, o.bias, o.residual, o.positive, o.negative};
  unsigned long long addresses = 0;
  for (const void* p : all) addresses |= reinterpret_cast<unsigned long long>(p);
  o.vectors = o.targets % 8 == 0 && addresses % 16 == 0;
  return o;
}

}  // namespace resgrow
