// Sizes of one block-sparse product and the order of its entries, shared by its three directions.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/isa.h"

namespace resgrow {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The convolution, dense channels_last tensors, and its blocks. A linear layer is one with
// `samples` = rows and images of one pixel.
struct BlockSparseShape {
  int64_t samples, channels, height, width, outputs, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
  int64_t block_out, block_in, rows, cols;  // rows x cols blocks per tap, cols within a group

  int64_t taps() const { return kernel[0] * kernel[1]; }
  // Channels as the blocks count them: the last column may be ragged.
  int64_t padded_channels() const { return std::max(channels, groups * cols * block_in); }
  int64_t padded_outputs() const { return rows * block_out; }
  int64_t first_channel(int64_t row, int64_t col) const {
    const int64_t group = groups == 1 ? 0 : row / (rows / groups);
    return group * (channels / groups) + col * block_in;
  }
  bool pointwise() const {
    return taps() == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
  }
  // A pointwise product of `images` images of height x width of its pixels.
  BlockSparseShape as_pixels(int64_t images, int64_t h, int64_t w) const {
    BlockSparseShape s = *this;
    s.samples = images;
    s.height = s.out_height = h;
    s.width = s.out_width = w;
    return s;
  }
};

// The present blocks, (4, blocks): row, column and tap of each, sorted by row; and the order of the
// blocks sorted by row, tap and column.
struct BlockSparseIndex {
  const int* row;
  const int* col;
  const int* tap;
  const int* by_tap;
  int64_t blocks;

  // First block of each row, rows + 1 of them.
  std::vector<int> row_starts(int64_t rows) const {
    std::vector<int> starts(rows + 1);
    for (int64_t r = 0; r < rows; ++r)
      starts[r + 1] = std::upper_bound(row + starts[r], row + blocks, r) - row;
    return starts;
  }
};

// Where each entry finds its pixels, given groups and taps; on whole pixels the step is kGroup.
inline void find_offsets(const BlockSparseShape& s, const BlockSparseIndex& index,
                         const std::vector<int>& taps, int64_t group_step, int* offsets) {
  const std::vector<int> starts = index.row_starts(s.rows);
  std::vector<int> bases(s.rows);
  for (int64_t row = 0; row < s.rows; ++row) bases[row] = s.first_channel(row, 0);
  kernels().block_sparse_float.offsets({index.col, index.tap, starts.data(), bases.data(),
                                        taps.data(), s.rows, s.block_in,
                                        static_cast<int>(group_step), offsets});
}

// Scratch memory, aligned to cache lines. Each thread keeps a few buffers: memory fresh from the
// system costs a page fault every 4 KiB, which can take longer than the work on it.
class ScratchPool {
 public:
  struct Buffer {
    void* data;
    size_t bytes;
  };
  static constexpr std::align_val_t line{64};

  static ScratchPool& of_this_thread() {
    thread_local ScratchPool pool;
    return pool;
  }
  Buffer take(size_t bytes) {
    for (Buffer& kept : kept_) {
      if (kept.bytes < bytes) continue;
      const Buffer found = kept;
      kept = {};
      return found;
    }
    return {::operator new(bytes, line), bytes};
  }
  // Keeps the buffer in the place of a smaller one.
  void give(Buffer buffer) {
    Buffer* least = &kept_[0];
    for (Buffer& kept : kept_) {
      if (kept.bytes < least->bytes) least = &kept;
    }
    if (buffer.bytes <= kMost && least->bytes < buffer.bytes) std::swap(*least, buffer);
    ::operator delete(buffer.data, line);
  }
  ScratchPool() = default;
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;
  ~ScratchPool() {
    for (const Buffer& kept : kept_) ::operator delete(kept.data, line);
  }

 private:
  static constexpr size_t kMost = 2 << 20;
  std::array<Buffer, 4> kept_{};
};

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : buffer_(ScratchPool::of_this_thread().take(std::max<int64_t>(count, 1) * sizeof(T))) {}
  ~Scratch() { ScratchPool::of_this_thread().give(buffer_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return static_cast<T*>(buffer_.data); }

 private:
  ScratchPool::Buffer buffer_;
};

template <class T>
const BlockSparseKernels<T>& block_sparse_kernels();
template <>
inline const BlockSparseKernels<float>& block_sparse_kernels<float>() {
  return kernels().block_sparse_float;
}
template <>
inline const BlockSparseKernels<double>& block_sparse_kernels<double>() {
  return kernels().block_sparse_double;
}

// Widest output vector that divides the blocks and that the instruction set has: 4 << index.
template <class T>
int width_index(const BlockSparseShape& s) {
  int index = s.block_out % 16 == 0 ? 2 : s.block_out % 8 == 0 ? 1 : 0;
  while (block_sparse_kernels<T>().max_pixels[index] == 0) --index;
  return index;
}

struct BlockSparseRun {
  int64_t start, size, count;  // `count` tiles of `size`
};

// `total` as tiles of two sizes at most, as even as they can be, none above `most`.
inline std::vector<BlockSparseRun> even_runs(int64_t total, int64_t most) {
  const int64_t tiles = ceil_div(total, most), size = ceil_div(total, tiles);
  const int64_t smaller = tiles * size - total, larger = tiles - smaller;
  std::vector<BlockSparseRun> runs = {{0, size, larger}};
  if (smaller > 0) runs.push_back({larger * size, size - 1, smaller});
  return runs;
}

// What is done to the output while it is in registers; null: nothing.
template <class T>
struct BlockSparseEpilogue {
  const T* bias;                 // padded_outputs()
  const T* residual;             // like the output
  const T *positive, *negative;  // padded_outputs() each
};

// values: (blocks, block_in, block_out). x, y, grad: channels_last, dense.
template <class T>
void block_sparse_forward(const BlockSparseShape& s, const BlockSparseIndex& index, const T* x,
                          const T* values, const BlockSparseEpilogue<T>& epilogue, T* y);
template <class T>
void block_sparse_input_grad(const BlockSparseShape& s, const BlockSparseIndex& index,
                             const T* grad, const T* values, T* grad_x);
// The same of a pointwise product.
template <class T>
void block_sparse_pointwise_grad(const BlockSparseShape& s, const BlockSparseIndex& index,
                                 const T* grad, const T* values, T* grad_x);
// The same where block_sparse_transposes(s): a forward product.
bool block_sparse_transposes(const BlockSparseShape& s);
template <class T>
void block_sparse_transposed(const BlockSparseShape& s, const BlockSparseIndex& index,
                             const T* grad, const T* values, T* grad_x);
template <class T>
void block_sparse_weight_grad(const BlockSparseShape& s, const BlockSparseIndex& index, const T* x,
                              const T* grad, T* grad_values);

}  // namespace resgrow
