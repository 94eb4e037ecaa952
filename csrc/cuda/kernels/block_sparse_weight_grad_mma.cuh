// Fragments of block_sparse_weight_grad. Both operands lie in shared memory pixel by pixel, 16
// channels of a piece side by side; the product of a piece is  x^T (16 inputs, 16 pixels) times
// y (16 pixels, 16 outputs).
#pragma once

#include "cuda/kernels/block_sparse_weight_grad_work.cuh"

namespace resgrow {
namespace weight_grad {

RESGROW_DEVICE int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % 32;
}

// 16-bit values: two m16n8k16.
template <class T>
struct Mma16 {
  using Value = T;
  static constexpr int kRows = 1;  // pixels of x, of a step, that a lane reads

  struct Input {
    unsigned r[4];
  };
  struct Output {
    unsigned r[4];
  };

  // Number of the lane's pixel, and where in it the lane begins.
  RESGROW_DEVICE static int pixel(int) { return lane_of_warp() % 8 + lane_of_warp() / 16 * 8; }
  RESGROW_DEVICE static int input_byte() { return lane_of_warp() / 8 % 2 * 16; }
  RESGROW_DEVICE static int output_byte(int pitch) {
    return (lane_of_warp() % 8 + lane_of_warp() / 8 % 2 * 8) * pitch + lane_of_warp() / 16 * 16;
  }
  RESGROW_DEVICE static void load_input(Input& in, const Byte* const (&rows)[kRows], int offset) {
    load_matrices_transposed(in.r, rows[0] + offset);
  }
  RESGROW_DEVICE static void load_output(Output& out, const Byte* at, int) {
    load_matrices_transposed(out.r, at);
  }
  RESGROW_DEVICE static void multiply(float (&d)[2][4], const Input& in, const Output& out) {
    const unsigned low[2] = {out.r[0], out.r[1]}, high[2] = {out.r[2], out.r[3]};
    multiply_add<T>(d[0], in.r, low);
    multiply_add<T>(d[1], in.r, high);
  }
};

// float on tf32 tensor cores, m16n8k8: one pass rounds operands to 10 bits of mantissa; three add
// the products with what the rounding lost.
template <int passes>
struct MmaFloat {
  using Value = float;
  static constexpr int kRows = 4;

  struct Input {
    unsigned r[2][4];  // of the first and last 8 pixels
  };
  struct Output {
    unsigned r[2][2][2], lost[2][2][2];  // [8 pixels][8 outputs][register]
  };

  RESGROW_DEVICE static int pixel(int i) { return lane_of_warp() % 4 + 4 * i; }
  RESGROW_DEVICE static int input_byte() { return lane_of_warp() / 4 * 4; }
  RESGROW_DEVICE static int output_byte(int pitch) {
    return lane_of_warp() % 4 * pitch + lane_of_warp() / 4 * 4;
  }
  RESGROW_DEVICE static void load_input(Input& in, const Byte* const (&rows)[kRows], int offset) {
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Byte* at = rows[i / 4 * 2 + i / 2 % 2] + offset + i % 2 * 32;
      in.r[i / 4][i % 4] = load<unsigned>(at);
    }
  }
  RESGROW_DEVICE static void load_output(Output& out, const Byte* at, int pitch) {
    RESGROW_UNROLL
    for (int i = 0; i < 8; ++i) {
      const unsigned v = load<unsigned>(at + (i / 4 * 8 + i % 2 * 4) * pitch + i / 2 % 2 * 32);
      split(v, out.r[i / 4][i / 2 % 2][i % 2], out.lost[i / 4][i / 2 % 2][i % 2]);
    }
  }
  RESGROW_DEVICE static void multiply(float (&d)[2][4], const Input& in, const Output& out) {
    RESGROW_UNROLL
    for (int half = 0; half < 2; ++half) {
      unsigned a[4], lost[4];
      RESGROW_UNROLL
      for (int i = 0; i < 4; ++i) split(in.r[half][i], a[i], lost[i]);
      RESGROW_UNROLL
      for (int n = 0; n < 2; ++n) {
        if constexpr (passes == 3) {
          multiply_add_tf32(d[n], lost, out.r[half][n]);
          multiply_add_tf32(d[n], a, out.lost[half][n]);
        }
        multiply_add_tf32(d[n], a, out.r[half][n]);
      }
    }
  }

 private:
  RESGROW_DEVICE static void split(unsigned bits, unsigned& rounded, unsigned& lost) {
    const float v = __uint_as_float(bits);
    rounded = tf32(v);
    lost = passes == 3 ? tf32(v - __uint_as_float(rounded)) : 0;
  }
};

}  // namespace weight_grad
}  // namespace resgrow
