// Forward product of block_sparse: tiles of pixels times rows of blocks. A kernel of one tap reads
// the image itself; others read bands of rows, packed once.
#include <ATen/Parallel.h>

#include <numeric>

#include "cpu/block_sparse_band.h"

namespace resgrow {
namespace {

constexpr int64_t kBandBytes = 256 << 10;  // half of a common second-level cache
constexpr int64_t kTileBytes = 24 << 10;   // of a common first-level cache
constexpr int64_t kLine = 64, kSets = 64;  // bytes of a line and sets of that cache
constexpr int64_t kWays = 8;               // lines of a set
constexpr int64_t kThreadWork = 1 << 18;   // products that pay for a thread

// Pixels of a tile. Each of few products is long over before its stores are: the smaller tile
// overlaps with the next. Where there are many, weights from far caches are shared by more pixels.
constexpr int64_t kShortTile = 16, kLongTile = 28;
constexpr int64_t kLongEntries = 96;

template <class T>
class Forward {
 public:
  Forward(const BlockSparseShape& s, const BlockSparseIndex& index, const T* values,
          const BlockSparseEpilogue<T>& epilogue)
      : s_(s),
        epilogue_(epilogue),
        kernels_(block_sparse_kernels<T>()),
        width_(width_index<T>(s)),
        most_(most_pixels(s, index)),
        direct_(reads_image(s)),
        band_(BlockSparseBand::fitting<T>(s, kBandBytes)),
        offsets_(index.blocks * s.block_in) {
    if (!direct_) {
      band_.find_offsets(s, index, offsets_.data());
    } else if (s.groups > 1 || s.block_in > 1) {
      find_offsets(s, index, {0}, kGroup, offsets_.data());
    }
    const bool columns = direct_ && s.groups == 1 && s.block_in == 1;
    find_pieces(index, columns ? index.col : offsets_.data(), values);
    cols_ = even_runs(s.out_width, most_);
    tile_rows_ = std::clamp<int64_t>(most_ / s.out_width, 1, kernels_.max_rows);
    together_ = rows_together();
  }

  // Pixels of one tile at most.
  static int64_t most_pixels(const BlockSparseShape& s, const BlockSparseIndex& index) {
    const bool many = index.blocks * s.block_in >= s.rows * kLongEntries;
    const int64_t most = block_sparse_kernels<T>().max_pixels[width_index<T>(s)];
    return std::min({most, many ? kLongTile : kShortTile, reads_image(s) ? ways(s) : kLongTile});
  }

  void run(const T* x, T* y) const {
    const int64_t pieces = pieces_.size(), bands = s_.samples * band_.bands(s_);
    // Few bands: the outputs are dealt too, and a band is packed for each share.
    const int64_t threads = at::get_num_threads();
    const int64_t shares =
        bands >= 4 * threads || threads == 1 ? 1 : std::min(pieces, ceil_div(4 * threads, bands));
    at::parallel_for(0, bands * shares, grain(bands * shares), [&](int64_t begin, int64_t end) {
      Scratch<T> packed(direct_ ? 0 : band_.size());
      int64_t ready = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t number = task / shares, share = task % shares;
        const int64_t sample = number / band_.bands(s_),
                      first = number % band_.bands(s_) * band_.rows;
        const T* image = x + sample * s_.height * s_.width * s_.channels;
        if (!direct_ && ready != number) band_.pack(s_, image, first, packed.data());
        ready = number;
        Band band{};
        band.rows = std::min(band_.rows, s_.out_height - first);
        band.x = direct_ ? image + first * x_row() : packed.data();
        band.place = (sample * s_.out_height + first) * s_.out_width * s_.outputs;
        band.first_piece = pieces * share / shares;
        band.last_piece = pieces * (share + 1) / shares;
        find_ahead(x, number, task + 1 < end ? (task + 1) / shares : number, &band);
        run_band(band, y);
      }
    });
  }

 private:
  struct Band {
    const T* x;
    int64_t rows, place;  // place: in the output
    int64_t first_piece, last_piece;
    const T *ahead, *ahead_end;  // input that is needed next
  };

  // Lines between neighbouring pixels of an image.
  static int64_t lines(const BlockSparseShape& s) {
    return s.stride[1] * s.channels * int64_t(sizeof(T)) / kLine;
  }
  // Neighbouring pixels of one channel must fall into many sets of a first-level cache.
  static bool reads_image(const BlockSparseShape& s) {
    return s.taps() == 1 && s.padding[0] == 0 && s.padding[1] == 0 &&
           s.padded_channels() == s.channels && (s.out_width == 1 || lines(s) % kSets != 0);
  }
  // So many of them that those sets hold them all.
  static int64_t ways(const BlockSparseShape& s) {
    return kWays * kSets / std::gcd(std::max<int64_t>(lines(s), 1), kSets);
  }
  int64_t x_pixel() const { return direct_ ? s_.stride[1] * s_.channels : kGroup; }
  int64_t x_row() const { return direct_ ? s_.stride[0] * s_.width * s_.channels : band_.x_row(); }

  void find_pieces(const BlockSparseIndex& index, const int* offsets, const T* values) {
    const std::vector<int> starts = index.row_starts(s_.rows);
    for (int64_t first = 0; first < s_.outputs; first += int64_t{4} << width_) {
      const int64_t row = first / s_.block_out, entry = starts[row] * s_.block_in;
      pieces_.push_back({offsets + entry, values + entry * s_.block_out + first % s_.block_out,
                         (starts[row + 1] - starts[row]) * s_.block_in, first});
    }
  }

  // Rows whose input stays in the first-level cache while all outputs are computed.
  int64_t rows_together() const {
    int64_t row_bytes = s_.out_width * s_.channels * sizeof(T), apart = 0;
    if (!direct_) {
      const BlockSparseBand tile(s_, tile_rows_);
      row_bytes = tile.row_size() * tile.groups * tile.row_step * sizeof(T);
      apart = tile.packed_rows - tile.row_step * tile_rows_;
    }
    const int64_t fit = kTileBytes / row_bytes - apart;
    // Input of no tile fits: weights at least are shared by many.
    if (fit < tile_rows_) return band_.rows;
    return std::min(fit / tile_rows_ * tile_rows_, band_.rows);
  }

  int64_t grain(int64_t tasks) const {
    int64_t entries = 0;
    for (const auto& piece : pieces_) entries += piece.entries;
    const int64_t work = s_.samples * s_.out_height * s_.out_width * entries * 16;
    return std::max<int64_t>(1, tasks * kThreadWork / std::max<int64_t>(work, 1));
  }

  // The input of band `next` that band `number` has not read; none where they are the same.
  void find_ahead(const T* x, int64_t number, int64_t next, Band* band) const {
    if (number == next) return;
    const int64_t sample = next / band_.bands(s_), first = next % band_.bands(s_) * band_.rows;
    const int64_t row = std::clamp<int64_t>(first * s_.stride[0] - s_.padding[0], 0, s_.height);
    const int64_t rows = std::min(s_.height - row, band_.rows * s_.stride[0]);
    band->ahead = x + (sample * s_.height + row) * s_.width * s_.channels;
    band->ahead_end = band->ahead + rows * s_.width * s_.channels;
  }

  void run_band(const Band& band, T* y) const {
    BlockSparseTiles<T> a{};
    a.x_pixel = x_pixel();
    a.x_row = x_row();
    a.pieces = pieces_.data();
    a.first_piece = band.first_piece;
    a.last_piece = band.last_piece;
    a.w_step = s_.block_out;
    a.out_pixel = s_.outputs;
    a.out_row = s_.out_width * s_.outputs;
    a.outputs = s_.outputs;
    a.bias = epilogue_.bias;
    a.positive = epilogue_.positive;
    a.negative = epilogue_.negative;
    a.ahead = band.ahead;
    a.ahead_end = band.ahead_end;
    for (int64_t row = 0; row < band.rows; row += together_) {
      const int64_t rows = std::min(together_, band.rows - row), rest = rows % tile_rows_;
      run_tiles(band, y, row, tile_rows_, rows / tile_rows_, &a);
      if (rest > 0) run_tiles(band, y, row + rows - rest, rest, 1, &a);
    }
  }

  // `count` rows of tiles, each `size` rows of pixels high.
  void run_tiles(const Band& band, T* y, int64_t row, int64_t size, int64_t count,
                 BlockSparseTiles<T>* a) const {
    for (const BlockSparseRun& c : cols_) {
      const int64_t place = band.place + row * a->out_row + c.start * a->out_pixel;
      a->x = band.x + row * a->x_row + c.start * a->x_pixel;
      a->out = y + place;
      a->residual = epilogue_.residual ? epilogue_.residual + place : nullptr;
      a->row_tiles = count;
      a->col_tiles = c.count;
      a->ahead = kernels_.tiles[width_][size * 32 + c.size](*a);
    }
  }

  const BlockSparseShape& s_;
  const BlockSparseEpilogue<T> epilogue_;
  const BlockSparseKernels<T>& kernels_;
  const int width_;
  const int64_t most_;
  const bool direct_;
  const BlockSparseBand band_;
  const Scratch<int> offsets_;
  std::vector<BlockSparsePiece<T>> pieces_;
  std::vector<BlockSparseRun> cols_;
  int64_t tile_rows_, together_;
};

}  // namespace

template <class T>
void block_sparse_forward(const BlockSparseShape& shape, const BlockSparseIndex& index, const T* x,
                          const T* values, const BlockSparseEpilogue<T>& epilogue, T* y) {
  if (!shape.pointwise()) return Forward<T>(shape, index, values, epilogue).run(x, y);
  // Nothing but pixels: rows of them, a row being what stays in the first-level cache while all
  // outputs go by.
  const int64_t pixels = shape.samples * shape.out_height * shape.out_width;
  const int64_t most = Forward<T>::most_pixels(shape, index);
  const int64_t fit = kTileBytes / (shape.channels * int64_t(sizeof(T)));
  const int64_t row = std::clamp<int64_t>(fit, std::min<int64_t>(8, most), 4 * most);
  for (const BlockSparseRun& run : even_runs(pixels, row)) {
    BlockSparseEpilogue<T> rest = epilogue;
    if (rest.residual) rest.residual += run.start * shape.outputs;
    Forward<T>(shape.as_pixels(1, run.count, run.size), index, values, rest)
        .run(x + run.start * shape.channels, y + run.start * shape.outputs);
  }
}

template void block_sparse_forward(const BlockSparseShape&, const BlockSparseIndex&, const float*,
                                   const float*, const BlockSparseEpilogue<float>&, float*);
template void block_sparse_forward(const BlockSparseShape&, const BlockSparseIndex&, const double*,
                                   const double*, const BlockSparseEpilogue<double>&, double*);

}  // namespace resgrow
