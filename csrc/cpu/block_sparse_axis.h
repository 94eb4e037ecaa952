// Positions of the input gradient of block_sparse along one dimension, and what they read.
#pragma once

#include <map>
#include <utility>

#include "cpu/block_sparse_shape.h"

namespace resgrow {

inline int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

// The sizes of the largest part when `total` is cut into 1, 2, ... even parts.
inline std::vector<int64_t> even_parts(int64_t total) {
  std::vector<int64_t> sizes = {total};
  for (int64_t parts = 2; parts <= total; ++parts) {
    if (ceil_div(total, parts) < sizes.back()) sizes.push_back(ceil_div(total, parts));
  }
  return sizes;
}

// One dimension of a tile: which output row a tap of an input row reads.
struct BlockSparseAxis {
  int64_t size, tile, tiles, kernel, stride, padding, dilation, outputs;

  bool whole() const { return tiles == 1; }
  // The output that a tap reads at a position, counted from the tile's first one. None where the
  // stride passes over it, or outside of an image that is one tile.
  bool reads(int64_t position, int64_t tap, int64_t* output) const {
    const int64_t at = position + padding - tap * dilation;
    *output = floor_div(at, stride);
    return *output * stride == at && !(whole() && (*output < 0 || *output >= outputs));
  }
  int64_t first_output(int64_t position) const {
    return floor_div(position + padding - (kernel - 1) * dilation, stride);
  }
  int64_t last_output(int64_t position) const { return floor_div(position + padding, stride); }
  // Which taps read something at this position.
  std::vector<bool> valid(int64_t position) const {
    std::vector<bool> taps(kernel);
    int64_t output;
    for (int64_t tap = 0; tap < kernel; ++tap) taps[tap] = reads(position, tap, &output);
    return taps;
  }
};

// Positions of a tile that read the same taps at the same distance share a class.
struct BlockSparseClasses {
  std::vector<int> of;             // class of each position
  std::vector<int64_t> positions;  // one position of each class

  BlockSparseClasses() = default;
  explicit BlockSparseClasses(const BlockSparseAxis& axis) {
    std::map<std::pair<std::vector<bool>, int64_t>, int> known;
    for (int64_t position = 0; position < axis.tile; ++position) {
      const auto [found, fresh] =
          known.emplace(std::make_pair(axis.valid(position), position % axis.stride), known.size());
      if (fresh) positions.push_back(position);
      of.push_back(found->second);
    }
  }
};

}  // namespace resgrow
