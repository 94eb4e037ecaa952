// Thin blocks, weight gradient: values[column, 16 outputs] = sum over pixels of y[pixel, output] x
// x[pixel of the column]. See block_sparse_fine.cuh.
//
// Pixels are the summed dimension here, and lie side by side in what is staged: both operands are
// read as they lie, without permutations. A warp keeps 8 steps of 16 columns x 16 outputs in
// registers (64 sums per thread) and goes through 32 pixels at a time: 16 accesses of 512 bytes for
// columns, 2 for y, 32 products of 16 x 8 x 16, 2.25 clocks of shared memory each, where the tensor
// cores need 1.6. A chunk has as many channels as give a warp's share of columns. Staging y costs
// as much as staging x, so a block of threads takes 128 outputs where there are as many.
//
// The pixels are split into parts, as many as fill the device; their sums go to the workspace and
// are added in order.
#include "cuda/kernels/block_sparse_fine_stage.cuh"

namespace resgrow {
namespace fine {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSteps = kGradSteps;
constexpr int kRecord = kStep * kOutputs;  // sums of a step

struct GradArgs {
  Geometry x, y;  // y: chunks are the outputs of a block of threads
  SharedLayout at_x, at_y;
  Lists lists;
  const Bits *from_x, *from_y;
  float* sums;  // (parts, steps, block_out / 16, kRecord)
  Bits* values;
  int row_warps;    // output tiles of a block of threads; the others share a row's columns
  int group_tiles;  // output tiles of a group
  int row_blocks, groups, parts;
  Int turns, part_turns;  // eights of tiles, all and of a part
  bool aligned_x, aligned_y;
};

// sums[step][half of its columns]
using Sums = float[kSteps][2][4];

// Places of a step's columns: thread's columns g of the two products. Neighbouring g, which meet in
// an access, are in an odd and an even class.
RESGROW_DEVICE int column_place(int g, int half) {
  return 4 * (g / 4 * 2 + g % 2) + 2 * half + g / 2 % 2;
}

// Adds the products of the staged pixels to the sums of `steps` steps.
template <class T>
RESGROW_DEVICE void multiply(Sums& sums, const GradArgs& a, const unsigned char* shared,
                             const int (&columns)[kSteps][2], int row, int steps) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const unsigned char* shared_y = shared + a.at_x.end;
  const int* outputs = reinterpret_cast<const int*>(shared + a.at_x.outputs);
  RESGROW_NO_UNROLL
  for (int turn = 0; turn < a.x.units * 2; ++turn) {
    // Two pixels of either half of the unit: 32 bytes apart, so that two columns fill the banks.
    const int p = unit_output(a.x, turn / 2, (t / 2) * 4 + (t % 2 * 2 + turn % 2) * 8);
    const int place = outputs[p];
    const bool exists = place >> 16 < a.x.h.tile;
    const int near = exists ? (slot_cell(a.y, row * kOutputs + g) + p) * kCell : a.at_y.zeros;
    const int far = exists ? (slot_cell(a.y, row * kOutputs + g + 8) + p) * kCell : a.at_y.zeros;
    const uint4 y0 = load<uint4>(shared_y + near), y1 = load<uint4>(shared_y + far);
    const unsigned first[4] = {y0.x, y1.x, y0.y, y1.y}, second[4] = {y0.z, y1.z, y0.w, y1.w};
    const int position =
        (min(place >> 16, a.x.h.tile - 1) * a.x.w.patch + (place & 0xffff)) * kCell;
    RESGROW_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      if (k >= steps) break;
      RESGROW_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint4 c = load<uint4>(shared + columns[k][half] + position);
        const unsigned c0[2] = {c.x, c.y}, c1[2] = {c.z, c.w};
        multiply_add<T>(sums[k][half], first, c0);
        multiply_add<T>(sums[k][half], second, c1);
      }
    }
  }
}

// Grid: parts of the pixels; chunks x passes over their lists; groups x blocks of output tiles.
template <class T>
RESGROW_KERNEL_OF(kThreads, 2)
void multiply_pixels(GradArgs a) {
  unsigned char* shared = shared_memory<unsigned char>();
  unsigned char* shared_y = shared + a.at_x.end;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunk = blockIdx.y % a.x.chunks, pass = blockIdx.y / a.x.chunks;
  const int group = blockIdx.z / a.row_blocks, row_block = blockIdx.z % a.row_blocks;
  const int row = warp % a.row_warps, tile = row_block * a.row_warps + row;
  const int output_tile = group * a.group_tiles + tile, tiles = a.x.block_out / kOutputs;
  const int share = pass * (kWarps / a.row_warps) + warp / a.row_warps;
  int2 range = {0, 0};
  if (tile < a.group_tiles) range = a.lists.ranges[output_tile / tiles * a.x.chunks + chunk];
  const Int step = range.x + share * kSteps;
  const int steps = max(min(range.y - share * kSteps, kSteps), 0);
  if (!__syncthreads_or(steps > 0)) return;

  int columns[kSteps][2];
  RESGROW_UNROLL
  for (int k = 0; k < kSteps; ++k) {
    RESGROW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int* offset = a.lists.offsets + (step + k) * kStep + column_place(lane / 4, half);
      columns[k][half] = k < steps ? *offset : 0;
    }
  }
  const Bits* x = a.from_x + static_cast<Int>(group) * a.x.group_channels;
  const Bits* y = a.from_y + static_cast<Int>(group) * a.y.group_channels;
  const Int begin = blockIdx.x * a.part_turns, end = min(begin + a.part_turns, a.turns);
  fill_tables(a.x, a.at_x, shared);
  fill_tables(a.y, a.at_y, shared_y);

  Sums sums = {};
  RESGROW_NO_UNROLL
  for (Int turn = begin; turn < end; ++turn) {
    fill_tiles(a.x, a.at_x, x, turn * kLanes, shared);
    fill_tiles(a.y, a.at_y, y, turn * kLanes, shared_y);
    __syncthreads();
    stage(a.x, a.at_x, chunk, a.aligned_x, shared);
    stage(a.y, a.at_y, row_block, a.aligned_y, shared_y);
    __syncthreads();
    multiply<T>(sums, a, shared, columns, row, steps);
  }
  float* to =
      a.sums + ((blockIdx.x * a.lists.steps + step) * tiles + output_tile % tiles) * kRecord;
  RESGROW_UNROLL
  for (int k = 0; k < kSteps; ++k) {
    if (k >= steps) break;
    RESGROW_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float (&s)[4] = sums[k][half];
      store(to + static_cast<Int>(k) * tiles * kRecord + half * 128 + lane * 4,
            float4{s[0], s[1], s[2], s[3]});
    }
  }
}

// Adds the parts. Grid: (chunks, rows); a thread has four sums at a time.
template <class T>
RESGROW_KERNEL_OF(kThreads, 4)
void add_parts(GradArgs a) {
  const int tiles = a.x.block_out / kOutputs;
  const int2 range = a.lists.ranges[blockIdx.y * a.x.chunks + blockIdx.x];
  const Int part = a.lists.steps * tiles * kRecord;
  for (int i = threadIdx.x; i < range.y * tiles * 64; i += kThreads) {
    const int tile = i / 64 % tiles, half = i / 32 % 2, lane = i % 32;
    const Int step = range.x + i / (64 * tiles);
    const float* from = a.sums + (step * tiles + tile) * kRecord + half * 128 + lane * 4;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int p = 0; p < a.parts; ++p) {
      const float4 v = load<float4>(from + p * part);
      sum[0] += v.x;
      sum[1] += v.y;
      sum[2] += v.z;
      sum[3] += v.w;
    }
    RESGROW_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int column = column_place(lane % 4 * 2 + j % 2, half);
      const int entry = a.lists.entries[step * kStep + column];
      if (entry < 0) continue;
      const Int at =
          static_cast<Int>(entry) * a.x.block_out + tile * kOutputs + lane / 4 + j / 2 * 8;
      a.values[at] = from_float<T>(sum[j]).bits;
    }
  }
}

bool aligned(const void* p) {
  return reinterpret_cast<unsigned long long>(p) % 16 == 0;
}

template <class T>
Status run(const GradArgs& a, dim3 grid, Stream stream) {
  const size_t shared = a.at_x.end + a.at_y.end;
  const Status status = launch(&multiply_pixels<T>, grid, dim3(kThreads), shared, stream, a);
  return status ? status
                : launch(&add_parts<T>, dim3(a.x.chunks, a.x.rows), dim3(kThreads), 0, stream, a);
}

}  // namespace

Int grad_sums(const GradPlan& plan, const Lists& lists) {
  return plan.parts * lists.steps * (plan.x.block_out / kOutputs) * kRecord;
}

Status weight_grad(const BlockSparseCall& call, const GradPlan& plan, const Lists& lists,
                   float* sums, Stream stream) {
  GradArgs a{plan.x, plan.y, plan.at_x, plan.at_y, lists};
  a.from_x = static_cast<const Bits*>(call.x);
  a.from_y = static_cast<const Bits*>(call.y);
  a.sums = sums;
  a.values = static_cast<Bits*>(call.values);
  a.row_warps = plan.row_warps;
  a.group_tiles = a.x.group_rows * (a.x.block_out / kOutputs);
  a.row_blocks = (a.group_tiles + a.row_warps - 1) / a.row_warps;
  a.groups = static_cast<int>(call.shape.groups);
  a.parts = static_cast<int>(plan.parts);
  a.turns = plan.turns;
  a.part_turns = plan.part_turns;
  a.aligned_x = aligned(call.x) && a.x.channels % 8 == 0 && a.x.group_channels % 8 == 0;
  a.aligned_y = aligned(call.y) && a.y.channels % 8 == 0 && a.y.group_channels % 8 == 0;
  const dim3 grid(static_cast<unsigned>(a.parts), a.x.chunks * plan.passes,
                  a.groups * a.row_blocks);
  return call.type == Type::bfloat16 ? run<BFloat16>(a, grid, stream) : run<Half>(a, grid, stream);
}

}  // namespace fine
}  // namespace resgrow
