// One block-sparse layer with its data, and what its three products are by definition.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>

#include "cpu/block_sparse_shape.h"
#include "harness.h"

namespace resgrow::testing {

struct BlockSparseCase {
  BlockSparseShape s{};
  std::vector<int> index;  // (4, blocks)
  int64_t blocks;
  std::vector<double> x, grad, values, bias, positive, negative, residual;
  std::vector<double> y, grad_x, grad_values;  // of the sum of products alone

  BlockSparseCase(const BlockSparseShape& shape, double density, Random& random) : s(shape) {
    for (int d = 0; d < 2; ++d) {
      const int64_t size = d == 0 ? s.height : s.width;
      const int64_t room = size + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1;
      (d == 0 ? s.out_height : s.out_width) = room / s.stride[d] + 1;
    }
    s.rows = ceil_div(s.outputs, s.block_out);
    s.cols = ceil_div(s.channels / s.groups, s.block_in);
    draw_blocks(density, random);
    x = random.integers<double>(s.samples * s.height * s.width * s.channels);
    grad = random.integers<double>(s.samples * s.out_height * s.out_width * s.outputs);
    values = random.integers<double>(blocks * s.block_in * s.block_out);
    bias = random.integers<double>(s.padded_outputs());
    positive = random.integers<double>(s.padded_outputs(), 1);
    negative = random.integers<double>(s.padded_outputs(), 1);
    residual = random.integers<double>(grad.size());
    multiply();
  }

  static bool fits(const BlockSparseShape& s) {
    return s.height + 2 * s.padding[0] > s.dilation[0] * (s.kernel[0] - 1) &&
           s.width + 2 * s.padding[1] > s.dilation[1] * (s.kernel[1] - 1);
  }
  BlockSparseIndex view() const {
    const int* data = index.data();
    return {data, data + blocks, data + 2 * blocks, data + 3 * blocks, blocks};
  }
  std::string name() const {
    const auto pair = [](const char* what, const int64_t (&p)[2]) {
      return std::string(what) + std::to_string(p[0]) + "," + std::to_string(p[1]);
    };
    const auto size = [](int64_t n, int64_t c, int64_t h, int64_t w) {
      return std::to_string(n) + "x" + std::to_string(c) + "x" + std::to_string(h) + "x" +
             std::to_string(w);
    };
    return size(s.samples, s.channels, s.height, s.width) + " -> " + std::to_string(s.outputs) +
           pair(" kernel ", s.kernel) + pair(" stride ", s.stride) + pair(" padding ", s.padding) +
           pair(" dilation ", s.dilation) + " groups " + std::to_string(s.groups) + ", " +
           std::to_string(blocks) + " blocks " + std::to_string(s.block_out) + "x" +
           std::to_string(s.block_in);
  }

 private:
  // As resgrow.ops.block_index: by row, then such that neighbours read neighbouring input.
  void draw_blocks(double density, Random& random) {
    std::vector<std::array<int, 3>> present;  // row, col, tap
    for (int row = 0; row < s.rows; ++row) {
      for (int col = 0; col < s.cols; ++col) {
        for (int tap = 0; tap < s.taps(); ++tap) {
          if (random.chance(density)) present.push_back({row, col, tap});
        }
      }
    }
    std::sort(present.begin(), present.end(), [&](const auto& a, const auto& b) {
      const auto key = [&](const auto& p) {
        return std::make_tuple(p[0], p[1] * s.block_in / 16, p[2], p[1]);
      };
      return key(a) < key(b);
    });
    blocks = present.size();
    index.resize(4 * blocks);
    for (int64_t k = 0; k < blocks; ++k) {
      for (int field = 0; field < 3; ++field) index[field * blocks + k] = present[k][field];
    }
    const auto by_tap = index.begin() + 3 * blocks;
    std::iota(by_tap, index.end(), 0);
    std::sort(by_tap, index.end(), [&](int a, int b) {
      const auto key = [&](int k) {
        return std::make_tuple(present[k][0], present[k][2], present[k][1]);
      };
      return key(a) < key(b);
    });
  }

  void multiply() {
    y.resize(grad.size());
    grad_x.resize(x.size());
    grad_values.resize(values.size());
    const BlockSparseIndex present = view();
    for (int64_t k = 0; k < blocks; ++k) {
      for (int64_t i = 0; i < s.block_in; ++i) {
        const int64_t channel = s.first_channel(present.row[k], present.col[k]) + i;
        for (int64_t o = 0; o < s.block_out; ++o) {
          const int64_t output = present.row[k] * s.block_out + o;
          if (channel >= s.channels || output >= s.outputs) continue;  // beyond a ragged edge
          multiply(present.tap[k], channel, output, (k * s.block_in + i) * s.block_out + o);
        }
      }
    }
  }
  void multiply(int64_t tap, int64_t channel, int64_t output, int64_t value) {
    for (int64_t out = 0; out < s.samples * s.out_height * s.out_width; ++out) {
      const int64_t sample = out / (s.out_height * s.out_width);
      const int64_t row = out / s.out_width % s.out_height * s.stride[0] - s.padding[0] +
                          tap / s.kernel[1] * s.dilation[0];
      const int64_t col =
          out % s.out_width * s.stride[1] - s.padding[1] + tap % s.kernel[1] * s.dilation[1];
      if (row < 0 || row >= s.height || col < 0 || col >= s.width) continue;
      const int64_t in = ((sample * s.height + row) * s.width + col) * s.channels + channel;
      const int64_t at = out * s.outputs + output;
      y[at] += x[in] * values[value];
      grad_x[in] += grad[at] * values[value];
      grad_values[value] += grad[at] * x[in];
    }
  }
};

}  // namespace resgrow::testing
