// Weight gradient of block_sparse: for every present entry the correlation of one input channel
// with a vector of output gradients.
#include <ATen/Parallel.h>

#include "cpu/block_sparse_band.h"

namespace resgrow {
namespace {

constexpr int64_t kBandBytes = 256 << 10;    // half of a common second-level cache
constexpr int64_t kPixels = 112;             // whose gradients stay in the first-level cache
constexpr int64_t kParts = 8;                // partial sums: fixed, so that results do not depend
constexpr int64_t kPartialBytes = 64 << 20;  // on the threads; fewer where they would be large

template <class T>
class WeightGrad {
 public:
  WeightGrad(const BlockSparseShape& s, const BlockSparseIndex& index,
             const std::vector<int>& starts)
      : s_(s),
        starts_(starts),
        kernels_(block_sparse_kernels<T>()),
        band_(BlockSparseBand::fitting<T>(s, kBandBytes)),
        offsets_(index.blocks * s.block_in),
        width_(width_index<T>(s)),
        together_(std::max<int64_t>(1, kPixels / s.out_width)),
        size_(index.blocks * s.block_in * s.block_out),
        bands_(s.samples * band_.bands(s)),
        parts_(std::max<int64_t>(
            1, std::min({bands_, kParts, kPartialBytes / (size_ * int64_t(sizeof(T)))}))) {
    band_.find_offsets(s, index, offsets_.data());
  }

  // Adds to `sums`.
  void run(const T* x, const T* grad, T* sums) const {
    Scratch<T> partial((parts_ - 1) * size_);
    std::fill_n(partial.data(), (parts_ - 1) * size_, T(0));
    const int64_t groups = ceil_div(s_.padded_outputs(), kGroup), threads = at::get_num_threads();
    const int64_t shares = std::min(groups, threads == 1 ? 1 : ceil_div(4 * threads, parts_));
    at::parallel_for(0, parts_ * shares, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> input(band_.size()), output(groups * gradient_step());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / shares, share = task % shares;
        T* target = part == 0 ? sums : partial.data() + (part - 1) * size_;
        for (int64_t number = bands_ * part / parts_; number < bands_ * (part + 1) / parts_;
             ++number) {
          const int64_t first_group = groups * share / shares,
                        last_group = groups * (share + 1) / shares;
          band(x, grad, number, first_group, last_group, input.data(), output.data(), target);
        }
      }
    });
    at::parallel_for(0, size_, 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t part = 0; part + 1 < parts_; ++part) {
        const T* source = partial.data() + part * size_;
        for (int64_t i = begin; i < end; ++i) sums[i] += source[i];
      }
    });
  }

 private:
  int64_t gradient_step() const { return band_.rows * s_.out_width * kGroup; }

  void band(const T* x, const T* grad, int64_t number, int64_t first_group, int64_t last_group,
            T* input, T* output, T* sums) const {
    const int64_t sample = number / band_.bands(s_), first = number % band_.bands(s_) * band_.rows;
    const int64_t rows = std::min(band_.rows, s_.out_height - first);
    band_.pack(s_, x + sample * s_.height * s_.width * s_.channels, first, input);
    BlockSparsePack<T> a{};
    const int64_t channel = first_group * kGroup;
    a.source = grad + (sample * s_.out_height + first) * s_.out_width * s_.outputs + channel;
    a.channels = s_.outputs - channel;
    a.groups = last_group - first_group;
    a.source_pixel = s_.outputs;
    a.source_row = s_.out_width * s_.outputs;
    a.height = a.rows = rows;
    a.width = a.cols = s_.out_width;
    a.row_step = a.col_step = a.phases = 1;
    a.target = output;
    a.group_step = gradient_step();
    kernels_.pack(a);
    const int64_t width = int64_t{4} << width_;
    const int64_t last = std::min(last_group * kGroup, s_.padded_outputs());
    for (int64_t row = 0; row < rows; row += together_) {
      for (int64_t o = channel; o < last; o += width) {
        const T* g = output + (o - channel) / kGroup * gradient_step() + o % kGroup;
        entries(input + row * band_.x_row(), g + row * s_.out_width * kGroup,
                std::min(together_, rows - row), o, sums);
      }
    }
  }

  // All entries of the output vector at `o` over `rows` rows of pixels.
  void entries(const T* x, const T* g, int64_t rows, int64_t o, T* sums) const {
    const int64_t row = o / s_.block_out;
    const int64_t last = starts_[row + 1] * s_.block_in;
    BlockSparseCorrelate<T> a{};
    a.x_row = band_.x_row();
    a.g_row = s_.out_width * kGroup;
    a.rows = rows;
    a.out_step = s_.block_out;
    a.cols = s_.out_width;
    a.x = x;
    a.g = g;
    const int64_t first = starts_[row] * s_.block_in;
    if (first == last) return;
    for (const BlockSparseRun& run : even_runs(last - first, kernels_.max_entries[width_])) {
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t entry = first + run.start + i * run.size;
        a.offsets = offsets_.data() + entry;
        a.out = sums + entry * s_.block_out + o % s_.block_out;
        kernels_.correlate[width_][run.size](a);
      }
    }
  }

  const BlockSparseShape& s_;
  const std::vector<int>& starts_;
  const BlockSparseKernels<T>& kernels_;
  const BlockSparseBand band_;
  const Scratch<int> offsets_;
  const int width_;
  const int64_t together_;
  const int64_t size_, bands_, parts_;
};

}  // namespace

template <class T>
void block_sparse_weight_grad(const BlockSparseShape& shape, const BlockSparseIndex& index,
                              const T* x, const T* grad, T* grad_values) {
  std::fill_n(grad_values, index.blocks * shape.block_in * shape.block_out, T(0));
  const std::vector<int> starts = index.row_starts(shape.rows);
  constexpr int64_t bytes = 28 << 10;  // of input rows, within a common first-level cache
  const int64_t row =
      std::clamp<int64_t>(bytes / (shape.channels * int64_t(sizeof(T))), 28, kPixels);
  for_pixel_rows(shape, row, [&](const BlockSparseShape& s, int64_t pixel) {
    WeightGrad<T>(s, index, starts)
        .run(x + pixel * s.channels, grad + pixel * s.outputs, grad_values);
  });
}

template void block_sparse_weight_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                       const float*, const float*, float*);
template void block_sparse_weight_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                       const double*, const double*, double*);

}  // namespace resgrow
