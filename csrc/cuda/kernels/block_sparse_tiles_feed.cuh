// How the kernel of block_sparse_tiles finds its pixels and brings rounds to shared memory.
#pragma once

#include "cuda/kernels/block_sparse_tiles.cuh"

namespace resgrow {

constexpr int kTilesThreads = 256;  // at most
constexpr int kTilesWarpPixels = 32;

// A row of a patch that is read: (source pixel, or -1 where it is outside, row; the same with the
// plane's origin still to be added, source row << 16 | column).
using TilesPlace = int4;

// In shared memory, one after the other.
struct TilesMemory {
  Byte *pieces, *patches;  // kTilesStages of each
  TilesPlace* places;
  int* visits;  // kTilesStages of kTilesVisits
};
inline size_t tiles_memory_bytes(Int patch_rows, Int log_units, Int piece_bytes) {
  return kTilesStages * (static_cast<size_t>(piece_bytes) + kTilesVisits * sizeof(int) +
                         (static_cast<size_t>(patch_rows) << (4 + log_units))) +
         static_cast<size_t>(patch_rows) * sizeof(TilesPlace);
}
RESGROW_DEVICE TilesMemory tiles_memory(const TilesArgs& a) {
  TilesMemory m;
  m.pieces = shared_memory<Byte>();
  m.patches = m.pieces + kTilesStages * a.piece_bytes;
  Byte* rest = m.patches + (kTilesStages * a.patch_rows << (4 + a.log_units));
  m.places = reinterpret_cast<TilesPlace*>(rest);
  m.visits = reinterpret_cast<int*>(m.places + a.patch_rows);
  return m;
}

// The tile's pixels: neighbours in the order (image and strip, row, column of the strip).
struct TilesPixels {
  TilesLine y, x;
  int first, total;  // of the tile; of the class

  struct Place {
    int image, row, column;  // image: and strip
  };
  RESGROW_DEVICE Place place(const TilesArgs& a, int pixel) const {
    const int line = pixel / a.strip, image = line / y.count;
    return {image, line - image * y.count, pixel - line * a.strip};
  }
  // The target pixel, or -1.
  RESGROW_DEVICE Int target(const TilesArgs& a, int pixel, int height, int width) const {
    if (pixel >= total) return -1;
    const Place p = place(a, pixel);
    const int sample = p.image / a.strips;
    const int column = (p.image - sample * a.strips) * a.strip + p.column;
    if (column >= x.count) return -1;
    const int row = y.target0 + p.row * y.target_step;
    return (static_cast<Int>(sample) * height + row) * width + x.target0 + column * x.target_step;
  }
};

RESGROW_DEVICE int pixels_of_block(const TilesArgs& a) {
  return static_cast<int>(blockDim.x) / a.columns;
}

template <bool forward>
RESGROW_DEVICE TilesPixels tiles_pixels(const TilesArgs& a) {
  const int residue = static_cast<int>(blockIdx.y);
  TilesPixels p;
  p.y = tiles_line<forward>(a.axis[0], residue / a.axis[1].stride);
  p.x = tiles_line<forward>(a.axis[1], residue % a.axis[1].stride);
  const int tile = static_cast<int>(blockIdx.x) / (a.target_tiles * a.groups);
  p.first = tile * pixels_of_block(a);
  p.total = p.x.count > 0 ? a.samples * a.strips * p.y.count * a.strip : 0;
  return p;
}

// Lines of a patch: those of the tile's rows; `reach` more at the end of each image.
RESGROW_DEVICE int patch_line(const TilesPixels& p, const TilesPixels::Place& first,
                              const TilesPixels::Place& own) {
  const int images = own.image - first.image;
  return images * (p.y.count + p.y.reach) + own.row - first.row;
}

// Finds the places of the rows that are read; returns how many there are.
template <bool forward>
RESGROW_DEVICE int find_places(const TilesArgs& a, const TilesPixels& p, TilesPlace* places) {
  const int height = forward ? a.axis[0].input : a.axis[0].output;
  const int width = forward ? a.axis[1].input : a.axis[1].output;
  const int threads = static_cast<int>(blockDim.x), pixels = pixels_of_block(a);
  const auto first = p.place(a, p.first);
  const int last_pixel = min(p.first + pixels, p.total) - 1;
  const int lines = patch_line(p, first, p.place(a, last_pixel)) + p.y.reach + 1;
  const int columns = a.strip + p.x.reach, rows = a.whole ? lines * columns : pixels;
  for (int i = static_cast<int>(threadIdx.x); i < rows; i += threads) {
    TilesPixels::Place own;
    int row = i;
    bool inside = true;
    if (a.whole) {
      const int line = i / columns, step = p.y.count + p.y.reach, below = line + first.row;
      own = {first.image + below / step, below % step, i - line * columns};
      row = line * a.pitch + own.column;
      inside = own.image < a.samples * a.strips;
    } else {
      own = p.place(a, p.first + i);
      inside = p.first + i < p.total;
    }
    const int sample = own.image / a.strips, strip = own.image - sample * a.strips;
    const int y = p.y.source0 + own.row * p.y.source_step;
    const int x = p.x.source0 + (strip * a.strip + own.column) * p.x.source_step;
    const int pixel = (sample * height + y) * width + x;
    const bool read = inside && static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
                      static_cast<unsigned>(x) < static_cast<unsigned>(width);
    // An origin only adds: rows that far above all images stay outside.
    places[i] =
        make_int4(read ? pixel : -1, row, pixel, (inside ? y : -32768) * 65536 + (x & 0xffff));
  }
  return rows;
}

// Copies rounds to shared memory, ahead of the products.
template <class Mma, bool forward>
struct TilesFeed {
  using T = typename Mma::Value;
  const TilesArgs& a;
  const TilesMemory& memory;
  const TilesRound* rounds;
  const int *visits, *pieces;
  int patch_rows, first_channel, round, end, patch;
  int4 next, after;  // descriptions of rounds `round` and the one behind
  int piece;         // of round `round`, lane by lane

  RESGROW_DEVICE TilesFeed(const TilesArgs& a, const TilesMemory& memory, int list, int rows,
                           int group, int first, int last)
      : a(a),
        memory(memory),
        patch_rows(rows),
        first_channel(group * a.source_group),
        round(first),
        end(last),
        patch(-1) {
    const Int base = static_cast<Int>(list) * a.lists.most;
    rounds = a.lists.rounds + base;
    visits = a.lists.visits + base;
    pieces = a.lists.pieces + base * a.columns * kWarpTargets;
    if (round < end) {
      next = load<int4>(rounds + round);
      TilesCounts counts = unpacked(static_cast<unsigned>(next.z));
      counts.opens = true;  // the part of the sum may begin within a step
      next.z = static_cast<int>(packed(counts));
      find_piece();
    }
    if (round + 1 < end) after = load<int4>(rounds + round + 1);
  }

  RESGROW_DEVICE void find_piece() {
    if (lane_id() < unpacked(static_cast<unsigned>(next.z)).pieces)
      piece = pieces[next.y + lane_id()];
  }

  // Begins to copy the next round to `stage`; returns its counts.
  RESGROW_DEVICE unsigned copy(int stage) {
    unsigned all = 0;
    if (round < end) {
      all = static_cast<unsigned>(next.z);
      const TilesCounts counts = unpacked(all);
      copy_visits(stage, counts.visits);
      copy_pieces(stage, counts.pieces);
      if (counts.opens) copy_patch(counts.chunk);
      ++round;
      next = after;
      if (round < end) find_piece();
      if (round + 1 < end) after = load<int4>(rounds + round + 1);
    }
    copy_async_commit();
    return all;
  }

  RESGROW_DEVICE void copy_visits(int stage, int count) {
    const int i = static_cast<int>(threadIdx.x);
    int* to = memory.visits + stage * kTilesVisits + i;
    if (i < count) {
      copy_async<4>(to, visits + next.x + i);
    } else if (i < count + kTilesIdleVisits) {
      *to = 0;
    }
  }

  RESGROW_DEVICE void copy_pieces(int stage, int count) {
    Byte* to = memory.pieces + stage * a.piece_bytes;
    for (int i = warp_id(); i < count; i += static_cast<int>(blockDim.x) / 32) {
      const Int at = __shfl_sync(0xffffffffu, piece, i);
      copy_piece<Mma>(to + i * Mma::kPieceBytes, static_cast<const T*>(a.values) + at * 16,
                      a.block_out);
    }
  }

  RESGROW_DEVICE void copy_patch(int chunk) {
    patch = patch == kTilesStages - 1 ? 0 : patch + 1;
    if (next.w == 0) {
      copy_patch_from(chunk, [](const TilesPlace* place) { return load<int2>(place); });
      return;
    }
    const int height = forward ? a.axis[0].input : a.axis[0].output;
    const int width = forward ? a.axis[1].input : a.axis[1].output;
    const int origin_y = next.w >> 16, origin_x = next.w & 0xffff;
    copy_patch_from(chunk, [&](const TilesPlace* place) {
      const int4 own = load<int4>(place);
      const int y = (own.w >> 16) + origin_y, x = static_cast<short>(own.w) + origin_x;
      const bool read = static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(width);
      return make_int2(read ? own.z + origin_y * width + origin_x : -1, own.y);
    });
  }

  // A thread copies the same unit of every few rows. `at`: (pixel or -1, row) of a place.
  template <class At>
  RESGROW_DEVICE void copy_patch_from(int chunk, const At& at) {
    constexpr int per_unit = 16 / static_cast<int>(sizeof(T));
    const int units = 1 << a.log_units, thread = static_cast<int>(threadIdx.x);
    const int unit = thread & (units - 1);
    const int channel = first_channel + (chunk * units + unit) * per_unit;
    const bool exists = channel < a.source_channels;
    const T* from = static_cast<const T*>(a.source) + (exists ? channel : 0);
    Byte* to = memory.patches + (patch * a.patch_rows << (4 + a.log_units));
    RESGROW_NO_UNROLL
    for (int i = thread >> a.log_units; i < patch_rows; i += blockDim.x >> a.log_units) {
      const int2 place = at(memory.places + i);
      const bool inside = exists && place.x >= 0;
      copy_async<16>(to + pixel_offset(place.y, unit, a.log_units),
                     from + static_cast<Int>(inside ? place.x : 0) * a.source_channels, inside);
    }
  }
};

}  // namespace resgrow
