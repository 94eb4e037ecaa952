// Pixels x channels in memory to [channel][position][lane] in shared memory.
#pragma once

#include "cuda/kernels/block_sparse_fine.cuh"

namespace resgrow {
namespace fine {

using Bits = unsigned short;  // a 16-bit value that is only moved

constexpr int kOutside = -(1 << 28);  // a row of no image

// Tables of positions and of outputs; zeros. A barrier must follow.
RESGROW_DEVICE void fill_tables(const Geometry& g, const SharedLayout& at, unsigned char* shared) {
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int p = thread; p < g.positions; p += threads) {
    const int phase = g.h.patch * g.w.patch;
    const int which = p / phase, rest = p - which * phase;
    const int row = rest / g.w.patch, col = rest - row * g.w.patch;
    const int row_phase = which / g.w.phases, col_phase = which - row_phase * g.w.phases;
    reinterpret_cast<int*>(shared + at.places)[p] =
        (row * g.h.stride + row_phase) << 16 | (col * g.w.stride + col_phase);
  }
  for (int p = thread; p < g.units * kUnit; p += threads) {
    const int row = p / g.w.tile;
    reinterpret_cast<int*>(shared + at.outputs)[p] = row << 16 | (p - row * g.w.tile);
  }
  for (int cell = thread; cell < g.pitch; cell += threads)
    store(shared + at.zeros + cell * kCell, uint4{0, 0, 0, 0});
}

// The table of eight tiles of images at x, pixel (0, 0) of the first one. A barrier must follow.
RESGROW_DEVICE void fill_tiles(const Geometry& g, const SharedLayout& at, const Bits* x,
                               Int first_tile, unsigned char* shared) {
  const int thread = threadIdx.x;
  if (thread < kLanes) {
    Tile t{x, kOutside, kOutside, 0, 0, 0, {}};
    const Int tile = first_tile + thread;
    if (tile < g.tiles) {
      const int per_image = g.h.tiles * g.w.tiles;
      const int image = static_cast<int>(tile / per_image);
      const int rest = static_cast<int>(tile - static_cast<Int>(image) * per_image);
      const int row = rest / g.w.tiles * g.h.tile, col = rest % g.w.tiles * g.w.tile;
      t.image = x + static_cast<Int>(image) * g.h.in * g.w.in * g.channels;
      t.pixel = (image * g.h.out + row) * g.w.out + col;
      t.row = row * g.h.stride - g.h.padding;
      t.col = col * g.w.stride - g.w.padding;
      t.rows = min(g.h.tile, g.h.out - row);
      t.cols = min(g.w.tile, g.w.out - col);
    }
    reinterpret_cast<Tile*>(shared + at.tiles)[thread] = t;
  }
}

// Which output of a tile thread `lane` has of a unit: its half, 0 or 1, and quarter of that. The
// halves' positions lie an odd multiple of 64 bytes apart where the tile's width allows.
RESGROW_DEVICE int unit_output(const Geometry& g, int unit, int lane) {
  const int half = lane / 4 % 2;
  const int quad = g.pair == 8 ? unit / 2 * 4 + unit % 2 + half * 2 : unit * 2 + half;
  return quad * 4 + lane / 8;
}

// Eight channels of a pixel; those from `count` on are zeros.
RESGROW_DEVICE uint4 load_channels(const Bits* from, int count, bool aligned) {
  if (aligned && count >= 8) return load<uint4>(from);
  unsigned r[4] = {0, 0, 0, 0};
  RESGROW_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) r[i / 2] |= static_cast<unsigned>(from[i]) << (i % 2 * 16);
  }
  return {r[0], r[1], r[2], r[3]};
}

// (low half of a, low half of b) and (high, high).
RESGROW_DEVICE unsigned low_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x5410);
}
RESGROW_DEVICE unsigned high_halves(unsigned a, unsigned b) {
  return __byte_perm(a, b, 0x7632);
}

// Stores eight channels of lane `lane` at `to`, the first channel's position. Neighbouring lanes,
// four threads apart, swap half of their channels, so that each stores pairs of lanes.
RESGROW_DEVICE void store_transposed(const Geometry& g, unsigned char* to, int lane, uint4 v,
                                     bool present) {
  const bool odd = lane % 2;
  const unsigned got0 = __shfl_xor_sync(~0u, odd ? v.x : v.z, 4);
  const unsigned got1 = __shfl_xor_sync(~0u, odd ? v.y : v.w, 4);
  const unsigned even0 = odd ? got0 : v.x, odd0 = odd ? v.z : got0;
  const unsigned even1 = odd ? got1 : v.y, odd1 = odd ? v.w : got1;
  if (!present) return;
  const int pitch = g.pitch * kCell;
  to += (odd ? 4 * pitch : 0) + lane / 2 * 4;
  store(to, low_halves(even0, odd0));
  store(to + pitch, high_halves(even0, odd0));
  store(to + 2 * pitch, low_halves(even1, odd1));
  store(to + 3 * pitch, high_halves(even1, odd1));
}

// Stages the channels of a chunk. A warp brings 32 channels of one position of all tiles per
// access: 64 bytes of a pixel side by side.
RESGROW_DEVICE void stage(const Geometry& g, const SharedLayout& at, int chunk, bool aligned,
                          unsigned char* shared) {
  const int lane = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
  const int tasks = (g.staged + 31) / 32 * g.runs;
  RESGROW_NO_UNROLL
  for (int task = threadIdx.x / 32; task < tasks; task += blockDim.x / 32) {
    const Tile& tile = reinterpret_cast<const Tile*>(shared + at.tiles)[lane];
    const int* places = reinterpret_cast<const int*>(shared + at.places);
    const int slab = task / g.runs, first = (task - slab * g.runs) * kAhead;
    const int slot = slab * 32 + part * 8;
    const int channels = min(g.group_channels - chunk * g.chunk, g.staged) - slot;
    uint4 v[kAhead];
    RESGROW_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      v[i] = {0, 0, 0, 0};
      const int place = first + i < g.positions ? places[first + i] : 0;
      const int row = tile.row + (place >> 16), col = tile.col + (place & 0xffff);
      const bool inside = first + i < g.positions && row >= 0 && row < g.h.in && col >= 0 &&
                          col < g.w.in && channels > 0;
      if (inside) {
        const Int pixel = row * g.w.in + col;
        v[i] = load_channels(tile.image + pixel * g.channels + chunk * g.chunk + slot, channels,
                             aligned);
      }
    }
    unsigned char* to =
        shared + chunk % g.buffers * at.buffer + (slot_cell(g, slot) + first) * kCell;
    RESGROW_UNROLL
    for (int i = 0; i < kAhead; ++i)
      store_transposed(g, to + i * kCell, lane, v[i], slot < g.staged && first + i < g.positions);
  }
}

}  // namespace fine
}  // namespace resgrow
