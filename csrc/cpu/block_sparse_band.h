// Bands of output rows of one image and the grouped copy of the input that they read.
#pragma once

#include "cpu/block_sparse_shape.h"

namespace resgrow {

// Input of up to `rows` output rows. Columns are split by phase of the stride; a one-row or
// one-column kernel copies only the rows or columns it reads.
struct BlockSparseBand {
  int64_t rows, row_step, phases, cols, packed_rows, groups;

  BlockSparseBand(const BlockSparseShape& s, int64_t rows) : rows(rows) {
    row_step = s.kernel[0] == 1 ? 1 : s.stride[0];
    phases = s.kernel[1] == 1 ? 1 : s.stride[1];
    cols = s.out_width + (s.kernel[1] - 1) * s.dilation[1] / phases;
    packed_rows = (rows - 1) * row_step + (s.kernel[0] - 1) * s.dilation[0] + 1;
    groups = ceil_div(s.padded_channels(), kGroup);
  }

  // As many rows as fit in `bytes`.
  template <class T>
  static BlockSparseBand fitting(const BlockSparseShape& s, int64_t bytes) {
    const BlockSparseBand one(s, 1);
    const int64_t row_bytes = one.row_size() * one.groups * sizeof(T);
    const int64_t room = bytes / row_bytes - one.packed_rows;
    const int64_t most = std::max<int64_t>(1, std::min(s.out_height, room / one.row_step + 1));
    return BlockSparseBand(s, ceil_div(s.out_height, ceil_div(s.out_height, most)));
  }

  int64_t row_size() const { return phases * cols * kGroup; }
  int64_t group_step() const { return packed_rows * row_size(); }
  int64_t size() const { return groups * group_step(); }
  int64_t bands(const BlockSparseShape& s) const { return ceil_div(s.out_height, rows); }
  int64_t x_row() const { return row_step * row_size(); }  // between output rows

  int64_t tap_offset(const BlockSparseShape& s, int64_t tap) const {
    const int64_t y = tap / s.kernel[1] * s.dilation[0], x = tap % s.kernel[1] * s.dilation[1];
    return y * row_size() + (x % phases * cols + x / phases) * kGroup;
  }

  // Where each entry (block, channel of the block) finds its pixels.
  void find_offsets(const BlockSparseShape& s, const BlockSparseIndex& index, int* next) const {
    std::vector<int> taps(s.taps());
    for (int64_t tap = 0; tap < s.taps(); ++tap) taps[tap] = tap_offset(s, tap);
    resgrow::find_offsets(s, index, taps, group_step(), next);
  }

  // Copies the input of the output rows from `first` on.
  template <class T>
  void pack(const BlockSparseShape& s, const T* image, int64_t first, T* target) const {
    BlockSparsePack<T> a{};
    a.source = image;
    a.channels = s.channels;
    a.groups = groups;
    a.source_pixel = s.channels;
    a.source_row = s.width * s.channels;
    a.height = s.height;
    a.width = s.width;
    a.row0 = first * s.stride[0] - s.padding[0];
    a.row_step = s.kernel[0] == 1 ? s.stride[0] : 1;
    a.rows = packed_rows;
    a.col0 = -s.padding[1];
    a.col_step = s.stride[1];
    a.cols = cols;
    a.phases = phases;
    a.target = target;
    a.group_step = group_step();
    block_sparse_kernels<T>().pack(a);
  }
};

// A pointwise product sees nothing but pixels: rows of `row` of them, and a rest.
template <class F>
void for_pixel_rows(const BlockSparseShape& s, int64_t row, const F& run) {
  if (!s.pointwise()) return run(s, 0);
  const int64_t pixels = s.samples * s.out_height * s.out_width, rest = pixels % row;
  if (pixels >= row) run(s.as_pixels(1, pixels / row, row), 0);
  if (rest > 0) run(s.as_pixels(1, 1, rest), pixels - rest);
}

}  // namespace resgrow
