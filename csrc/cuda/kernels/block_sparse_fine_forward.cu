// Thin blocks, forward: y[pixel, 16 outputs] = sum over a row's columns. See block_sparse_fine.cuh.
//
// A warp computes 16 outputs of two units of 64 pixels: 64 sums per thread. Pixels are the rows of
// the product, so that a thread ends up with four neighbouring outputs of a pixel and 32 bytes of
// y are written at once. Per step of 16 columns a warp reads 4 KB of staged input (32 clocks of
// shared memory), 512 bytes of weights that lie in the order of its registers, and issues 16
// products (26 clocks of the tensor cores), so two blocks or one large block of threads per
// multiprocessor keep either busy. The next chunk of channels is staged while this one is
// multiplied: every other warp stages first.
#include "cuda/kernels/block_sparse_fine_stage.cuh"

namespace resgrow {
namespace fine {
namespace {

constexpr int kUnits = 2;  // of a warp

struct ForwardArgs {
  Geometry g;
  SharedLayout at;
  Lists lists;
  const Bits* x;
  void* y;
  const void *bias, *residual, *positive, *negative;
  int row_shift;              // 1 << row_shift warps along the outputs
  int group_tiles;            // tiles of 16 outputs of a group
  bool aligned_x, aligned_y;  // 8 channels of x, 4 of y
};

// sums[unit][pair of lanes][output tile]
using Sums = float[kUnits][4][2][4];

// One step: columns at `offset`, four per thread, times the weights w.
template <class T>
RESGROW_DEVICE void multiply_step(Sums& sums, const unsigned char* shared,
                                  const int (&position)[kUnits], int4 offset, uint4 w) {
  const unsigned near[2] = {w.x, w.y}, far[2] = {w.z, w.w};
  RESGROW_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const unsigned char* at = shared + position[u];
    const uint4 c0 = load<uint4>(at + offset.x), c1 = load<uint4>(at + offset.y);
    const uint4 c2 = load<uint4>(at + offset.z), c3 = load<uint4>(at + offset.w);
    const unsigned first[4] = {c0.x, c0.y, c0.z, c0.w}, second[4] = {c1.x, c1.y, c1.z, c1.w};
    const unsigned third[4] = {c2.x, c2.y, c2.z, c2.w}, fourth[4] = {c3.x, c3.y, c3.z, c3.w};
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      const unsigned a[4] = {low_halves(first[i], second[i]), high_halves(first[i], second[i]),
                             low_halves(third[i], fourth[i]), high_halves(third[i], fourth[i])};
      multiply_add<T>(sums[u][i][0], a, near);
      multiply_add<T>(sums[u][i][1], a, far);
    }
  }
}

template <class T>
RESGROW_DEVICE void multiply(Sums& sums, const ForwardArgs& a, const unsigned char* shared,
                             int first_unit, int output_tile, int chunk) {
  const int parts = a.g.block_out / kOutputs, lane = threadIdx.x % 32;
  const int* outputs = reinterpret_cast<const int*>(shared + a.at.outputs);
  int position[kUnits];
  RESGROW_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const int output = outputs[unit_output(a.g, min(first_unit + u, a.g.units - 1), lane)];
    const int row = min(output >> 16, a.g.h.tile - 1);
    position[u] = (row * a.g.w.patch + (output & 0xffff)) * kCell;
  }
  const int2 range = a.lists.ranges[output_tile / parts * a.g.chunks + chunk];
  const int part = output_tile % parts, end = range.x + range.y;
  const auto offsets_of = [&](int step) {
    return load<int4>(a.lists.offsets + step * kStep + lane % 4 * 4);
  };
  const auto weights_of = [&](int step) {
    return load<uint4>(a.lists.weights + (step * parts + part) * 32 + lane);
  };
  if (range.y == 0) return;
  int4 offset = offsets_of(range.x);
  uint4 w = weights_of(range.x);
  RESGROW_NO_UNROLL
  for (int step = range.x + 1; step <= end; ++step) {
    const int4 this_offset = offset;
    const uint4 this_w = w;
    if (step < end) {
      offset = offsets_of(step);
      w = weights_of(step);
    }
    multiply_step<T>(sums, shared, position, this_offset, this_w);
  }
}

template <class T>
RESGROW_DEVICE void load_outputs(const T* from, int count, bool aligned, float (&to)[4]) {
  if (aligned && count >= 4) {
    const uint2 v = load<uint2>(from);
    const unsigned r[2] = {v.x, v.y};
    RESGROW_UNROLL
    for (int i = 0; i < 4; ++i) {
      T part;
      part.bits = static_cast<Bits>(r[i / 2] >> (i % 2 * 16));
      to[i] = to_float(part);
    }
    return;
  }
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
}

template <class T>
RESGROW_DEVICE void store_outputs(T* to, int count, bool aligned, const float (&from)[4]) {
  T parts[4];
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) parts[i] = from_float<T>(from[i]);
  if (aligned && count >= 4) {
    store(to, uint2{parts[0].bits | static_cast<unsigned>(parts[1].bits) << 16,
                    parts[2].bits | static_cast<unsigned>(parts[3].bits) << 16});
    return;
  }
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = parts[i];
  }
}

// What is added to, and multiplied with, four neighbouring outputs.
struct Epilogue {
  float bias[4], positive[4], negative[4];
};
template <class T>
RESGROW_DEVICE Epilogue load_epilogue(const ForwardArgs& a, Int output, int count) {
  Epilogue e{};
  if (a.bias) load_outputs(static_cast<const T*>(a.bias) + output, count, false, e.bias);
  if (a.positive) {
    load_outputs(static_cast<const T*>(a.positive) + output, count, false, e.positive);
    load_outputs(static_cast<const T*>(a.negative) + output, count, false, e.negative);
  }
  return e;
}

// y at one pixel from its four sums.
template <class T>
RESGROW_DEVICE void finish(const ForwardArgs& a, const Epilogue& e, Int at, int count,
                           float (&sum)[4]) {
  float residual[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (a.residual)
    load_outputs(static_cast<const T*>(a.residual) + at, count, a.aligned_y, residual);
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    sum[i] += e.bias[i] + residual[i];
    if (a.positive) sum[i] *= sum[i] >= 0.0f ? e.positive[i] : e.negative[i];
  }
  store_outputs(static_cast<T*>(a.y) + at, count, a.aligned_y, sum);
}

// Position g of a unit, lanes 2 i and 2 i + 1 in the halves of a sum; outputs 4 t to 4 t + 3.
template <class T>
RESGROW_DEVICE void write(const ForwardArgs& a, const unsigned char* shared, Sums& sums,
                          int first_unit, int output_tile) {
  const Geometry& g = a.g;
  const int lane = threadIdx.x % 32;
  const Int output = static_cast<Int>(output_tile) * kOutputs + lane % 4 * 4;
  const int count = static_cast<int>(min(g.outputs - output, Int(4)));
  if (count <= 0) return;
  const Tile* tiles = reinterpret_cast<const Tile*>(shared + a.at.tiles);
  const int* outputs = reinterpret_cast<const int*>(shared + a.at.outputs);
  const Epilogue e = load_epilogue<T>(a, output, count);
  RESGROW_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    if (first_unit + u >= g.units) break;
    const int place = outputs[unit_output(g, first_unit + u, lane)];
    const int row = place >> 16, col = place & 0xffff;
    RESGROW_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      const Tile tile = tiles[i];
      if (row >= tile.rows || col >= tile.cols) continue;
      const int half = i % 2 * 2;
      const float (&near)[4] = sums[u][i / 2][0], (&far)[4] = sums[u][i / 2][1];
      float sum[4] = {near[half], near[half + 1], far[half], far[half + 1]};
      const Int pixel = tile.pixel + row * g.w.out + col;
      finish<T>(a, e, pixel * g.outputs + output, count, sum);
    }
  }
}

// Grid: tiles of y in eights; blocks of output tiles; groups.
template <class T, int threads>
RESGROW_KERNEL_OF(threads, 512 / threads)
void multiply_columns(ForwardArgs a) {
  unsigned char* shared = shared_memory<unsigned char>();
  const Geometry& g = a.g;
  const int warp = threadIdx.x / 32;
  const int in_group = (blockIdx.y << a.row_shift) + (warp & ((1 << a.row_shift) - 1));
  const int first_unit = (warp >> a.row_shift) * kUnits;
  const bool works = in_group < a.group_tiles && first_unit < g.units;
  const int output_tile = works ? static_cast<int>(blockIdx.z) * a.group_tiles + in_group : -1;
  fill_tables(g, a.at, shared);
  fill_tiles(g, a.at, a.x + static_cast<Int>(blockIdx.z) * g.group_channels,
             static_cast<Int>(blockIdx.x) * kLanes, shared);
  __syncthreads();

  Sums sums = {};
  RESGROW_NO_UNROLL
  for (int turn = 0; turn < 2 * (g.chunks + 1); ++turn) {
    const int chunk = turn / 2;  // staged; the one before is multiplied
    if ((turn ^ warp) & 1) {
      if (output_tile >= 0 && chunk > 0)
        multiply<T>(sums, a, shared, first_unit, output_tile, chunk - 1);
    } else if (chunk < g.chunks) {
      stage(g, a.at, chunk, a.aligned_x, shared);
    }
    if (turn & 1) __syncthreads();
  }
  if (output_tile >= 0) write<T>(a, shared, sums, first_unit, output_tile);
}

bool aligned(const void* p, Int bytes) {
  return reinterpret_cast<unsigned long long>(p) % bytes == 0;
}

template <class T>
Status run(const ForwardArgs& a, const Plan& plan, dim3 grid, Stream stream) {
  const auto kernel = plan.threads == 512 ? &multiply_columns<T, 512> : &multiply_columns<T, 256>;
  return launch(kernel, grid, dim3(plan.threads), plan.shared.end, stream, a);
}

}  // namespace

Status forward(const BlockSparseCall& call, const Plan& plan, const Lists& lists, Stream stream) {
  const Geometry& g = plan.geometry;
  ForwardArgs a{g, plan.shared, lists, static_cast<const Bits*>(call.x), call.y};
  a.bias = call.bias;
  a.residual = call.residual;
  a.positive = call.positive;
  a.negative = call.negative;
  while (1 << a.row_shift < plan.row_warps) ++a.row_shift;
  a.group_tiles = g.group_rows * (g.block_out / kOutputs);
  a.aligned_x = aligned(call.x, 16) && g.channels % 8 == 0 && g.group_channels % 8 == 0;
  a.aligned_y = aligned(call.y, 8) && aligned(call.residual, 8) && g.outputs % 4 == 0;
  const dim3 grid(static_cast<unsigned>((g.tiles + kLanes - 1) / kLanes),
                  (a.group_tiles + plan.row_warps - 1) / plan.row_warps,
                  static_cast<unsigned>(g.channels / g.group_channels));
  return call.type == Type::bfloat16 ? run<BFloat16>(a, plan, grid, stream)
                                     : run<Half>(a, plan, grid, stream);
}

}  // namespace fine
}  // namespace resgrow
