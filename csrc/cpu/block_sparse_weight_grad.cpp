// Weight gradient of block_sparse: for every present entry the correlation of one input channel
// with a vector of output gradients.
#include <ATen/Parallel.h>

#include <utility>

#include "cpu/block_sparse_band.h"

namespace resgrow {
namespace {

constexpr int64_t kBandBytes = 256 << 10;   // a quarter of a common second-level cache
constexpr int64_t kInputBytes = 20 << 10;   // of input rows, within a common first-level cache
constexpr int64_t kPixels = 112;            // whose gradients pass through that cache beside them
constexpr int64_t kParts = 8;               // partial sums: fixed, so that results do not depend
constexpr int64_t kPartialBytes = 2 << 20;  // on the threads; fewer where they would be large

// Pixels of one operand and the distances between them.
template <class T>
struct Pixels {
  const T* data;
  int64_t pixel, row;
};

// What is read next: fetched by the kernels meanwhile, two cache lines per pixel.
template <class T>
struct Ahead {
  const T* next;
  int64_t left;

  const T* take(int64_t pixels) {
    const int64_t count = pixels * 2 * 64 / int64_t(sizeof(T));
    left -= count;
    return std::exchange(next, next + count);
  }
};

template <class T>
class WeightGrad {
 public:
  WeightGrad(const BlockSparseShape& s, const BlockSparseIndex& index,
             const std::vector<int>& starts)
      : s_(s),
        starts_(starts),
        kernels_(block_sparse_kernels<T>()),
        band_(BlockSparseBand::fitting<T>(s, kBandBytes)),
        input_in_place_(s.taps() == 1 && s.padding[0] == 0 && s.padding[1] == 0 &&
                        s.channels == s.padded_channels()),
        gradient_in_place_(s.outputs == s.padded_outputs()),
        offsets_(index.blocks * s.block_in),
        width_(width_index<T>(s)),
        together_(std::max<int64_t>(1, kPixels / s.out_width)),
        size_(index.blocks * s.block_in * s.block_out),
        bands_(s.samples * band_.bands(s)),
        parts_(std::max<int64_t>(
            1, std::min({bands_, kParts, kPartialBytes / (size_ * int64_t(sizeof(T)))}))) {
    if (input_in_place_) {
      find_offsets(s, index, {0}, kGroup, offsets_.data());  // channels side by side
    } else {
      band_.find_offsets(s, index, offsets_.data());
    }
  }

  // Adds to `sums`.
  void run(const T* x, const T* grad, T* sums) const {
    Scratch<T> partial((parts_ - 1) * size_);
    std::fill_n(partial.data(), (parts_ - 1) * size_, T(0));
    const int64_t groups = ceil_div(s_.padded_outputs(), kGroup), threads = at::get_num_threads();
    const int64_t shares = std::min(groups, threads == 1 ? 1 : ceil_div(4 * threads, parts_));
    at::parallel_for(0, parts_ * shares, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> input(input_in_place_ ? 0 : band_.size()),
          gradient(gradient_in_place_ ? 0 : together_ * s_.out_width * kGroup);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / shares, share = task % shares;
        T* target = part == 0 ? sums : partial.data() + (part - 1) * size_;
        for (int64_t number = bands_ * part / parts_; number < bands_ * (part + 1) / parts_;
             ++number) {
          const int64_t first_group = groups * share / shares,
                        last_group = groups * (share + 1) / shares;
          band(x, grad, number, first_group, last_group, input.data(), gradient.data(), target);
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
  int64_t gradient_row() const { return s_.out_width * s_.outputs; }

  // The input of the output rows from `first` on: a copy in `packed` where it has a border.
  Pixels<T> input_of(const T* x, int64_t sample, int64_t first, T* packed) const {
    const T* image = x + sample * s_.height * s_.width * s_.channels;
    if (input_in_place_) {
      const int64_t row = s_.stride[0] * s_.width * s_.channels;
      return {image + first * row, s_.stride[1] * s_.channels, row};
    }
    band_.pack(s_, image, first, packed);
    return {packed, kGroup, band_.x_row()};
  }

  // The gradient of a group of outputs: a copy in `packed` where outputs are missing.
  Pixels<T> gradient_of(const T* grad, int64_t group, int64_t rows, T* packed) const {
    const int64_t channel = group * kGroup;
    if (gradient_in_place_) return {grad + channel, s_.outputs, gradient_row()};
    BlockSparsePack<T> a{};
    a.source = grad + channel;
    a.channels = s_.outputs - channel;
    a.groups = 1;
    a.source_pixel = s_.outputs;
    a.source_row = gradient_row();
    a.height = a.rows = rows;
    a.width = a.cols = s_.out_width;
    a.row_step = a.col_step = a.phases = 1;
    a.target = packed;
    kernels_.pack(a);
    return {packed, kGroup, s_.out_width * kGroup};
  }

  // The input that a band will copy; none behind the last.
  Ahead<T> next_band(const T* x, int64_t number) const {
    if (number == bands_) return {x, 0};
    const int64_t sample = number / band_.bands(s_), first = number % band_.bands(s_) * band_.rows;
    const int64_t row = std::clamp<int64_t>(first * s_.stride[0] - s_.padding[0], 0, s_.height);
    const int64_t rows = std::min(s_.height - row, band_.rows * s_.stride[0]);
    const int64_t size = s_.width * s_.channels;
    return {x + (sample * s_.height + row) * size, rows * size};
  }

  void band(const T* x, const T* grad, int64_t number, int64_t first_group, int64_t last_group,
            T* input, T* gradient, T* sums) const {
    const int64_t sample = number / band_.bands(s_), first = number % band_.bands(s_) * band_.rows;
    const int64_t rows = std::min(band_.rows, s_.out_height - first);
    const Pixels<T> pixels = input_of(x, sample, first, input);
    grad += (sample * s_.out_height + first) * gradient_row();
    Ahead<T> next = next_band(x, number + 1);
    // Rows outside, so that the input of a few stays in the first-level cache.
    for (int64_t row = 0; row < rows; row += together_) {
      const int64_t count = std::min(together_, rows - row), g_size = count * gradient_row();
      const Pixels<T> part = {pixels.data + row * pixels.row, pixels.pixel, pixels.row};
      const T* g = grad + row * gradient_row();
      if (input_in_place_) next = {part.data + count * part.row, count * part.row};
      Ahead<T> gradients = {g + g_size, g_size};
      for (int64_t group = first_group; group < last_group; ++group) {
        outputs(part, gradient_of(g, group, count, gradient), count, group, &gradients, &next,
                sums);
      }
    }
  }

  // All entries of a group of outputs over `rows` rows of pixels.
  void outputs(const Pixels<T>& x, const Pixels<T>& g, int64_t rows, int64_t group,
               Ahead<T>* gradients, Ahead<T>* input, T* sums) const {
    BlockSparseCorrelate<T> a{};
    a.x = x.data;
    a.x_pixel = x.pixel;
    a.x_row = x.row;
    a.g_pixel = g.pixel;
    a.g_row = g.row;
    a.rows = rows;
    a.cols = s_.out_width;
    a.out_step = s_.block_out;
    const int64_t width = int64_t{4} << width_, begin = group * kGroup;
    for (int64_t o = begin; o < std::min(begin + kGroup, s_.padded_outputs()); o += width) {
      a.g = g.data + o - begin;
      const int64_t row = o / s_.block_out, last = starts_[row + 1] * s_.block_in;
      // As few tiles as it takes, as even as they can be.
      for (int64_t entry = starts_[row] * s_.block_in; entry < last;) {
        const int64_t left = last - entry,
                      size = ceil_div(left, ceil_div(left, kernels_.max_entries[width_]));
        a.offsets = offsets_.data() + entry;
        a.out = sums + entry * s_.block_out + o % s_.block_out;
        Ahead<T>* next = gradients->left > 0 ? gradients : input;
        a.ahead = next->left > 0 ? next->take(rows * s_.out_width) : a.x;
        kernels_.correlate[width_][size](a);
        entry += size;
      }
    }
  }

  const BlockSparseShape& s_;
  const std::vector<int>& starts_;
  const BlockSparseKernels<T>& kernels_;
  const BlockSparseBand band_;
  const bool input_in_place_, gradient_in_place_;
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
  const int64_t row =
      std::clamp<int64_t>(kInputBytes / (shape.channels * int64_t(sizeof(T))), 28, kPixels);
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
