// The kernel of block_sparse_tiles, for forward and input gradient. block_sparse_tiles.cu says why
// it is as it is.
#pragma once

#include "cuda/kernels/block_sparse_tiles.cuh"

namespace resgrow {

constexpr int kTilesThreads = 256;  // at most; each warp has 32 pixels
constexpr int kTilesWarpPixels = 32;

// In shared memory, one after the other.
struct TilesMemory {
  Byte *pieces, *patches;  // kTilesStages of each
  int* visits;             // kTilesStages of kTilesVisits
  int2* places;            // of each row of a patch: source pixel; row << 16 | column
};
inline size_t tiles_memory_bytes(Int patch_rows, int log_units) {
  return kTilesStages * (kTilesStageBytes + kTilesVisits * sizeof(int) +
                         (static_cast<size_t>(patch_rows) << (4 + log_units))) +
         static_cast<size_t>(patch_rows) * sizeof(int2);
}
RESGROW_DEVICE TilesMemory tiles_memory(const TilesArgs& a) {
  TilesMemory m;
  m.pieces = shared_memory<Byte>();
  m.patches = m.pieces + kTilesStages * kTilesStageBytes;
  Byte* rest = m.patches + (kTilesStages * a.patch_rows << (4 + a.log_units));
  m.visits = reinterpret_cast<int*>(rest);
  m.places = reinterpret_cast<int2*>(m.visits + kTilesStages * kTilesVisits);
  return m;
}

// The place of a row of a patch that nothing reads, and one outside of every image.
constexpr int kUnread = static_cast<int>(0x80008000u), kOutside = static_cast<int>(0x80000000u);

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

template <bool forward>
RESGROW_DEVICE TilesPixels tiles_pixels(const TilesArgs& a) {
  const int residue = static_cast<int>(blockIdx.y);
  TilesPixels p;
  p.y = tiles_line<forward>(a.axis[0], residue / a.axis[1].stride);
  p.x = tiles_line<forward>(a.axis[1], residue % a.axis[1].stride);
  const int tile = static_cast<int>(blockIdx.x) / (a.target_tiles * a.groups);
  p.first = tile * static_cast<int>(blockDim.x);
  p.total = p.x.count > 0 ? a.samples * a.strips * p.y.count * a.strip : 0;
  return p;
}

// Lines of a patch: those of the tile's rows; `reach` more at the end of each image.
RESGROW_DEVICE int patch_line(const TilesPixels& p, const TilesPixels::Place& first,
                              const TilesPixels::Place& own) {
  const int images = own.image - first.image;
  return images * (p.y.count + p.y.reach) + own.row - first.row;
}

// Finds the places of a patch's rows; returns how many rows there are.
template <bool forward>
RESGROW_DEVICE int find_places(const TilesArgs& a, const TilesPixels& p, int2* places) {
  const int height = forward ? a.axis[0].input : a.axis[0].output;
  const int width = forward ? a.axis[1].input : a.axis[1].output;
  const auto first = p.place(a, p.first);
  const int last_pixel = min(p.first + static_cast<int>(blockDim.x), p.total) - 1;
  const int lines = patch_line(p, first, p.place(a, last_pixel)) + p.y.reach + 1;
  const int rows = a.whole ? lines * a.pitch : static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < rows; i += static_cast<int>(blockDim.x)) {
    TilesPixels::Place own;
    bool inside = true;
    if (a.whole) {
      const int line = i / a.pitch + first.row, step = p.y.count + p.y.reach;
      own = {first.image + line / step, line % step, i % a.pitch};
      if (own.column >= a.strip + p.x.reach) {
        places[i] = make_int2(0, kUnread);
        continue;
      }
      inside = own.image < a.samples * a.strips;
    } else {
      inside = p.first + i < p.total;
      own = p.place(a, p.first + i);
    }
    const int sample = own.image / a.strips, strip = own.image - sample * a.strips;
    const int y = p.y.source0 + own.row * p.y.source_step;
    const int x = p.x.source0 + (strip * a.strip + own.column) * p.x.source_step;
    places[i] = inside ? make_int2((sample * height + y) * width + x, y * 65536 + (x & 0xffff))
                       : make_int2(0, kOutside);
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
    pieces = a.lists.pieces + base * kVisitTargets;
    if (round < end) {
      next = load<int4>(rounds + round);
      next.z |= 1 << 16;  // the part of the sum may begin within a step
      find_piece();
    }
    if (round + 1 < end) after = load<int4>(rounds + round + 1);
  }

  RESGROW_DEVICE void find_piece() {
    if (lane_id() < (next.z >> 8 & 255)) piece = pieces[next.y + lane_id()];
  }

  // Begins to copy the next round to `stage`; returns its counts.
  RESGROW_DEVICE int copy(int stage) {
    int counts = 0;
    if (round < end) {
      counts = next.z;
      copy_visits(stage, counts & 255);
      copy_pieces(stage, counts >> 8 & 255);
      if (counts >> 16 & 1) copy_patch(counts >> 17);
      ++round;
      next = after;
      if (round < end) find_piece();
      if (round + 1 < end) after = load<int4>(rounds + round + 1);
    }
    copy_async_commit();
    return counts;
  }

  RESGROW_DEVICE void copy_visits(int stage, int count) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) copy_async<4>(memory.visits + stage * kTilesVisits + i, visits + next.x + i);
  }

  RESGROW_DEVICE void copy_pieces(int stage, int count) {
    Byte* to = memory.pieces + stage * kTilesStageBytes;
    for (int i = warp_id(); i < count; i += static_cast<int>(blockDim.x) / 32) {
      const Int at = __shfl_sync(0xffffffffu, piece, i);
      copy_piece<Mma>(to + i * Mma::kPieceBytes, static_cast<const T*>(a.values) + at * 16,
                      a.block_out);
    }
  }

  RESGROW_DEVICE void copy_patch(int chunk) {
    constexpr int per_unit = 16 / static_cast<int>(sizeof(T));
    const int height = forward ? a.axis[0].input : a.axis[0].output;
    const int width = forward ? a.axis[1].input : a.axis[1].output;
    const int origin_y = next.w >> 16, origin_x = next.w & 0xffff;
    const int units = 1 << a.log_units, channel0 = first_channel + chunk * units * per_unit;
    patch = patch == kTilesStages - 1 ? 0 : patch + 1;
    Byte* to = memory.patches + (patch * a.patch_rows << (4 + a.log_units));
    for (int i = static_cast<int>(threadIdx.x); i < patch_rows << a.log_units;
         i += static_cast<int>(blockDim.x)) {
      const int row = i >> a.log_units, unit = i & (units - 1);
      const int2 place = memory.places[row];
      if (place.y == kUnread) continue;
      const int y = (place.y >> 16) + origin_y, x = static_cast<short>(place.y) + origin_x;
      const int channel = channel0 + unit * per_unit;
      const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(width) &&
                          channel < a.source_channels;
      const int pixel = inside ? place.x + origin_y * width + origin_x : 0;
      const T* from = static_cast<const T*>(a.source) +
                      static_cast<Int>(pixel) * a.source_channels + (inside ? channel : 0);
      copy_async<16>(to + pixel_offset(row, unit, a.log_units), from, inside);
    }
  }
};

template <class Mma>
struct TilesSums {
  float d[2][kVisitTargets][2][4];  // [16 pixels][16 targets][8 targets]
};

// Loads the pixels of a visit: rows[] are the lane's rows of the patch for a shift of 0.
template <class Mma>
RESGROW_DEVICE void load_visit(typename Mma::Pixels (&pixels)[2], const Byte* patch, int log_units,
                               const int (&rows)[2], int visit) {
  const int shift = visit >> kShiftAt, unit = (visit >> 8 & 3) << Mma::kLogUnits;
  RESGROW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = rows[i] + shift;
    Mma::load_pixels(pixels[i],
                     [&](int own) { return patch + pixel_offset(row, unit + own, log_units); });
  }
}

// Multiplies one round. The next weights and the next visit's pixels are loaded while products are
// under way.
template <class Mma, bool forward>
RESGROW_DEVICE void multiply_round(TilesSums<Mma>& sums, const TilesMemory& memory,
                                   const TilesArgs& a, const int (&rows)[2], int stage, int patch,
                                   int counts) {
  const int visits = counts & 255, lane = Mma::template weight_lane<forward>();
  const int* words = memory.visits + stage * kTilesVisits;
  const Byte* piece = memory.pieces + stage * kTilesStageBytes;
  const Byte* last = piece + ((counts >> 8 & 255) - 1) * Mma::kPieceBytes;
  const Byte* own_patch = memory.patches + (patch * a.patch_rows << (4 + a.log_units));

  typename Mma::Pixels ahead[2];
  typename Mma::Weights weights;
  int next = words[0];
  load_visit<Mma>(ahead, own_patch, a.log_units, rows, next);
  Mma::template load_weights<forward>(weights, piece, lane);
  RESGROW_NO_UNROLL
  for (int v = 1; v <= visits; ++v) {
    const int visit = next;
    const typename Mma::Pixels pixels[2] = {ahead[0], ahead[1]};
    if (v < visits) {
      next = words[v];
      load_visit<Mma>(ahead, own_patch, a.log_units, rows, next);
    }
    RESGROW_UNROLL
    for (int j = 0; j < kVisitTargets; ++j) {
      if (visit >> j & 1) {
        Mma::multiply(sums.d[0][j], pixels[0], weights);
        Mma::multiply(sums.d[1][j], pixels[1], weights);
        piece = piece < last ? piece + Mma::kPieceBytes : last;
        Mma::template load_weights<forward>(weights, piece, lane);
      }
    }
  }
}

template <class Mma, bool forward>
RESGROW_DEVICE void store_sums(const TilesSums<Mma>& sums, const TilesArgs& a, const TilesPixels& p,
                               int target0, int target_end) {
  using T = typename Mma::Value;
  const int height = forward ? a.axis[0].output : a.axis[0].input;
  const int width = forward ? a.axis[1].output : a.axis[1].input;
  RESGROW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int own = p.first + warp_id() * kTilesWarpPixels + i * 16 + gathered_pixel();
    const Int pixel = p.target(a, own, height, width);
    RESGROW_UNROLL
    for (int j = 0; j < kVisitTargets; ++j) {
      if (target0 + j * 16 >= target_end) continue;
      float v[8];
      gather_targets(sums.d[i][j], v);
      const int target = target0 + j * 16 + gathered_target(), count = target_end - target;
      if (pixel < 0 || count <= 0) continue;
      if (a.splits == 1) {
        finish<T>(a.output, pixel, target, count, v);
      } else {
        float* to = a.partial + static_cast<Int>(blockIdx.z) * a.partial_step;
        store8<float>(to, pixel * a.output.targets + target, a.output.vectors && count >= 8, count,
                      v);
      }
    }
  }
}

template <class Mma, bool forward>
RESGROW_KERNEL(kTilesThreads)
void tiles_kernel(TilesArgs a) {
  const TilesPixels p = tiles_pixels<forward>(a);
  if (p.first >= p.total) return;
  const TilesMemory memory = tiles_memory(a);
  const int tile = static_cast<int>(blockIdx.x) % a.target_tiles;
  const int group = static_cast<int>(blockIdx.x) / a.target_tiles % a.groups;
  const int list = (static_cast<int>(blockIdx.y) * a.groups + group) * a.target_tiles + tile;
  const int patch_rows = find_places<forward>(a, p, memory.places);

  int rows[2];  // of this lane's pixels in a patch
  const auto first = p.place(a, p.first);
  RESGROW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int own = warp_id() * kTilesWarpPixels + i * 16 + (lane_id() & 15);
    const auto place = p.place(a, min(p.first + own, p.total - 1));
    rows[i] = a.whole ? patch_line(p, first, place) * a.pitch + place.column : own;
  }

  const int all = a.lists.rounds_of[list], split = static_cast<int>(blockIdx.z);
  const int begin = static_cast<int>(static_cast<Int>(all) * split / a.splits);
  const int end = static_cast<int>(static_cast<Int>(all) * (split + 1) / a.splits);
  TilesSums<Mma> sums;
  RESGROW_UNROLL
  for (int i = 0; i < 2; ++i) {
    RESGROW_UNROLL
    for (int j = 0; j < kVisitTargets; ++j) {
      RESGROW_UNROLL
      for (int k = 0; k < 4; ++k) sums.d[i][j][0][k] = sums.d[i][j][1][k] = 0.0f;
    }
  }
  __syncthreads();

  TilesFeed<Mma, forward> feed(a, memory, list, patch_rows, group, begin, end);
  int counts[kTilesStages];  // of the next rounds
  RESGROW_UNROLL
  for (int s = 0; s + 1 < kTilesStages; ++s) counts[s] = feed.copy(s);
  int patch = -1, stage = 0;
  RESGROW_NO_UNROLL
  for (int r = begin; r < end; ++r) {
    copy_async_wait<kTilesStages - 2>();
    __syncthreads();
    counts[kTilesStages - 1] = feed.copy(stage == 0 ? kTilesStages - 1 : stage - 1);
    if (counts[0] >> 16 & 1) patch = patch == kTilesStages - 1 ? 0 : patch + 1;
    multiply_round<Mma, forward>(sums, memory, a, rows, stage, patch, counts[0]);
    RESGROW_UNROLL
    for (int s = 0; s + 1 < kTilesStages; ++s) counts[s] = counts[s + 1];
    stage = stage == kTilesStages - 1 ? 0 : stage + 1;
  }
  const int target0 = tile * kTilesTargets;
  store_sums<Mma, forward>(sums, a, p, group * a.target_group + target0,
                           (group + 1) * a.target_group);
}

// Adds the parts of the sums, in their order.
template <class T>
RESGROW_KERNEL(256)
void tiles_add_kernel(TilesArgs a, Int pixels) {
  const Int per_pixel = (a.output.targets + 7) / 8;
  const Int i = static_cast<Int>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= pixels * per_pixel) return;
  const Int pixel = i / per_pixel;
  const int target = static_cast<int>(i - pixel * per_pixel) * 8;
  const int count = static_cast<int>(a.output.targets) - target;
  float v[8] = {};
  for (int s = 0; s < a.splits; ++s) {
    float part[8];
    load8<float>(a.partial + s * a.partial_step, pixel * a.output.targets + target,
                 a.output.vectors && count >= 8, count, part);
    RESGROW_UNROLL
    for (int k = 0; k < 8; ++k) v[k] += part[k];
  }
  finish<T>(a.output, pixel, target, count, v);
}

}  // namespace resgrow
