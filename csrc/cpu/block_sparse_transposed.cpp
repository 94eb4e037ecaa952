// Input gradient of block_sparse as a forward product with the transposed blocks: where those have
// a vector of input channels and the stride is one.
#include <ATen/Parallel.h>

#include "cpu/block_sparse_shape.h"

namespace resgrow {

bool block_sparse_transposes(const BlockSparseShape& s) {
  for (int d = 0; d < 2; ++d) {
    if (s.stride[d] != 1 || s.padding[d] > (s.kernel[d] - 1) * s.dilation[d]) return false;
  }
  return s.block_in % 4 == 0;
}

template <class T>
void block_sparse_transposed(const BlockSparseShape& s, const BlockSparseIndex& index,
                             const T* grad, const T* values, T* grad_x) {
  BlockSparseShape t = s;
  std::swap(t.channels, t.outputs);
  std::swap(t.height, t.out_height);
  std::swap(t.width, t.out_width);
  std::swap(t.block_in, t.block_out);
  for (int d = 0; d < 2; ++d) t.padding[d] = (s.kernel[d] - 1) * s.dilation[d] - s.padding[d];
  const int64_t group_rows = s.rows / s.groups;
  t.rows = s.cols * s.groups;
  t.cols = group_rows;
  // Stable by new row: within one, the old order still has neighbouring inputs side by side.
  std::vector<int> starts(t.rows + 1), from(index.blocks);
  const auto new_row = [&](int64_t k) { return index.row[k] / group_rows * s.cols + index.col[k]; };
  for (int64_t k = 0; k < index.blocks; ++k) ++starts[new_row(k) + 1];
  for (int64_t r = 0; r < t.rows; ++r) starts[r + 1] += starts[r];
  for (int64_t k = 0; k < index.blocks; ++k) from[starts[new_row(k)]++] = k;
  std::vector<int> rows(index.blocks), cols(index.blocks), taps(index.blocks);
  const int64_t size = s.block_in * s.block_out;
  Scratch<T> blocks(index.blocks * size);
  at::parallel_for(0, index.blocks, std::max<int64_t>(1, 32768 / size),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t j = begin; j < end; ++j) {
                       const int64_t k = from[j];
                       rows[j] = new_row(k);
                       cols[j] = index.row[k] % group_rows;
                       taps[j] = s.taps() - 1 - index.tap[k];
                       const T* source = values + k * size;
                       T* target = blocks.data() + j * size;
                       for (int64_t o = 0; o < s.block_out; ++o) {
                         for (int64_t i = 0; i < s.block_in; ++i)
                           *target++ = source[i * s.block_out + o];
                       }
                     }
                   });
  const BlockSparseIndex transposed{rows.data(), cols.data(), taps.data(), nullptr, index.blocks};
  block_sparse_forward<T>(t, transposed, grad, blocks.data(), {}, grad_x);
}

template void block_sparse_transposed(const BlockSparseShape&, const BlockSparseIndex&,
                                      const float*, const float*, float*);
template void block_sparse_transposed(const BlockSparseShape&, const BlockSparseIndex&,
                                      const double*, const double*, double*);

}  // namespace resgrow
