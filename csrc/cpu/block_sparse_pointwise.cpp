// Pointwise input gradient of block_sparse where blocks have too few input channels for vectors of
// them: the vectors hold one channel of neighbouring pixels.
#include <ATen/Parallel.h>

#include "cpu/block_sparse_shape.h"

namespace resgrow {
namespace {

// The entries in the order of `values`: where their sums lie, vectors of lanes, one a channel.
struct Sums {
  int64_t zeros;            // a vector of them, behind all channels
  std::vector<int> starts;  // first entry of each row of blocks
  std::vector<int> to;      // of each entry
  std::vector<int> from;    // the same, or zeros where it is the first of its channel

  Sums(const BlockSparseShape& s, const BlockSparseIndex& index, int64_t lanes)
      : zeros(ceil_div(s.padded_channels(), lanes) * lanes * lanes),
        starts(index.row_starts(s.rows)),
        to(index.blocks * s.block_in),
        from(to.size()) {
    for (int& start : starts) start *= s.block_in;
    find_offsets(s, index, {0}, kGroup, to.data());
    std::vector<char> known(s.padded_channels());
    for (size_t entry = 0; entry < to.size(); ++entry) {
      char& before = known[to[entry]];
      to[entry] *= lanes;
      from[entry] = before ? to[entry] : zeros;
      before = true;
    }
  }
};

}  // namespace

template <class T>
void block_sparse_pointwise_grad(const BlockSparseShape& s, const BlockSparseIndex& index,
                                 const T* grad, const T* values, T* grad_x) {
  const BlockSparseKernels<T>& kernels = block_sparse_kernels<T>();
  const int64_t lanes = kernels.lanes, pixels = s.samples * s.height * s.width;
  const Sums sums(s, index, lanes);
  at::parallel_for(0, ceil_div(pixels, lanes), 1, [&](int64_t begin, int64_t end) {
    // Channels without an entry stay zero.
    Scratch<T> lines(sums.zeros + lanes);
    std::fill_n(lines.data(), sums.zeros + lanes, T(0));
    const int64_t first = begin * lanes;
    BlockSparsePointwise<T> a{};
    a.g = grad + first * s.outputs;
    a.g_pixel = a.outputs = s.outputs;
    a.gx = grad_x + first * s.channels;
    a.gx_pixel = a.channels = s.channels;
    a.pixels = std::min(pixels, end * lanes) - first;
    a.starts = sums.starts.data();
    a.rows = s.rows;
    a.from = sums.from.data();
    a.to = sums.to.data();
    a.w = values;
    a.w_step = s.block_out;
    a.sums = lines.data();
    kernels.pointwise[width_index<T>(s)](a);
  });
}

template void block_sparse_pointwise_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                          const float*, const float*, float*);
template void block_sparse_pointwise_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                          const double*, const double*, double*);

}  // namespace resgrow
