// 16-bit operands: mma.sync m16n8k16, fragments by transposing ldmatrix, since positions (the
// summed dimension) are rows in shared memory.
#pragma once

#include "cuda/kernels/squared_grad_tiles.cuh"

namespace resgrow {

template <class T, int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int RUN, int BLOCKS>
struct Halves {
  using Storage = T;
  template <int WIDTH>
  using Layout = Swizzled<WIDTH>;
  static constexpr SquaredGradForm kForm = SquaredGradForm::per_sample;
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kWarpRows = WARP_ROWS;
  static constexpr int kWarpColumns = WARP_COLUMNS, kDepth = 32, kRun = RUN, kStages = 4;
  static constexpr int kBlocks = BLOCKS;

  // Where the lane's rows of the matrices lie in a stage: the same in every one, and 16 positions
  // further down as much further on.
  int a_at[WARP_ROWS / 16], b_at[WARP_COLUMNS / 16];

  // Lane l gives the address of row l % 8 of matrix l / 8. The four of a: rows 0-7 and 8-15 of
  // positions 0-7, the same of positions 8-15; of b: positions 0-7 and 8-15 of columns 0-7, the
  // same of columns 8-15.
  RESGROW_DEVICE Halves(int row, int column) {
    const int lane = threadIdx.x % 32, high = lane / 16 * 8, low = lane / 8 % 2 * 8;
    RESGROW_UNROLL
    for (int i = 0; i < kWarpRows / 16; ++i) {
      a_at[i] = Layout<kRows>::at(lane % 8 + high, row + i * 16 + low);
    }
    RESGROW_UNROLL
    for (int j = 0; j < kWarpColumns / 16; ++j) {
      b_at[j] = Layout<kColumns>::at(lane % 8 + low, column + j * 16 + high);
    }
  }

  RESGROW_DEVICE void multiply(Products<Halves>& product, const T* grads, const T* inputs,
                               int left) const {
    RESGROW_UNROLL
    for (int k = 0; k < kDepth; k += 16) {
      if (k >= left) break;
      unsigned a[kWarpRows / 16][4], b[kWarpColumns / 8][2];
      RESGROW_UNROLL
      for (int i = 0; i < kWarpRows / 16; ++i) {
        load_matrices_transposed(a[i], grads + a_at[i] + k * Layout<kRows>::kPitch);
      }
      RESGROW_UNROLL
      for (int j = 0; j < kWarpColumns / 16; ++j) {
        unsigned two[4];
        load_matrices_transposed(two, inputs + b_at[j] + k * Layout<kColumns>::kPitch);
        b[2 * j][0] = two[0], b[2 * j][1] = two[1];
        b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
      }
      RESGROW_UNROLL
      for (int i = 0; i < kWarpRows / 16; ++i) {
        RESGROW_UNROLL
        for (int j = 0; j < kWarpColumns / 8; ++j) {
          multiply_add<T>(product.of[i][j], a[i], b[j]);
        }
      }
    }
  }
};

}  // namespace resgrow
