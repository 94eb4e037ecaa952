// Input gradient of block_sparse. Vectors hold one channel at one position of several images, or of
// several tiles of an image where there are few.
#include <ATen/Parallel.h>

#include <array>

#include "cpu/block_sparse_axis.h"

namespace resgrow {
namespace {

constexpr int64_t kWindowBytes = 512 << 10;  // of gathered rows: half a second-level cache
constexpr int64_t kTogether = 8;  // positions whose sums, and what they read, the first level holds

// The entries in the order in which the kernel walks them, lists of one row of blocks and one tap.
template <class T>
struct Lists {
  std::vector<int> first, last, row, tap;  // of each list
  std::vector<int> channels;               // of each entry
  Scratch<T> w;

  Lists(const BlockSparseShape& s, const BlockSparseIndex& index, const T* values)
      : channels(index.blocks * s.block_in), w(index.blocks * s.block_in * s.block_out) {
    const int64_t size = s.block_in * s.block_out;
    for (int64_t j = 0; j < index.blocks; ++j) {
      const int64_t k = index.by_tap[j];
      if (j == 0 || index.row[k] != row.back() || index.tap[k] != tap.back()) {
        row.push_back(index.row[k]);
        tap.push_back(index.tap[k]);
        first.push_back(j * s.block_in);
        last.push_back(j * s.block_in);
      }
      last.back() += s.block_in;
      std::copy_n(values + k * size, size, w.data() + j * size);
      int64_t channel = s.first_channel(index.row[k], index.col[k]);
      for (int64_t i = 0; i < s.block_in; ++i) channels[j * s.block_in + i] = channel++;
    }
  }
};

// The lists of entries that a position reads, and where in a region of gathered gradients.
struct Reads {
  std::vector<int> offsets, first, last;
};

template <class T>
class InputGrad {
 public:
  InputGrad(const BlockSparseShape& s, const Lists<T>& lists)
      : s_(s),
        lists_(lists),
        kernels_(block_sparse_kernels<T>()),
        lanes_(kernels_.lanes),
        channels_(ceil_div(s.padded_channels(), lanes_) * lanes_),
        outputs_(ceil_div(s.padded_outputs(), lanes_) * lanes_),
        width_(width_index<T>(s)) {
    choose_tiles();
    choose_region();
    together_ = std::min(region_[1], kTogether * s.stride[1]);
    pitch_ = outputs_of(cols_, region_[1]);
    row_classes_ = BlockSparseClasses(rows_);
    col_classes_ = BlockSparseClasses(cols_);
    for (const int64_t row : row_classes_.positions) {
      for (const int64_t col : col_classes_.positions) reads_.push_back(reads_of(row, col));
    }
  }

  void run(const T* grad, T* grad_x) const {
    const int64_t down = ceil_div(rows_.tile, region_[0]),
                  across = ceil_div(cols_.tile, region_[1]);
    at::parallel_for(0, vectors() * down * across, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> g(window_ * g_row_size()), gx(together_ * channels_ * lanes_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task / across % down * region_[0], col = task % across * region_[1];
        region(grad, grad_x, task / (down * across), row, std::min(rows_.tile, row + region_[0]),
               col, std::min(cols_.tile, col + region_[1]), g.data(), gx.data());
      }
    });
  }

 private:
  BlockSparseAxis axis(int d, int64_t tile) const {
    const int64_t size = d == 0 ? s_.height : s_.width;
    return {
        size,         tile,          ceil_div(size, tile), s_.kernel[d],
        s_.stride[d], s_.padding[d], s_.dilation[d],       d == 0 ? s_.out_height : s_.out_width};
  }
  static int64_t outputs_of(const BlockSparseAxis& a, int64_t positions) {
    return ceil_div(positions + (a.kernel - 1) * a.dilation, a.stride) + 1;
  }

  int64_t vectors() const { return ceil_div(s_.samples * rows_.tiles * cols_.tiles, lanes_); }
  int64_t g_row_size() const { return pitch_ * outputs_ * lanes_; }

  // Whole images where they fill the lanes; else the tiles that leave least work idle.
  void choose_tiles() {
    double best = 0;
    for (int64_t down = 1; down <= std::min<int64_t>(lanes_, s_.height); ++down) {
      for (int64_t across = 1; across <= std::min<int64_t>(lanes_, s_.width); ++across) {
        const auto tile = [&](int d, int64_t size, int64_t parts) {
          return axis(d,
                      std::min(size, ceil_div(ceil_div(size, parts), s_.stride[d]) * s_.stride[d]));
        };
        const BlockSparseAxis rows = tile(0, s_.height, down), cols = tile(1, s_.width, across);
        const double vectors = ceil_div(s_.samples * rows.tiles * cols.tiles, lanes_);
        // Gathering an output costs about as much as an eighth of a position's products.
        const double cost = vectors * (rows.tile * cols.tile + .125 * outputs_of(rows, rows.tile) *
                                                                   outputs_of(cols, cols.tile));
        if (best == 0 || cost < best) {
          best = cost;
          rows_ = rows;
          cols_ = cols;
        }
      }
    }
  }

  // Strips of columns, through which a window of gathered rows slides; and as many parts of the
  // rows as it takes to occupy the threads.
  void choose_region() {
    const int64_t position = outputs_ * lanes_ * int64_t(sizeof(T));
    const int64_t least = outputs_of(rows_, rows_.stride) + 1, kept = least - 2;
    double best = 0;
    for (const int64_t part : even_parts(cols_.tile)) {
      const int64_t wide = ceil_div(part, cols_.stride) * cols_.stride;
      const int64_t row = outputs_of(cols_, wide), across = ceil_div(cols_.tile, wide);
      const int64_t rows = std::clamp(kWindowBytes / (row * position), least,
                                      std::max(least, outputs_of(rows_, rows_.tile)));
      // Sliding copies the rows that are kept, a third of the work of gathering them. Beyond the
      // second-level cache reading takes longer.
      const double cost = double(row) * across * (1 + double(kept) / (3 * (rows - kept))) *
                          (rows * row * position > kWindowBytes ? 1.5 : 1);
      if (best == 0 || cost < best) {
        best = cost;
        region_[1] = wide;
        window_ = rows;
      }
    }
    const int64_t strips = vectors() * ceil_div(cols_.tile, region_[1]);
    const int64_t high = ceil_div(rows_.tile, ceil_div(at::get_num_threads(), strips));
    region_[0] = ceil_div(high, rows_.stride) * rows_.stride;
  }

  template <class V>
  using OfLanes = std::array<V, 64 / sizeof(T)>;  // as many as the widest vectors have

  // The tiles of one vector of lanes: of which images (null: none), and where they lie in them.
  struct Tiles {
    OfLanes<T*> sources{}, targets{};
    OfLanes<int> tops{}, lefts{}, bottoms{}, rights{};
  };

  Tiles tiles_of(const T* grad, T* grad_x, int64_t vector) const {
    Tiles t;
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t tile = vector * lanes_ + l, sample = tile / (rows_.tiles * cols_.tiles);
      if (sample >= s_.samples) continue;
      t.sources[l] = const_cast<T*>(grad) + sample * s_.out_height * s_.out_width * s_.outputs;
      t.targets[l] = grad_x + sample * s_.height * s_.width * s_.channels;
      t.tops[l] = tile / cols_.tiles % rows_.tiles * rows_.tile;
      t.lefts[l] = tile % cols_.tiles * cols_.tile;
      t.bottoms[l] = std::min(s_.height, t.tops[l] + rows_.tile);
      t.rights[l] = std::min(s_.width, t.lefts[l] + cols_.tile);
    }
    return t;
  }

  void region(const T* grad, T* grad_x, int64_t vector, int64_t row0, int64_t row1, int64_t col0,
              int64_t col1, T* g, T* gx) const {
    const Tiles tiles = tiles_of(grad, grad_x, vector);
    const int64_t g_col = cols_.first_output(col0),
                  g_cols = cols_.last_output(col1 - 1) - g_col + 1;
    int64_t first = rows_.first_output(row0), next = first;  // rows in the window
    for (int64_t row = row0; row < row1; ++row) {
      if (rows_.last_output(row) >= first + window_) {
        const int64_t keep = rows_.first_output(row);
        std::copy(g + (keep - first) * g_row_size(), g + (next - first) * g_row_size(), g);
        first = keep;
      }
      for (; next <= rows_.last_output(row); ++next)
        gather(tiles, next, g_col, g_cols, g + (next - first) * g_row_size());
      // Where the output lies that a position would read at distance 0.
      const T* start = g + (row / rows_.stride - first) * g_row_size() +
                       (col0 / cols_.stride - g_col) * outputs_ * lanes_;
      for (int64_t col = col0; col < col1; col += together_) {
        const int64_t end = std::min(col1, col + together_);
        std::fill_n(gx, (end - col) * channels_ * lanes_, T(0));
        positions(start + (col - col0) / cols_.stride * outputs_ * lanes_, row, col, end, gx);
        // What is written next: further on in this row, or where the next one begins.
        const int64_t pixels = end < col1 ? end - col : s_.width - (col - col0);
        scatter(tiles, row, col, end, pixels * s_.channels, gx);
      }
    }
  }

  // A row of output gradients; the next one is fetched meanwhile, to come while positions are
  // computed.
  void gather(const Tiles& tiles, int64_t row, int64_t col, int64_t cols, T* g) const {
    OfLanes<int> tops, lefts, ends, sides;
    for (int64_t l = 0; l < lanes_; ++l) {
      tops[l] = tiles.tops[l] / s_.stride[0] + row;
      lefts[l] = tiles.lefts[l] / s_.stride[1] + col;
      ends[l] = s_.out_height;
      sides[l] = s_.out_width;
    }
    const int64_t image_row = s_.out_width * s_.outputs;
    kernels_.gather({tiles.sources.data(), tops.data(), lefts.data(), ends.data(), sides.data(),
                     image_row, s_.outputs, s_.outputs, 1, cols, g, outputs_ * lanes_, 0, outputs_,
                     image_row});
  }

  void scatter(const Tiles& tiles, int64_t row, int64_t col0, int64_t col1, int64_t ahead,
               T* gx) const {
    OfLanes<int> tops, lefts;
    for (int64_t l = 0; l < lanes_; ++l) {
      tops[l] = tiles.tops[l] + row;
      lefts[l] = tiles.lefts[l] + col0;
    }
    kernels_.scatter({tiles.targets.data(), tops.data(), lefts.data(), tiles.bottoms.data(),
                      tiles.rights.data(), s_.width * s_.channels, s_.channels, s_.channels, 1,
                      col1 - col0, gx, channels_ * lanes_, 0, channels_, ahead});
  }

  // One row of positions: runs of those that read the same taps.
  void positions(const T* g, int64_t row, int64_t col0, int64_t col1, T* gx) const {
    const int64_t step = cols_.stride, width = int64_t{4} << width_;
    for (int64_t phase = col0; phase < std::min(col1, col0 + step); ++phase) {
      for (int64_t col = phase, count = 1; col < col1; col += count * step, count = 1) {
        while (col + count * step < col1 &&
               col_classes_.of[col + count * step] == col_classes_.of[col])
          ++count;
        const Reads& reads =
            reads_[row_classes_.of[row] * col_classes_.positions.size() + col_classes_.of[col]];
        const T* start = g + (col - col0) / step * outputs_ * lanes_;
        for (int64_t piece = 0; piece < s_.block_out; piece += width) {
          kernels_.spread[width_](
              {start + piece * lanes_, outputs_ * lanes_, reads.offsets.data(), reads.first.data(),
               reads.last.data(), int64_t(reads.first.size()), lists_.channels.data(),
               lists_.w.data() + piece, s_.block_out, gx + (col - col0) * channels_ * lanes_,
               step * channels_ * lanes_, count});
        }
      }
    }
  }

  // The lists that positions of a class read, and where in a region of gathered gradients.
  Reads reads_of(int64_t row, int64_t col) const {
    Reads result;
    for (size_t l = 0; l < lists_.first.size(); ++l) {
      int64_t y, x;
      if (!rows_.reads(row, lists_.tap[l] / s_.kernel[1], &y)) continue;
      if (!cols_.reads(col, lists_.tap[l] % s_.kernel[1], &x)) continue;
      const int64_t down = y - row / rows_.stride, across = x - col / cols_.stride;
      result.offsets.push_back(
          ((down * pitch_ + across) * outputs_ + lists_.row[l] * s_.block_out) * lanes_);
      result.first.push_back(lists_.first[l]);
      result.last.push_back(lists_.last[l]);
    }
    return result;
  }

  const BlockSparseShape& s_;
  const Lists<T>& lists_;
  const BlockSparseKernels<T>& kernels_;
  const int64_t lanes_, channels_, outputs_;
  const int width_;
  BlockSparseAxis rows_, cols_;
  std::array<int64_t, 2> region_;
  int64_t window_;    // gathered rows
  int64_t together_;  // positions
  int64_t pitch_;     // gathered outputs in a row of a region
  BlockSparseClasses row_classes_, col_classes_;
  std::vector<Reads> reads_;  // of each pair of classes
};

}  // namespace

template <class T>
void block_sparse_input_grad(const BlockSparseShape& shape, const BlockSparseIndex& index,
                             const T* grad, const T* values, T* grad_x) {
  if (shape.pointwise()) return block_sparse_pointwise_grad<T>(shape, index, grad, values, grad_x);
  const Lists<T> lists(shape, index, values);
  InputGrad<T>(shape, lists).run(grad, grad_x);
}

template void block_sparse_input_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                      const float*, const float*, float*);
template void block_sparse_input_grad(const BlockSparseShape&, const BlockSparseIndex&,
                                      const double*, const double*, double*);

}  // namespace resgrow
