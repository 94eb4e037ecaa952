// Weight gradient of block_sparse on tensor cores, blocks of multiples of 16 x 16:
//   values[block] (inputs, outputs) = sum over pixels of x[pixel moved by the tap]^T y[pixel].
//
// A block of threads owns the present pieces (16 x 16) of one region: some block columns x some
// rows x all taps; a region with more pieces than its warps hold is shared among several. It goes
// through patches of y's pixels, in two stages of shared memory, and keeps the sums of up to 16
// pieces per warp in registers. x of a patch is loaded once for all taps: a tap is an offset to the
// addresses that fragments are read from. Pieces go to the warps in runs of equal length, in the
// order of the outputs, so that y's fragment is read about once per warp and x's once per piece.
// Every sum has its place, and parts of the pixels are added in order: results do not depend on
// scheduling.
//
// Clocks of one multiprocessor of an H200 for 16 pixels of a piece, 16 bits: 2 for 4096 multiply-
// adds at the peak of 2048 (3 as mma.sync issues them); 4 for one fragment of x, 512 bytes at 128
// per clock, and .4 for y's. The stage: 3x3 on 64 x 128 channels at density .25 has 72 pieces; a
// patch of 7 x 14 pixels, 9 x 16 of x, is 6.7 KB for each 16, per piece .7 clocks of shared memory
// and 3.9 at the 24 bytes per clock that the second-level cache gives each of 132 multiprocessors.
// So shared memory is the bound, 5 to 6 clocks, where a dense product spends 2 / .25 = 8 at the
// peak and 12 to 13 at the 60 to 65 % that dense weight gradients reach: expected is twice their
// speed at density .25, and theirs at .5. A pointwise product has no margin but one tap only: its
// regions of up to 512 x 512 channels leave it bound by the second-level cache, 8 to 12 clocks, or
// by memory.
//
// One fragment of x for two pieces of different outputs would save less than it costs: at density
// .25 only 44 % of such pairs are both needed, 4.4 clocks instead of 4.25 for as many registers.
//
// Pixels that fill up a patch at the images' lower right have gradients of zero; where x is
// infinite there, their product is not a number.
#include "cuda/kernels/block_sparse_weight_grad_mma.cuh"
#include "cuda/kernels/block_sparse_weight_grad_stage.cuh"

#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace weight_grad {
namespace {

constexpr int kAhead = 4;  // fragments of x on their way from shared memory

// Two neighbouring outputs.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

template <class T>
RESGROW_DEVICE void store_piece(T* values, int row_values, const float (&sums)[2][4]) {
  T* at = values + lane_of_warp() / 4 * row_values + lane_of_warp() % 4 * 2;
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* pair = &sums[i % 2][i / 2 * 2];
    store(at + i / 2 * 8 * row_values + i % 2 * 8,
          Pair<T>{{from_float<T>(pair[0]), from_float<T>(pair[1])}});
  }
}

template <class Mma>
RESGROW_KERNEL(kThreads)
void sum_pieces(Args a) {
  using T = typename Mma::Value;
  constexpr int unit_bytes = 16 * sizeof(T);
  const GradPlan& p = a.plan;
  const Place here = place_of(a);
  const Shared s = shared_of(p);
  const int own = fill_pieces(a, here, s, unit_bytes);
  if (own == 0) return;
  fill_pixels(p, s);
  __syncthreads();

  const int warp = threadIdx.x / 32, pieces = first_of(own, warp + 1) - first_of(own, warp);
  int offsets[kGradSlots];
  unsigned fresh = 0;  // pieces with other outputs than the one before
  RESGROW_UNROLL
  for (int i = 0; i < kGradSlots; ++i) {
    offsets[i] = s.in_offset[warp * kGradSlots + i];
    const int* out = s.out_offset + warp * kGradSlots + i;
    if (i < pieces && (i == 0 || out[0] != out[-1])) fresh |= 1u << i;
  }
  const int in_first = here.in_region * p.region_cols * a.block_in;
  const int out_first = here.first_row * a.block_out;  // over all groups
  const Loader loader{
      p, s,
      column_of<T>(a.x, a.channels, p.in_units, s.used[0], here.group * a.group_channels + in_first,
                   a.group_channels - in_first),
      column_of<T>(a.y, a.outputs, p.out_units, s.used[1], out_first,
                   (here.group + 1) * a.group_outputs - out_first)};

  float sums[kGradSlots][2][4] = {};
  const int begin = here.part * p.part_patches, end = min(begin + p.part_patches, p.patches);
  loader.load(patch_at(p, begin), 0, 0, 1);
  copy_async_commit();
  RESGROW_NO_UNROLL
  for (int patch = begin; patch < end; ++patch) {
    const int number = (patch - begin) % 2;
    const Patch next = patch_at(p, patch + 1);
    const Byte* stage = s.stages + number * p.stage_bytes;
    copy_async_wait<0>();
    __syncthreads();
    const Byte* outputs = stage + p.in_pixels * p.in_pitch + Mma::output_byte(p.out_pitch);
    RESGROW_NO_UNROLL
    for (int step = 0; step < p.steps; ++step, outputs += 16 * p.out_pitch) {
      const Byte* rows[Mma::kRows];
      RESGROW_UNROLL
      for (int i = 0; i < Mma::kRows; ++i)
        rows[i] = stage + s.rows_of_x[step * 16 + Mma::pixel(i)] + Mma::input_byte();
      if (patch + 1 < end) loader.load(next, 1 - number, step, p.steps);
      typename Mma::Output y;
      RESGROW_UNROLL
      for (int group = 0; group < kGradSlots; group += kAhead) {
        if (group >= pieces) break;
        typename Mma::Input x[kAhead];
        RESGROW_UNROLL
        for (int i = 0; i < kAhead; ++i)
          if (group + i < pieces) Mma::load_input(x[i], rows, offsets[group + i]);
        RESGROW_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          const int piece = group + i;
          if (fresh >> piece & 1)
            Mma::load_output(y, outputs + s.out_offset[warp * kGradSlots + piece], p.out_pitch);
          if (piece < pieces) Mma::multiply(sums[piece], x[i], y);
        }
      }
    }
    copy_async_commit();
  }

  RESGROW_UNROLL
  for (int i = 0; i < kGradSlots; ++i) {
    const int target = s.target[warp * kGradSlots + i];
    if (target < 0) continue;
    if (a.sums) {
      store_piece(a.sums + here.part * a.size + target, a.block_out, sums[i]);
    } else {
      store_piece(static_cast<T*>(a.values) + target, a.block_out, sums[i]);
    }
  }
}

// First block of each row whose column is not below the region's, whatever the entries are.
RESGROW_KERNEL(kThreads)
void find_bounds(const int* row, const int* col, int blocks, int rows, int regions, int cols,
                 int* bounds) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= rows * (regions + 1)) return;
  const int r = i / (regions + 1), region = i % (regions + 1);
  const bool next_row = region == regions;
  int low = 0, high = blocks;
  while (low < high) {
    const int middle = low + (high - low) / 2, its = row[middle];
    if (its < r || (its == r && (next_row || col[middle] < region * cols))) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  bounds[i] = low;
}

Int size_of(const BlockSparseCall& call) {
  return call.blocks * call.shape.block_in * call.shape.block_out;
}
Int bounds_of(const BlockSparseCall& call, const GradPlan& p) {
  return call.shape.rows * (p.in_regions + 1);
}
// Bytes of the bounds, such that sums behind them are aligned.
Int bounds_bytes(const BlockSparseCall& call, const GradPlan& p) {
  return (bounds_of(call, p) * static_cast<Int>(sizeof(int)) + 255) / 256 * 256;
}

bool fits(const BlockSparseCall& call) {
  const auto& s = call.shape;
  if (call.product != BlockSparseProduct::weight_grad || call.type == Type::float64 ||
      call.blocks == 0)
    return false;
  const Int values = call.type == Type::float32 ? 4 : 8;  // in 16 bytes
  const bool aligned = s.channels % values == 0 && s.outputs % values == 0 &&
                       (reinterpret_cast<unsigned long long>(call.x) |
                        reinterpret_cast<unsigned long long>(call.y)) %
                               16 ==
                           0;
  return aligned && s.block_in % 16 == 0 && s.block_out % 16 == 0 &&
         plan_weight_grad(call, most_shared_memory()).exists;
}

Int workspace(const BlockSparseCall& call) {
  const GradPlan p = plan_weight_grad(call, most_shared_memory());
  const Int sums = p.parts > 1 ? p.parts * size_of(call) * static_cast<Int>(sizeof(float)) : 0;
  return bounds_bytes(call, p) + sums;
}

template <class Mma>
Status run_with(const Args& args, Stream stream) {
  const GradPlan& p = args.plan;
  const Int blocks = Int{p.parts} * p.most_shares * p.groups * p.in_regions * p.out_regions;
  return launch(&sum_pieces<Mma>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                p.shared_bytes, stream, args);
}

Status run(const BlockSparseCall& call, Stream stream) {
  const auto& s = call.shape;
  const auto n = [](Int v) { return static_cast<int>(v); };
  const GradPlan p = plan_weight_grad(call, most_shared_memory());
  int* bounds = static_cast<int*>(call.workspace);
  const int threads = n(bounds_of(call, p));
  Status status =
      launch(&find_bounds, dim3((threads + kThreads - 1) / kThreads), dim3(kThreads), 0, stream,
             call.row, call.col, n(call.blocks), n(s.rows), p.in_regions, p.region_cols, bounds);
  if (status != 0) return status;
  void* behind = static_cast<char*>(call.workspace) + bounds_bytes(call, p);
  const Args args{p,
                  n(s.channels / s.groups),
                  n(s.outputs / s.groups),
                  n(s.rows / s.groups),
                  n(s.channels),
                  n(s.outputs),
                  n(s.kernel[0] * s.kernel[1]),
                  n(s.kernel[1]),
                  n(s.block_in),
                  n(s.block_out),
                  call.col,
                  call.tap,
                  bounds,
                  call.x,
                  call.y,
                  call.values,
                  p.parts > 1 ? static_cast<float*>(behind) : nullptr,
                  size_of(call)};
  switch (call.type) {
    case Type::bfloat16:
      status = run_with<Mma16<BFloat16>>(args, stream);
      break;
    case Type::float16:
      status = run_with<Mma16<Half>>(args, stream);
      break;
    default:
      status =
          call.tf32 ? run_with<MmaFloat<1>>(args, stream) : run_with<MmaFloat<3>>(args, stream);
  }
  if (status != 0 || p.parts == 1) return status;
  return add_block_sparse_parts(call.type, behind, size_of(call), p.parts, call.values, stream);
}

}  // namespace
}  // namespace weight_grad

const BlockSparsePath block_sparse_weight_grad = {weight_grad::fits, weight_grad::workspace,
                                                  weight_grad::run};

}  // namespace resgrow
