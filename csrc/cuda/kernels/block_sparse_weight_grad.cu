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
// Per 16 pixels and piece, 16 bits, on an H200 (per multiprocessor): 4096 multiply-adds, 2 clocks
// at the peak of 2048 (3 as mma.sync issues them); one fragment of x, 512 bytes at 128 per clock: 4
// clocks, and y's shared by up to 16 pieces; the stage itself, written and read once: for 3x3, 96 x
// 128 channels and 8 x 8 pixels of y with 10 x 10 of x, 9 KB for about 110 pieces at density .25:
// .7 clocks of shared memory, and 3.5 at the 24 bytes per clock that the second-level cache gives
// each of 132 multiprocessors. Bound: shared memory, about 5 clocks per piece, where a dense
// product spends 2 / .25 = 8 at the peak and 12 to 13 at the 60 to 65 % that dense weight gradients
// reach: 2.4 times faster at density .25, even at .7 to 1. A pointwise product has one tap only:
// regions of up to 512 x 512 channels keep it within the second-level cache's rate.
//
// A fragment for two pieces with different outputs would save at most half of x's reads at twice
// the sums in registers, where only 44 % of such pairs are present at density .25: 4.4 clocks
// instead of 4.25, so that pieces are taken one by one.
//
// Pixels that fill up a patch at the images' lower right have gradients of zero; where x is
// infinite there, their product is not a number.
#include "cuda/kernels/block_sparse_weight_grad.cuh"

#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = 32 * kGradWarps;
constexpr int kZeros = -1, kSkipped = -2;  // places without a pixel
constexpr int kAhead = 4;                  // fragments of x on their way from shared memory

struct GradArgs {
  GradPlan plan;
  int group_channels, group_outputs, group_rows, channels, outputs;
  int taps, kernel_width, block_in, block_out;
  const int *col, *tap, *bounds;  // bounds: (rows, in_regions + 1), first block of a row's region
  const void *x, *y;
  void* values;
  float* sums;  // (parts, values), or null if there is one part
  Int size;     // of values
};

// Where a block of threads stands.
struct Place {
  int in_region, first_row, rows, group, share, part;
};

RESGROW_DEVICE Place place_of(const GradArgs& a) {
  const GradPlan& p = a.plan;
  const int regions = p.in_regions * p.out_regions * p.groups, b = blockIdx.x;
  const int region = b % regions, out_region = region / p.in_regions % p.out_regions;
  const int group = region / p.in_regions / p.out_regions;
  const int row = out_region * p.region_rows;
  return {region % p.in_regions,
          group * a.group_rows + row,
          min(p.region_rows, a.group_rows - row),
          group,
          b / regions % p.most_shares,
          b / regions / p.most_shares};
}

struct Shared {
  GradByte* stages;
  int* in_places;   // down << 16 | right of each place of x
  int* out_places;  // of each pixel of y, zeros where it fills up the last step
  int* rows_of_x;   // bytes from the first pixel of x to the one that meets tap 0, of each of y
  int *in_offset, *out_offset, *target;  // of each piece: bytes within x's and y's pixels; values
  int *first, *before;                   // of each row: first block, pieces of the rows before it
  int* used;                             // units of inputs and outputs, one bit each
};

RESGROW_DEVICE Shared shared_of(const GradPlan& p) {
  Shared s;
  s.stages = shared_memory<GradByte>();
  s.in_places = reinterpret_cast<int*>(s.stages + 2 * p.stage_bytes);
  s.out_places = s.in_places + p.in_pixels;
  s.rows_of_x = s.out_places + 16 * p.steps;
  s.in_offset = s.rows_of_x + 16 * p.steps;
  s.out_offset = s.in_offset + kGradPieces;
  s.target = s.out_offset + kGradPieces;
  s.first = s.target + kGradPieces;
  s.before = s.first + kGradUnits;
  s.used = s.before + kGradUnits + 1;
  return s;
}

// Where pixel i of an axis of x lies.
RESGROW_DEVICE int place_on(const GradAxis& axis, int i) {
  return i % axis.classes * axis.class_pixels + i / axis.classes;
}

RESGROW_DEVICE void fill_pixels(const GradPlan& p, const Shared& s) {
  const GradAxis &down = p.axis[0], &right = p.axis[1];
  for (int i = threadIdx.x; i < p.in_pixels; i += kThreads) {
    const int place = i % p.row_pixels;
    const int x = place % right.class_pixels * right.classes + place / right.class_pixels;
    const bool exists = place / right.class_pixels < right.classes && x < right.extent;
    s.in_places[i] =
        exists ? i / p.row_pixels * down.source_step << 16 | x * right.source_step : kSkipped;
  }
  for (int i = threadIdx.x; i < 16 * p.steps; i += kThreads) {
    const int y = i / right.size, x = i % right.size;
    const bool exists = y < down.size;
    s.out_places[i] = exists ? y << 16 | x : kZeros;
    s.rows_of_x[i] =
        exists ? (y * down.pixel_step * p.row_pixels + x * right.pixel_step) * p.in_pitch : 0;
  }
}

// The first of a warp's pieces among `own`.
RESGROW_DEVICE int first_of(int own, int warp) {
  return own * warp / kGradWarps;
}

// Writes the pieces of this share, those of a warp behind one another; returns how many all warps
// have. Entries out of range get a piece in range: what they sum is of no use, but it is theirs.
RESGROW_DEVICE int fill_pieces(const GradArgs& a, const Place& here, const Shared& s,
                               int unit_bytes) {
  const GradPlan& p = a.plan;
  const int tid = threadIdx.x, subs = p.sub_in * p.sub_out;
  if (tid < here.rows) {
    const int* bounds = a.bounds + (here.first_row + tid) * (p.in_regions + 1) + here.in_region;
    s.first[tid] = bounds[0];
    s.before[tid + 1] = max(bounds[1] - bounds[0], 0) * subs;
  }
  if (tid < 2) s.used[tid] = 0;
  __syncthreads();
  if (tid == 0) {
    s.before[0] = 0;
    for (int r = 0; r < here.rows; ++r) s.before[r + 1] += s.before[r];
  }
  __syncthreads();
  const int all = s.before[here.rows];
  const int shares = min((all + kGradPieces - 1) / kGradPieces, p.most_shares);
  if (here.share >= shares) return 0;
  const int each = min((all + shares - 1) / shares, kGradPieces), begin = here.share * each;
  const int own = min(each, all - begin);
  for (int i = tid; i < kGradPieces; i += kThreads) {
    const int number = first_of(own, i / kGradSlots) + i % kGradSlots;
    if (number >= first_of(own, i / kGradSlots + 1)) {
      s.in_offset[i] = s.out_offset[i] = 0;
      s.target[i] = -1;
      continue;
    }
    int row = 0;
    while (s.before[row + 1] <= begin + number) ++row;
    const int inputs = (s.before[row + 1] - s.before[row]) / p.sub_out;
    const int k = begin + number - s.before[row], out = k / inputs;
    const int block = s.first[row] + k % inputs / p.sub_in, in = k % inputs % p.sub_in;
    const int tap = min(max(a.tap[block], 0), a.taps - 1);
    const int col = a.col[block] - here.in_region * p.region_cols;
    const int in_unit = min(max(col, 0), p.region_cols - 1) * p.sub_in + in;
    const int out_unit = row * p.sub_out + out;
    const int pixels = tap / a.kernel_width * p.axis[0].tap_step * p.row_pixels +
                       place_on(p.axis[1], tap % a.kernel_width * p.axis[1].tap_step);
    s.in_offset[i] = pixels * p.in_pitch + in_unit * unit_bytes;
    s.out_offset[i] = out_unit * unit_bytes;
    s.target[i] = (block * a.block_in + in * 16) * a.block_out + out * 16;
    atomicOr(&s.used[0], 1 << in_unit);
    atomicOr(&s.used[1], 1 << out_unit);
  }
  return own;
}

// The 16-byte columns of a stage that a thread copies: every `step`-th pixel of one.
template <class T>
struct Column {
  const T* from;  // of the first pixel of the tensor
  int to, row, step;
  bool needed, exists;  // whether a piece reads it; whether the tensor has it, or it is zeros

  RESGROW_DEVICE Column(const void* tensor, int units, int used, int first, int limit) {
    constexpr int per_unit = sizeof(T), values = 16 / sizeof(T);  // 16-byte columns of 16 channels
    const int columns = units * per_unit, column = threadIdx.x % columns;
    step = kThreads / columns;
    row = threadIdx.x / columns;
    needed = row < step && used >> column / per_unit & 1;
    exists = column * values < limit;
    from = static_cast<const T*>(tensor) + first + (exists ? column * values : 0);
    to = column * 16;
  }
};

// A rectangle of an image of x or y, in pixels.
struct Window {
  int image, top, left, height, width;
};

// Copies one part of `turns`. Places are looked up for several copies at a time: each look-up takes
// as long as many copies.
template <class T>
RESGROW_DEVICE void copy_pixels(const Column<T>& c, const Window& w, const int* places, int count,
                                int channels, GradByte* to, int pitch, int turn, int turns) {
  constexpr int batch = 4;
  if (!c.needed) return;
  for (int first = c.row + turn * batch * c.step; first < count; first += turns * batch * c.step) {
    int place[batch];
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i)
      place[i] = first + i * c.step < count ? places[first + i * c.step] : kSkipped;
    RESGROW_UNROLL
    for (int i = 0; i < batch; ++i) {
      if (place[i] == kSkipped) continue;
      const int y = w.top + (place[i] >> 16), x = w.left + (place[i] & 0xffff);
      const bool inside = c.exists && place[i] >= 0 &&
                          static_cast<unsigned>(y) < static_cast<unsigned>(w.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(w.width);
      const int pixel = inside ? (w.image * w.height + y) * w.width + x : 0;
      copy_async<16>(to + (first + i * c.step) * pitch + c.to,
                     c.from + static_cast<Int>(pixel) * channels, inside);
    }
  }
}

// Copies into a stage what a patch needs, or one part of it.
template <class T>
struct Loader {
  const GradArgs& a;
  const Shared& s;
  Column<T> in, out;

  RESGROW_DEVICE void load(int patch, int number, int turn, int turns) const {
    const GradPlan& p = a.plan;
    const GradAxis &down = p.axis[0], &right = p.axis[1];
    const int per_image = down.count * right.count, image = patch / per_image;
    const int y = patch % per_image / right.count * down.size;
    const int x = patch % per_image % right.count * right.size;
    GradByte* stage = s.stages + number * p.stage_bytes;
    const Window of_x{image, y * down.stride - down.padding, x * right.stride - right.padding,
                      down.in, right.in};
    copy_pixels(in, of_x, s.in_places, p.in_pixels, a.channels, stage, p.in_pitch, turn, turns);
    copy_pixels(out, {image, y, x, down.out, right.out}, s.out_places, 16 * p.steps, a.outputs,
                stage + p.in_pixels * p.in_pitch, p.out_pitch, turn, turns);
  }
};

// Two neighbouring outputs.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

template <class T>
RESGROW_DEVICE void store_piece(T* values, int row_values, const float (&sums)[2][4]) {
  T* at = values + grad_lane() / 4 * row_values + grad_lane() % 4 * 2;
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* pair = &sums[i % 2][i / 2 * 2];
    store(at + i / 2 * 8 * row_values + i % 2 * 8,
          Pair<T>{{from_float<T>(pair[0]), from_float<T>(pair[1])}});
  }
}

template <class Mma>
RESGROW_KERNEL(kThreads)
void weight_grad(GradArgs a) {
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
  const Loader<T> loader{
      a, s,
      Column<T>(a.x, p.in_units, s.used[0], here.group * a.group_channels + in_first,
                a.group_channels - in_first),
      Column<T>(a.y, p.out_units, s.used[1], out_first,
                (here.group + 1) * a.group_outputs - out_first)};

  float sums[kGradSlots][2][4] = {};
  const int begin = here.part * p.part_patches, end = min(begin + p.part_patches, p.patches);
  loader.load(begin, 0, 0, 1);
  copy_async_commit();
  RESGROW_NO_UNROLL
  for (int patch = begin; patch < end; ++patch) {
    const int number = (patch - begin) % 2;
    const GradByte* stage = s.stages + number * p.stage_bytes;
    copy_async_wait<0>();
    __syncthreads();
    const GradByte* outputs = stage + p.in_pixels * p.in_pitch + Mma::output_byte(p.out_pitch);
    RESGROW_NO_UNROLL
    for (int step = 0; step < p.steps; ++step, outputs += 16 * p.out_pitch) {
      const GradByte* rows[Mma::kRows];
      RESGROW_UNROLL
      for (int i = 0; i < Mma::kRows; ++i)
        rows[i] = stage + s.rows_of_x[step * 16 + Mma::pixel(i)] + Mma::input_byte();
      if (patch + 1 < end) loader.load(patch + 1, 1 - number, step, p.steps);
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
Status run_with(const GradArgs& args, Stream stream) {
  const GradPlan& p = args.plan;
  const Int blocks = Int{p.parts} * p.most_shares * p.groups * p.in_regions * p.out_regions;
  return launch(&weight_grad<Mma>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
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
  const GradArgs args{p,
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
      status = run_with<GradMma16<BFloat16>>(args, stream);
      break;
    case Type::float16:
      status = run_with<GradMma16<Half>>(args, stream);
      break;
    default:
      status = call.tf32 ? run_with<GradMmaFloat<1>>(args, stream)
                         : run_with<GradMmaFloat<3>>(args, stream);
  }
  if (status != 0 || p.parts == 1) return status;
  return add_block_sparse_parts(call.type, behind, size_of(call), p.parts, call.values, stream);
}

}  // namespace

const BlockSparsePath block_sparse_weight_grad = {fits, workspace, run};

}  // namespace resgrow
