// The plan of block_sparse_weight_grad: regions and patches of least estimated time.
#include "cuda/kernels/block_sparse_weight_grad.h"
#include "cuda/kernels/device.h"

namespace resgrow {
namespace {

int ceil_div(Int a, Int b) {
  return static_cast<int>((a + b - 1) / b);
}

// Bytes per clock of a multiprocessor: from the second-level cache when all of them read, and of
// shared memory.
constexpr float kCacheRate = 24, kSharedRate = 128;
constexpr Int kMostPixels = 1 << 14;  // of x in a patch: more do not fit into shared memory
constexpr float kPatchClocks = 100;   // barrier, first fragments

// What a block of threads keeps in shared memory beside its two stages.
int table_bytes(const GradPlan& p) {
  return (2 * p.in_pixels + 3 * 16 * p.steps + 3 * kGradPieces + 2 * kGradUnits + 4) *
         static_cast<int>(sizeof(int));
}

GradAxis axis_of(const BlockSparseCall& call, int d, Int size) {
  const auto& s = call.shape;
  const Int in = d == 0 ? s.height : s.width, out = d == 0 ? s.out_height : s.out_width;
  const bool one = s.kernel[d] == 1;
  const int stride = static_cast<int>(s.stride[d]);
  GradAxis a{};
  a.count = ceil_div(out, size);
  a.size = ceil_div(out, a.count);
  a.source_step = one ? stride : 1;
  a.tap_step = static_cast<int>(one ? 0 : s.dilation[d]);
  const int step = one ? 1 : stride;  // from a pixel of y to the next, in pixels of x
  const Int extent = (a.size - 1) * Int{step} + (s.kernel[d] - 1) * a.tap_step + 1;
  a.extent = static_cast<int>(min(extent, kMostPixels));
  a.classes = d == 1 ? step : 1;  // rows need none: a fragment's pixels lie in few of them
  a.pixel_step = d == 1 ? 1 : step;
  a.class_pixels = ceil_div(a.extent, a.classes);
  a.in = static_cast<int>(in);
  a.out = static_cast<int>(out);
  a.stride = stride;
  a.padding = static_cast<int>(s.padding[d]);
  return a;
}

// Places of a row of x such that from the last pixel of a row of y to the first of the next it is
// as far as between neighbours, up to multiples of 8: the 8 rows of a matrix are in different
// banks.
int row_pixels(const GradAxis& down, const GradAxis& right) {
  const int least = right.classes * right.class_pixels;
  if (right.size % 8 == 0) return least;  // no matrix has pixels of two rows
  for (int filled = least; filled < least + 8; ++filled)
    if ((filled * down.pixel_step - right.size) % 8 == 0) return filled;
  return least;
}

// Of at most `steps` steps, the patch with the least to do: pixels of y count twice, as they are
// multiplied, too.
void choose_patch(const BlockSparseCall& call, int steps, GradPlan& p) {
  const auto& s = call.shape;
  const int fewest = ceil_div(s.out_width, 16 * steps);
  float least = 0;
  for (int count = fewest; count < fewest + 8 && count <= s.out_width; ++count) {
    const GradAxis x = axis_of(call, 1, ceil_div(s.out_width, count));
    const GradAxis y = axis_of(call, 0, max(16 * steps / x.size, 1));
    const int its_steps = ceil_div(Int{x.size} * y.size, 16);
    const float work = float(x.count) * y.count * (float(x.extent) * y.extent + 32 * its_steps);
    if (least != 0 && work >= least) continue;
    least = work;
    p.axis[0] = y;
    p.axis[1] = x;
    p.steps = its_steps;
  }
  p.row_pixels = row_pixels(p.axis[0], p.axis[1]);
  p.in_pixels = static_cast<int>(min(Int{p.axis[0].extent} * p.row_pixels, kMostPixels));
  p.patches = static_cast<int>(s.samples * p.axis[0].count * p.axis[1].count);
}

struct Load {
  float density;  // of blocks
  int taps, value_bytes, tensor_clocks, processors;
  float values;  // of all blocks
};

// Masks are uneven: room is left for two standard deviations of a random one, whose variance is
// this times its pieces.
float unevenness(const Load& load, const GradPlan& p) {
  return (1 - load.density) * p.sub_in * p.sub_out;
}

// Blocks of threads that a region will need.
int shares_of(const Load& load, const GradPlan& p) {
  const float cells = float(p.in_units) * p.out_units * load.taps, pieces = cells * load.density;
  const float most = min(pieces + 2 * sqrtf(pieces * unevenness(load, p)), cells);
  return max(ceil_div(static_cast<Int>(most), kGradPieces), 1);
}

// Block columns of a region of so many rows whose pieces just fill one block of threads.
int filling_cols(const Load& load, const GradPlan& p) {
  const float v = unevenness(load, p), root = sqrtf(v + kGradPieces) - sqrtf(v);
  return static_cast<int>(root * root / (p.sub_in * p.out_units * load.taps * load.density));
}

// Clocks of one multiprocessor for everything, or 0 where it does not fit.
float estimate(const Load& load, int most_shared, GradPlan& p) {
  // Pixels in shared memory: 8 neighbouring rows of 16 bytes, or 4 of 32, in different banks.
  const int padding = load.value_bytes == 4 ? 32 : 16;
  p.in_pitch = p.in_units * 16 * load.value_bytes + padding;
  p.out_pitch = p.out_units * 16 * load.value_bytes + padding;
  p.stage_bytes = (p.in_pixels * p.in_pitch + 16 * p.steps * p.out_pitch + 127) / 128 * 128;
  p.shared_bytes = 2 * p.stage_bytes + table_bytes(p);
  const GradAxis &down = p.axis[0], &right = p.axis[1];
  if (p.in_pixels >= kMostPixels || p.shared_bytes > most_shared) return 0;
  const float cells = float(p.in_units) * p.out_units * load.taps;
  const int shares = shares_of(load, p);
  const float pieces = cells * load.density / shares;
  const float fragment = 256.0f * load.value_bytes / kSharedRate;
  const float read = float(down.extent * right.extent) * p.in_pitch + 16.0f * p.steps * p.out_pitch;
  const float shared = read / kSharedRate + p.steps * (pieces + kGradWarps) * fragment;
  const float tensor = p.steps * pieces * load.tensor_clocks;
  const float slowest = max(max(read / kCacheRate, shared), tensor);
  p.most_shares = ceil_div(static_cast<Int>(cells), kGradPieces);
  const float tiles = float(p.groups) * p.in_regions * p.out_regions * shares;
  // As many parts as fill the device: each writes its sums, and they are read again.
  const float parts = load.processors / tiles;
  const float sums = parts > 1 ? parts * load.values * 2 * sizeof(float) / kCacheRate : 0;
  return p.patches * tiles * (slowest + kPatchClocks) + sums;
}

// Parts of the patches such that the blocks of threads, one per multiprocessor, end together.
void choose_parts(const BlockSparseCall& call, const Load& load, GradPlan& p) {
  const int shares = shares_of(load, p);
  const Int tiles = Int{p.groups} * p.in_regions * p.out_regions * shares;
  const Int most = max(p.patches / 4, 1);
  float best = 0;
  for (int turns = 1; turns <= 4 && best < 0.9f; ++turns) {
    const Int parts = min(max(call.processors * turns / tiles, Int{1}), most);
    const Int blocks = parts * tiles;
    const float busy = float(blocks) / (float(call.processors) * ceil_div(blocks, call.processors));
    if (busy <= best) continue;
    best = busy;
    p.part_patches = ceil_div(p.patches, parts);
  }
  p.parts = ceil_div(p.patches, p.part_patches);
}

// A pointwise product is one image of one row.
BlockSparseCall as_row(BlockSparseCall call) {
  auto& s = call.shape;
  bool pointwise = true;
  for (int d = 0; d < 2; ++d)
    pointwise &= s.kernel[d] == 1 && s.stride[d] == 1 && s.padding[d] == 0;
  if (!pointwise) return call;
  s.width = s.out_width = s.samples * s.height * s.width;
  s.samples = s.height = s.out_height = 1;
  return call;
}

// Regions of about `cols` x `rows` blocks, made even; false where they are too large.
bool choose_region(const BlockSparseCall& call, int cols, int rows, GradPlan& p) {
  const Int group_rows = call.shape.rows / call.shape.groups;
  p.in_regions = ceil_div(call.shape.cols, cols);
  p.region_cols = ceil_div(call.shape.cols, p.in_regions);
  p.in_units = p.region_cols * p.sub_in;
  p.out_regions = ceil_div(group_rows, rows);
  p.region_rows = ceil_div(group_rows, p.out_regions);
  p.out_units = p.region_rows * p.sub_out;
  return p.in_units <= kGradUnits && p.out_units <= kGradUnits;
}

}  // namespace

GradPlan plan_weight_grad(const BlockSparseCall& given, int most_shared) {
  const BlockSparseCall call = as_row(given);
  const auto& s = call.shape;
  const int taps = static_cast<int>(s.kernel[0] * s.kernel[1]);
  const bool is_float = call.type == Type::float32;
  const Load load{float(call.blocks) / (float(s.rows) * s.cols * taps),
                  taps,
                  is_float ? 4 : 2,
                  is_float ? (call.tf32 ? 6 : 18) : 3,
                  call.processors,
                  float(call.blocks) * s.block_in * s.block_out};
  GradPlan best{};
  float least = 0;
  GradPlan p{};
  p.samples = static_cast<int>(s.samples);
  p.groups = static_cast<int>(s.groups);
  p.sub_in = static_cast<int>(s.block_in / 16);
  p.sub_out = static_cast<int>(s.block_out / 16);
  const auto consider = [&](int cols, int rows) {
    if (!choose_region(call, cols, rows, p)) return false;
    const float clocks = estimate(load, most_shared, p);
    if (clocks != 0 && (least == 0 || clocks < least)) {
      least = clocks;
      best = p;
      best.exists = true;
    }
    return true;
  };
  for (int steps = 1; steps <= 8; steps *= 2) {
    choose_patch(call, steps, p);
    bool fits = true;
    for (int rows = 1; fits && rows < 2 * s.rows / s.groups; rows *= 2) {
      fits = consider(1, rows);
      for (int cols = 2; consider(cols, rows) && cols < s.cols;) cols *= 2;
      consider(max(filling_cols(load, p), 1), rows);
    }
  }
  if (best.exists) choose_parts(call, load, best);
  return best;
}

}  // namespace resgrow
