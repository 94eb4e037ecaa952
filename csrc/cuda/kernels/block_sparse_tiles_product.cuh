// The kernel of block_sparse_tiles, for forward and input gradient. block_sparse_tiles.cu says why
// it is as it is.
#pragma once

#include "cuda/kernels/block_sparse_tiles_feed.cuh"

namespace resgrow {

template <class Mma>
struct TilesSums {
  float d[2][kWarpTargets][2][4];  // [16 pixels][16 targets][8 targets]
};

// Which of the columns side by side the warp belongs to, and which 32 pixels of the block it has.
RESGROW_DEVICE int column_of_warp(const TilesArgs& a) {
  return warp_id() * kTilesWarpPixels / pixels_of_block(a);
}
RESGROW_DEVICE int pixel_of_warp(const TilesArgs& a) {
  return warp_id() * kTilesWarpPixels % pixels_of_block(a);
}

// One round in shared memory, as a lane sees it. Offsets count from the start of shared memory.
template <class Mma, bool forward>
struct TilesRoundProduct {
  const TilesArgs& a;
  const int (&rows)[2];    // of the lane's pixels in a patch, at a shift of 0
  int patch, piece, last;  // offsets; of the pieces including the lane's
  int half;                // 16 bytes for the lanes that load the upper units
  int first_target;        // of the warp, in groups of 16
  typename Mma::Weights weights;

  RESGROW_DEVICE void load_weights() {
    Mma::template load_weights<forward>(weights, shared_memory<Byte>(), piece);
  }

  RESGROW_DEVICE void load_pixels(typename Mma::Pixels (&pixels)[2], int visit) const {
    const int shift = visit >> kShiftAt,
              unit = (visit >> kSubAt & 3) << (4 + Mma::kLogUnits) | half;
    RESGROW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = rows[i] + shift;
      const int key = row << (1 + a.log_units) & ((16 << a.log_units) - 16);
      const int at = patch + (row << (4 + a.log_units));
      Mma::load_pixels(pixels[i], [&](int part) {
        return shared_memory<Byte>() + (at + (key ^ (unit | part << 4)));
      });
    }
  }

  // Weights are loaded as soon as the products before have taken theirs. Pairs of targets are
  // branched over, what is within them is predicated: a branch for each would take as long as the
  // products that it saves, and so would predicated ones for all.
  RESGROW_DEVICE void multiply(TilesSums<Mma>& sums, const typename Mma::Pixels (&pixels)[2],
                               int visit) {
    const int targets = visit >> first_target;
    RESGROW_UNROLL
    for (int pair = 0; pair < kWarpTargets; pair += 2) {
      if ((targets >> pair & 3) == 0) continue;
      RESGROW_UNROLL
      for (int j = pair; j < pair + 2; ++j) {
        if (targets >> j & 1) {
          Mma::multiply(sums.d[0][j], pixels[0], weights);
          Mma::multiply(sums.d[1][j], pixels[1], weights);
          piece = min(piece + Mma::kPieceBytes, last);
          load_weights();
        }
      }
    }
  }
};

// Multiplies one round; the next visit's pixels are loaded while products are under way, and behind
// the last visit are some without weights.
template <class Mma, bool forward>
RESGROW_DEVICE void multiply_round(TilesSums<Mma>& sums, const TilesMemory& memory,
                                   const TilesArgs& a, const int (&rows)[2], int stage, int patch,
                                   const TilesCounts& counts) {
  const int column = column_of_warp(a);
  const int lane = stage * a.piece_bytes + Mma::template weight_lane<forward>();
  // A column without pieces in this round looks at another's and does not use it.
  const int first = column == 0 ? 0 : min(counts.left, counts.pieces - 1);
  const int last = column == 0 ? max(counts.left - 1, 0) : counts.pieces - 1;
  TilesRoundProduct<Mma, forward> round{
      a,
      rows,
      kTilesStages * a.piece_bytes + (patch * a.patch_rows << (4 + a.log_units)),
      lane + first * Mma::kPieceBytes,
      lane + last * Mma::kPieceBytes,
      (lane_id() >> 4) << 4,
      column * kWarpTargets,
      {}};
  const int* words = memory.visits + stage * kTilesVisits;
  typename Mma::Pixels even[2], odd[2];
  int now = words[0], next = words[1];
  round.load_pixels(even, now);
  round.load_weights();
  RESGROW_NO_UNROLL
  for (int left = counts.visits; left > 0; left -= 2) {
    words += 2;
    const int third = words[0], fourth = words[1];
    round.load_pixels(odd, next);
    round.multiply(sums, even, now);
    round.load_pixels(even, third);
    round.multiply(sums, odd, next);
    now = third, next = fourth;
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
    const int own = p.first + pixel_of_warp(a) + i * 16 + gathered_pixel();
    const Int pixel = p.target(a, own, height, width);
    RESGROW_UNROLL
    for (int j = 0; j < kWarpTargets; ++j) {
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
    const int own = pixel_of_warp(a) + i * 16 + (lane_id() & 15);
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
    for (int j = 0; j < kWarpTargets; ++j) {
      RESGROW_UNROLL
      for (int k = 0; k < 4; ++k) sums.d[i][j][0][k] = sums.d[i][j][1][k] = 0.0f;
    }
  }
  __syncthreads();

  TilesFeed<Mma, forward> feed(a, memory, list, patch_rows, group, begin, end);
  unsigned counts[kTilesStages];  // of the next rounds
  RESGROW_UNROLL
  for (int s = 0; s + 1 < kTilesStages; ++s) counts[s] = feed.copy(s);
  int patch = -1, stage = 0;
  RESGROW_NO_UNROLL
  for (int r = begin; r < end; ++r) {
    copy_async_wait<kTilesStages - 2>();
    __syncthreads();
    counts[kTilesStages - 1] = feed.copy(stage == 0 ? kTilesStages - 1 : stage - 1);
    const TilesCounts own = unpacked(counts[0]);
    if (own.opens) patch = patch == kTilesStages - 1 ? 0 : patch + 1;
    multiply_round<Mma, forward>(sums, memory, a, rows, stage, patch, own);
    RESGROW_UNROLL
    for (int s = 0; s + 1 < kTilesStages; ++s) counts[s] = counts[s + 1];
    stage = stage == kTilesStages - 1 ? 0 : stage + 1;
  }
  const int target0 = (tile * a.columns + column_of_warp(a)) * kWarpTargets * 16;
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

template <class Mma>
Status launch_tiles(const TilesArgs& a, const TilesLaunch& as, Stream stream) {
  const auto kernel = as.forward ? &tiles_kernel<Mma, true> : &tiles_kernel<Mma, false>;
  const Status product = launch(kernel, as.grid, dim3(as.threads), as.shared, stream, a);
  if (product != 0 || a.splits == 1) return product;
  const Int eights = as.pixels * ((a.output.targets + 7) / 8);
  return launch(&tiles_add_kernel<typename Mma::Value>,
                dim3(static_cast<unsigned>((eights + 255) / 256)), dim3(256), 0, stream, a,
                as.pixels);
}

}  // namespace resgrow
