// Forward product of block_sparse: bands of rows, packed once, times rows of blocks.
#include <ATen/Parallel.h>

#include <cstring>

#include "cpu/block_sparse_band.h"

namespace resgrow {
namespace {

constexpr int64_t kBandBytes = 256 << 10;  // half of a common second-level cache
constexpr int64_t kTileBytes = 24 << 10;   // of a common first-level cache
constexpr int64_t kCollectedBytes = 128 << 10;
constexpr int64_t kUncached = 8 << 20;

// Input that is needed next and still to be asked for.
template <class T>
struct Ahead {
  const T* next;
  int64_t left;

  void give(int64_t lines, BlockSparseTiles<T>* a) {
    constexpr int64_t line = 64 / sizeof(T);
    a->ahead = next;
    a->ahead_step = left > 0 ? line : 0;
    const int64_t given = std::min(left, lines * line);
    next += given;
    left -= given;
  }
};

template <class T>
class Forward {
 public:
  Forward(const BlockSparseShape& s, const BlockSparseIndex& index, const std::vector<int>& starts,
          const T* values, const BlockSparseEpilogue<T>& epilogue)
      : s_(s),
        starts_(starts),
        values_(values),
        epilogue_(epilogue),
        kernels_(block_sparse_kernels<T>()),
        band_(BlockSparseBand::fitting<T>(s, kBandBytes)),
        offsets_(index.blocks * s.block_in),
        width_(width_index<T>(s)) {
    band_.find_offsets(s, index, offsets_.data());
    const int64_t most = kernels_.max_pixels[width_];
    cols_ = even_runs(s.out_width, most);
    tile_rows_ = std::min<int64_t>(kernels_.max_rows, most / s.out_width);
    if (tile_rows_ < 1) tile_rows_ = 1;
    const BlockSparseBand tile(s, tile_rows_);
    // Rows whose input stays in the first-level cache while all outputs are computed.
    together_ = band_.rows;
    const int64_t fit =
        kTileBytes / int64_t(sizeof(T)) / (tile.row_size() * tile.groups) - tile.packed_rows;
    if (fit >= 0)
      together_ = std::min(band_.rows, (fit / (tile.row_step * tile_rows_) + 1) * tile_rows_);
  }

  void run(const T* x, T* y) const {
    const int64_t pieces = s_.padded_outputs() >> (2 + width_);
    const int64_t bands = s_.samples * band_.bands(s_);
    // Few bands: the outputs are dealt too, and a band is packed for each share.
    const int64_t threads = at::get_num_threads();
    const int64_t shares =
        bands >= 4 * threads || threads == 1 ? 1 : std::min(pieces, ceil_div(4 * threads, bands));
    const int64_t row_size = s_.out_width * s_.outputs;
    // Vectors of outputs land far apart. An output that no cache holds is written in its own order,
    // from rows collected first.
    const int64_t size = s_.samples * s_.out_height * row_size * sizeof(T);
    const bool collected = shares == 1 && size >= kUncached &&
                           together_ * row_size * int64_t(sizeof(T)) <= kCollectedBytes;
    at::parallel_for(0, bands * shares, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> packed(band_.size()), rows_out(collected ? together_ * row_size : 0);
      int64_t ready = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t number = task / shares, share = task % shares;
        const int64_t sample = number / band_.bands(s_),
                      first = number % band_.bands(s_) * band_.rows;
        if (ready != number) {
          band_.pack(s_, x + sample * s_.height * s_.width * s_.channels, first, packed.data());
          ready = number;
        }
        Ahead<T> ahead = next_band(x, task + 1 < end ? (task + 1) / shares : number, number);
        const int64_t rows = std::min(band_.rows, s_.out_height - first);
        for (int64_t row = 0; row < rows; row += together_) {
          T* target = y + (sample * s_.out_height + first + row) * row_size;
          const int64_t count = std::min(together_, rows - row);
          for (int64_t piece = pieces * share / shares; piece < pieces * (share + 1) / shares;
               ++piece) {
            outputs(packed.data() + row * band_.x_row(), count, piece,
                    collected ? rows_out.data() : target, target - y, &ahead);
          }
          if (collected) std::memcpy(target, rows_out.data(), count * row_size * sizeof(T));
        }
      }
    });
  }

 private:
  // The input of band `number` that the band before it has not read; none where it is the same
  // band.
  Ahead<T> next_band(const T* x, int64_t number, int64_t before) const {
    if (number == before) return {x, 0};
    const int64_t sample = number / band_.bands(s_), first = number % band_.bands(s_) * band_.rows;
    const int64_t row = std::clamp<int64_t>(first * s_.stride[0] - s_.padding[0], 0, s_.height);
    const int64_t rows = std::min(s_.height - row, band_.rows * s_.stride[0]);
    return {x + (sample * s_.height + row) * s_.width * s_.channels, rows * s_.width * s_.channels};
  }

  // One vector of outputs for `rows` rows of pixels, which begin at `place` in the whole output.
  void outputs(const T* x, int64_t rows, int64_t piece, T* y, int64_t place,
               Ahead<T>* ahead) const {
    const int64_t width = int64_t{4} << width_, first = piece * width;
    if (first >= s_.outputs) return;
    const int64_t row = first / s_.block_out, entry = starts_[row] * s_.block_in;
    BlockSparseTiles<T> a{};
    a.x_row = band_.x_row();
    a.offsets = offsets_.data() + entry;
    a.entries = (starts_[row + 1] - starts_[row]) * s_.block_in;
    a.w = values_ + entry * s_.block_out + first % s_.block_out;
    a.w_step = s_.block_out;
    a.out_pixel = s_.outputs;
    a.out_row = s_.out_width * s_.outputs;
    a.outputs = std::min(width, s_.outputs - first);
    const auto at = [&](const T* vector) { return vector ? vector + first : nullptr; };
    a.bias = at(epilogue_.bias);
    a.positive = at(epilogue_.positive);
    a.negative = at(epilogue_.negative);
    const int64_t rest = rows % tile_rows_;
    const BlockSparseRun row_runs[2] = {{0, tile_rows_, rows / tile_rows_},
                                        {rows - rest, rest, rest > 0}};
    for (const BlockSparseRun& r : row_runs) {
      for (const BlockSparseRun& c : cols_) {
        if (r.count == 0) continue;
        a.row_tiles = r.count;
        a.col_tiles = c.count;
        a.x = x + r.start * a.x_row + c.start * kGroup;
        const int64_t start = r.start * a.out_row + c.start * a.out_pixel + first;
        a.out = y + start;
        a.residual = epilogue_.residual ? epilogue_.residual + place + start : nullptr;
        ahead->give(r.count * c.count * a.entries, &a);
        kernels_.tiles[width_][r.size * 32 + c.size](a);
      }
    }
  }

  const BlockSparseShape& s_;
  const std::vector<int>& starts_;
  const T* values_;
  const BlockSparseEpilogue<T> epilogue_;
  const BlockSparseKernels<T>& kernels_;
  const BlockSparseBand band_;
  const Scratch<int> offsets_;
  const int width_;
  std::vector<BlockSparseRun> cols_;
  int64_t tile_rows_, together_;
};

}  // namespace

template <class T>
void block_sparse_forward(const BlockSparseShape& shape, const BlockSparseIndex& index, const T* x,
                          const T* values, const BlockSparseEpilogue<T>& epilogue, T* y) {
  const std::vector<int> starts = index.row_starts(shape.rows);
  // A row of pixels is a tile whose input stays in the first-level cache while all outputs go by.
  const int64_t most = block_sparse_kernels<T>().max_pixels[width_index<T>(shape)];
  const int64_t row = std::clamp<int64_t>(28 * 1024 / (shape.channels * int64_t(sizeof(T))),
                                          std::min<int64_t>(8, most), most);
  for_pixel_rows(shape, row, [&](const BlockSparseShape& s, int64_t pixel) {
    BlockSparseEpilogue<T> rest = epilogue;
    if (rest.residual) rest.residual += pixel * s.outputs;
    Forward<T>(s, index, starts, values, rest).run(x + pixel * s.channels, y + pixel * s.outputs);
  });
}

template void block_sparse_forward(const BlockSparseShape&, const BlockSparseIndex&, const float*,
                                   const float*, const BlockSparseEpilogue<float>&, float*);
template void block_sparse_forward(const BlockSparseShape&, const BlockSparseIndex&, const double*,
                                   const double*, const BlockSparseEpilogue<double>&, double*);

}  // namespace resgrow
