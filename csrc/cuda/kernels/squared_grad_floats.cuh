// Operands that need more than 16 bits of mantissa: mma.sync m16n8k8 in tf32. A value is the sum of
// two tf32 numbers up to 2^-22 of itself, and three of the four products of such sums give the
// product up to as much; one product of the first parts alone is tf32.
//
// Fragments are read value by value: 24 four-byte reads per warp and 8 positions of its 64 x 32
// part, 24 cycles of shared memory against 26 of the tensor cores (half their 16-bit rate) for one
// product and 77 for three.
#pragma once

#include "cuda/kernels/squared_grad_tiles.cuh"

namespace resgrow {

// PRODUCTS: 1 or 3. FORM says which operands are squared as they are read; the squares of 16-bit
// values have up to 22 bits of mantissa, which two tf32 numbers hold exactly.
template <class T, SquaredGradForm FORM, int PRODUCTS, int ROWS, int COLUMNS, int WARP_ROWS,
          int WARP_COLUMNS, int BLOCKS>
struct Floats {
  using Storage = T;
  template <int WIDTH>
  using Layout = Padded<WIDTH>;
  static constexpr SquaredGradForm kForm = FORM;
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kWarpRows = WARP_ROWS;
  static constexpr int kWarpColumns = WARP_COLUMNS, kDepth = 16, kRun = kSquaredGradRun;
  static constexpr int kStages = 4, kBlocks = BLOCKS;

  template <int COUNT>
  struct Fragment {
    unsigned high[COUNT], low[COUNT];

    template <bool SQUARE>
    RESGROW_DEVICE void take(int i, T stored) {
      const float read = to_float(stored), v = SQUARE ? read * read : read;
      high[i] = tf32(v);
      if constexpr (PRODUCTS == 3) low[i] = tf32(v - __uint_as_float(high[i]));
    }
  };

  // Where the lane's first values lie in a stage.
  int a_at, b_at;

  RESGROW_DEVICE Floats(int row, int column)
      : a_at(Layout<kRows>::at(threadIdx.x % 4, row + threadIdx.x % 32 / 4)),
        b_at(Layout<kColumns>::at(threadIdx.x % 4, column + threadIdx.x % 32 / 4)) {}

  RESGROW_DEVICE void multiply(Products<Floats>& product, const T* grads, const T* inputs,
                               int left) const {
    constexpr bool kSquareGrad = FORM == SquaredGradForm::factors;
    constexpr bool kSquareInput = FORM != SquaredGradForm::per_sample;
    RESGROW_UNROLL
    for (int k = 0; k < kDepth; k += 8) {
      if (k >= left) break;
      Fragment<2> b[kWarpColumns / 8];
      RESGROW_UNROLL
      for (int j = 0; j < kWarpColumns / 8; ++j) {
        const T* const at = inputs + b_at + k * Layout<kColumns>::kPitch + j * 8;
        b[j].template take<kSquareInput>(0, at[0]);
        b[j].template take<kSquareInput>(1, at[4 * Layout<kColumns>::kPitch]);
      }
      RESGROW_UNROLL
      for (int i = 0; i < kWarpRows / 16; ++i) {
        const T* const at = grads + a_at + k * Layout<kRows>::kPitch + i * 16;
        Fragment<4> a;
        a.template take<kSquareGrad>(0, at[0]);
        a.template take<kSquareGrad>(1, at[8]);
        a.template take<kSquareGrad>(2, at[4 * Layout<kRows>::kPitch]);
        a.template take<kSquareGrad>(3, at[4 * Layout<kRows>::kPitch + 8]);
        RESGROW_UNROLL
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          if constexpr (PRODUCTS == 3) {
            // The small terms first: they are lost beside the large one otherwise.
            multiply_add_tf32(product.of[i][j], a.low, b[j].high);
            multiply_add_tf32(product.of[i][j], a.high, b[j].low);
          }
          multiply_add_tf32(product.of[i][j], a.high, b[j].high);
        }
      }
    }
  }
};

}  // namespace resgrow
