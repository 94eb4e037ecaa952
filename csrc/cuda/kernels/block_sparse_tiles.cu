// block_sparse_tiles: blocks of multiples of 16 x 16 on tensor cores, forward and input gradient.
//
// A block of 8 warps computes 256 pixels x 128 targets; a warp has 32 pixels and all 128 targets,
// so that all warps do the same work whatever the mask, and makes visits (tap, 16 summed channels)
// in turn: pixels are loaded once per visit and used for each of up to 8 present pieces of 16 x 16
// weights.
//
// Where the bound lies, per visit and multiprocessor of an H200, at density d of pieces (16-bit):
//   tensor cores   8 d pieces x 8 warps x 4 mma.  mma.sync reaches about 62 % of the peak of 2048
//                  multiply-adds a cycle: 1.6 cycles per mma, 413 d in all.
//   shared memory  (8 d x 512 B for weights + 1 KB for pixels where a piece is present) x 8 warps,
//                  128 B a cycle: 256 d + 64; and what is copied in, 32 d + about 10.
//   second level   about 24 B a cycle: 4 KB d of weights and 8 KB of pixels per tap.
// At d = .25: 103 cycles of tensor cores, 136 of shared memory; from the second level 43 of weights
// and 340 of pixels where each tap fetches its own, so that a 3 x 3 is bound by fetching. Hence
// patches: the pixels that all taps of a step read, with their surroundings, are fetched once per
// chunk of channels (1.5 to 2 x 340 / 9), and ldmatrix, which takes an address per row, serves the
// taps from shared memory. That leaves shared memory as the bound, at 47 % of the tensor cores'
// peak for d = .25 (dense kernels reach 60 to 70 %), and mma.sync from d = .5 on.
//
// A single tap has nothing to share a patch with. There two columns of warps, 128 pixels x 256
// targets, fetch pixels half as often: 4 KB of pixels and 8 d KB of weights per visit of twice the
// targets, or 6 KB for 103 cycles of tensor cores instead of 9. Most such layers are bound by
// device memory then.
//
// wgmma (sm_90a) is not used: on pieces of 16 targets it is m64n16k16, which is issued at half its
// rate at best, no more than mma.sync reaches; it could pay for blocks of 64 targets. Copies by TMA
// to a cluster would halve what 1 x 1 products fetch. Neither has been measured.
//
// Weights and patches go through rings of three stages filled by cp.async, with one barrier per
// round of up to 32 pieces. Rows of patches and pieces are swizzled so that ldmatrix is free of
// bank conflicts. A block has the whole sum of its tile, or a part of it where there are too few
// tiles for the device; parts are added in their order, so that results do not depend on
// scheduling.
#include "cuda/kernels/block_sparse_tiles_feed.cuh"

namespace resgrow {
namespace {

constexpr Int kMostInt = 0x7fffffff;
constexpr Int kProcessors = 128;  // about as many as large devices have

Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}
Int min_of(Int a, Int b) {
  return a < b ? a : b;
}
Int round_up(Int a, Int to) {
  return ceil_div(a, to) * to;
}

// The product as both directions see it, and how it is tiled.
struct Plan {
  bool forward;
  Int sums, targets;         // channels of a group
  Int lines, width;          // of the largest class of target pixels
  Int classes, taps, tiles;  // tiles of targets per group
  Int warps, columns, strips, pitch, patch_rows, log_units, most_visits, splits;
  bool whole;
};

Int unit_values(const BlockSparseCall& c) {
  return c.type == Type::float32 ? 4 : 8;
}

Int target_pixels(const BlockSparseCall& c) {
  const BlockSparseShape& s = c.shape;
  return c.product == BlockSparseProduct::forward ? s.samples * s.out_height * s.out_width
                                                  : s.samples * s.height * s.width;
}

Int pixels_of_block(const Plan& p) {
  return p.warps * kTilesWarpPixels / p.columns;
}
// Of a stage. Small blocks have small ones, so that a multiprocessor has room for several; a visit
// of two columns has up to 16 pieces.
Int piece_bytes(const Plan& p) {
  return p.warps < 8 && p.columns == 1 ? 8 * 1024 : 16 * 1024;
}
size_t memory_bytes(const Plan& p) {
  return tiles_memory_bytes(p.patch_rows, p.log_units, piece_bytes(p));
}

// Rows of a patch that serves all taps, for tiles of `pixels`.
Int whole_rows(const BlockSparseCall& c, const Plan& p, Int pixels, Int strip, Int pitch) {
  const BlockSparseShape& s = c.shape;
  const Int reach = (s.kernel[0] - 1) * s.dilation[0] / s.stride[0];
  const Int shortest = p.forward ? s.out_height : s.height / s.stride[0];
  const Int per_image = shortest > 0 ? shortest : 1;
  const Int spanned = pixels % strip == 0 ? pixels / strip : (pixels - 2) / strip + 2;
  const Int rows = min_of(spanned, s.samples * p.strips * p.lines);
  const Int ends = rows < 2 ? 0 : min_of((rows - 2) / per_image + 1, s.samples * p.strips - 1);
  return (rows + (ends + 1) * reach) * pitch;
}

// Whether a step's patch serves all taps, and how wide its rows are. The sum's order follows from
// this, and from the splits: they are chosen by the layer's sizes alone, for tiles of 8 warps.
void choose_patch(const BlockSparseCall& c, Plan& p) {
  const BlockSparseShape& s = c.shape;
  const Int pixels = pixels_of_block(p);
  const Int reach = (s.kernel[1] - 1) * s.dilation[1] / s.stride[1];
  const size_t room = static_cast<size_t>(most_shared_memory());
  const bool chosen = p.log_units != 0, each = p.taps == 1 || (chosen && !p.whole);
  double least = chosen && p.whole ? 1e30 : static_cast<double>(p.taps);
  if (!chosen || !p.whole) {
    p.whole = false;
    p.strips = 1, p.pitch = 1, p.patch_rows = pixels;
    if (!chosen) p.log_units = tiles_memory_bytes(pixels, 3, piece_bytes(p)) <= room ? 3 : 2;
  }
  if (each) return;
  const Int planes = p.forward ? s.stride[0] * s.stride[1] : 1;
  // Fewer strips have longer lines: fewer lines of surroundings for fewer columns of them.
  for (Int strips = 1; strips <= min_of(p.width, 64); ++strips) {
    Plan tried = p;
    const Int strip = ceil_div(p.width, strips);
    tried.strips = strips;
    tried.whole = true;
    // Lines of a multiple of 8 rows beyond the strip keep 8 neighbouring pixels in different banks
    // where they go over the end of a line.
    tried.pitch = strip + round_up(reach, 8);
    tried.patch_rows = whole_rows(c, tried, pixels, strip, tried.pitch);
    tried.log_units = 2;
    if (memory_bytes(tried) > room) continue;
    if (tried.patch_rows > kMostShift) continue;
    const double lost = static_cast<double>(strip * strips) / static_cast<double>(p.width);
    const Int fetched = planes * (tried.patch_rows / tried.pitch) * (strip + reach);
    const double fetches = lost * lost * static_cast<double>(fetched) / static_cast<double>(pixels);
    if (fetches >= least) continue;
    least = fetches;
    p = tried;
  }
}

Int pixels_of(const BlockSparseCall& c, const Plan& p) {
  return c.shape.samples * p.lines * p.strips * ceil_div(p.width, p.strips);
}
Int blocks_of(const BlockSparseCall& c, const Plan& p) {
  return ceil_div(pixels_of(c, p), pixels_of_block(p)) * p.tiles * c.shape.groups * p.classes;
}

// Fewer warps per block share less, but fill the device with less left over. What a multiprocessor
// with so many warps reaches of its speed is an estimate. A tile's time follows its pieces, so that
// targets it does not have cost nothing.
double cost_of(const BlockSparseCall& c, const Plan& p) {
  const Int turns = ceil_div(blocks_of(c, p), c.processors > 0 ? c.processors : 1);
  // A block takes a kilobyte beyond its own.
  const size_t room = static_cast<size_t>(most_shared_memory()) + 1024;
  const Int together = min_of(turns, static_cast<Int>(room / (memory_bytes(p) + 1024)));
  const Int resident = min_of(together * p.warps, 8);
  const double speed = resident >= 8 ? 1.0 : resident >= 6 ? 0.9 : resident >= 4 ? 0.7 : 0.4;
  const double sharing = p.warps >= 8 ? 1.0 : p.warps >= 4 ? 1.08 : 1.2;
  const double filled =
      static_cast<double>(p.targets) / static_cast<double>(p.tiles * p.columns * kWarpTargets * 16);
  return static_cast<double>(turns * p.warps) * filled * sharing / speed;
}

// Two columns of warps halve how often pixels are fetched, and double it for weights, which at low
// density are less. With patches, pixels are fetched little.
bool wide(const BlockSparseCall& c, const Plan& p) {
  return !p.whole && p.warps > 2 && p.targets > kWarpTargets * 16 && c.type != Type::float32 &&
         tiles_lists_fit(p.most_visits, 2);
}

Plan plan_of(const BlockSparseCall& c) {
  const BlockSparseShape& s = c.shape;
  Plan p{};
  p.forward = c.product == BlockSparseProduct::forward;
  const Int inputs = s.channels / s.groups, outputs = s.outputs / s.groups;
  p.sums = p.forward ? inputs : outputs;
  p.targets = p.forward ? outputs : inputs;
  p.lines = p.forward ? s.out_height : ceil_div(s.height, s.stride[0]);
  p.width = p.forward ? s.out_width : ceil_div(s.width, s.stride[1]);
  p.classes = p.forward ? 1 : s.stride[0] * s.stride[1];
  p.taps = s.kernel[0] * s.kernel[1];
  p.columns = 1;
  Plan best{};
  for (p.warps = 8; p.warps >= 2; p.warps /= 2) {
    choose_patch(c, p);
    const Int chunk = unit_values(c) << p.log_units;
    p.most_visits = ceil_div(p.sums, chunk) * (chunk / 16) * p.taps;
    p.columns = wide(c, p) ? 2 : 1;
    if (p.columns == 2) p.patch_rows = pixels_of_block(p);
    p.tiles = ceil_div(p.targets, p.columns * kWarpTargets * 16);
    const bool room = memory_bytes(p) <= static_cast<size_t>(most_shared_memory());
    if (room && (best.warps == 0 || cost_of(c, p) < cost_of(c, best))) best = p;
    p.columns = 1;
  }
  // Where tiles are fewer than multiprocessors, several blocks add up one, of 16 visits at least.
  const Int tiles = ceil_div(target_pixels(c), 128) * ceil_div(p.targets, 128) * s.groups;
  const Int parts = min_of(kProcessors / (tiles > 0 ? tiles : 1), best.most_visits / 16);
  best.splits = parts < 1 ? 1 : min_of(parts, 16);
  return best;
}

bool aligned(const void* p) {
  return reinterpret_cast<unsigned long long>(p) % 16 == 0;
}

bool fits(const BlockSparseCall& c) {
  if (c.product == BlockSparseProduct::weight_grad || c.type == Type::float64) return false;
  const BlockSparseShape& s = c.shape;
  const bool forward = c.product == BlockSparseProduct::forward;
  const void* source = forward ? c.x : c.y;
  if (s.block_out % 16 != 0 || s.block_in % 16 != 0) return false;
  if ((forward ? s.channels : s.outputs) % unit_values(c) != 0) return false;
  if (!aligned(source) || !aligned(c.values)) return false;
  for (int i = 0; i < 2; ++i) {
    const Int input = i == 0 ? s.height : s.width;
    const Int reach = (s.kernel[i] - 1) * s.dilation[i];
    if (input + s.padding[i] > 8192 || reach > 8192 || s.stride[i] > 128) return false;
  }
  const Plan p = plan_of(c);
  if (p.warps == 0) return false;
  const Int lists = p.classes * s.groups * p.tiles;
  return p.taps <= kTilesTaps && tiles_lists_fit(p.most_visits, p.columns) && p.classes <= 65535 &&
         pixels_of(c, p) <= kMostInt / 2 &&
         lists * p.most_visits * p.columns * kWarpTargets <= kMostInt &&
         c.blocks * (s.block_out * s.block_in / 16) <= kMostInt;
}

// The workspace: parts of the sums, then the lists, each aligned for its loads.
struct Workspace {
  Int partial_step, rounds, visits, pieces, rounds_of, bytes;  // places in it
};
Workspace workspace_of(const BlockSparseCall& c, const Plan& p) {
  const Int lists = p.classes * c.shape.groups * p.tiles, visits = lists * p.most_visits;
  const Int targets = p.targets * c.shape.groups;
  Workspace w{};
  w.partial_step = round_up(target_pixels(c) * targets, 4);
  w.rounds = p.splits > 1 ? w.partial_step * p.splits * static_cast<Int>(sizeof(float)) : 0;
  w.visits = w.rounds + visits * static_cast<Int>(sizeof(TilesRound));
  w.pieces = w.visits + visits * static_cast<Int>(sizeof(int));
  w.rounds_of = w.pieces + visits * p.columns * kWarpTargets * static_cast<Int>(sizeof(int));
  w.bytes = w.rounds_of + lists * static_cast<Int>(sizeof(int));
  return w;
}

Int workspace(const BlockSparseCall& c) {
  return workspace_of(c, plan_of(c)).bytes;
}

TilesArgs args_of(const BlockSparseCall& c, const Plan& p) {
  const BlockSparseShape& s = c.shape;
  TilesArgs a{};
  for (int i = 0; i < 2; ++i) {
    const Int input = i == 0 ? s.height : s.width, output = i == 0 ? s.out_height : s.out_width;
    a.axis[i] = {static_cast<int>(s.kernel[i]),  static_cast<int>(s.stride[i]),
                 static_cast<int>(s.padding[i]), static_cast<int>(s.dilation[i]),
                 static_cast<int>(input),        static_cast<int>(output)};
  }
  a.samples = static_cast<int>(s.samples);
  a.groups = static_cast<int>(s.groups);
  a.source = p.forward ? c.x : c.y;
  a.values = c.values;
  a.source_channels = static_cast<int>(p.sums * s.groups);
  a.source_group = static_cast<int>(p.sums);
  a.target_group = static_cast<int>(p.targets);
  a.row = c.row, a.col = c.col, a.tap = c.tap;
  a.blocks = static_cast<int>(c.blocks);
  a.rows = static_cast<int>(s.rows), a.cols = static_cast<int>(s.cols);
  a.block_out = static_cast<int>(s.block_out), a.block_in = static_cast<int>(s.block_in);
  a.strips = static_cast<int>(p.strips);
  a.strip = static_cast<int>(ceil_div(p.width, p.strips));
  a.whole = p.whole;
  a.pitch = static_cast<int>(p.pitch);
  a.patch_rows = static_cast<int>(p.patch_rows);
  a.log_units = static_cast<int>(p.log_units);
  a.piece_bytes = static_cast<int>(piece_bytes(p));
  a.pieces = a.piece_bytes / static_cast<int>(16 * 16 * (16 / unit_values(c)));
  a.columns = static_cast<int>(p.columns);
  a.target_tiles = static_cast<int>(p.tiles);
  a.splits = static_cast<int>(p.splits);
  const Workspace w = workspace_of(c, p);
  Byte* base = static_cast<Byte*>(c.workspace);
  a.partial = reinterpret_cast<float*>(base);
  a.partial_step = w.partial_step;
  a.lists = {reinterpret_cast<int*>(base + w.rounds_of),
             reinterpret_cast<TilesRound*>(base + w.rounds),
             reinterpret_cast<int*>(base + w.visits), reinterpret_cast<int*>(base + w.pieces),
             static_cast<int>(p.most_visits)};
  a.output = output_of(c);
  return a;
}

Status run(const BlockSparseCall& c, Stream stream) {
  const Plan p = plan_of(c);
  const TilesArgs a = args_of(c, p);
  const Status listed = launch_tiles_lists(a, p.forward, c.type, stream);
  if (listed != 0) return listed;
  const Int pixel_tiles = ceil_div(pixels_of(c, p), pixels_of_block(p));
  const dim3 grid(static_cast<unsigned>(pixel_tiles * p.tiles * a.groups),
                  static_cast<unsigned>(p.classes), static_cast<unsigned>(p.splits));
  const TilesLaunch as{p.forward, grid, static_cast<unsigned>(p.warps * 32), memory_bytes(p),
                       target_pixels(c)};
  switch (c.type) {
    case Type::bfloat16:
      return launch_tiles_bfloat16(a, as, stream);
    case Type::float16:
      return launch_tiles_float16(a, as, stream);
    default:
      return c.tf32 ? launch_tiles_tf32(a, as, stream) : launch_tiles_float32(a, as, stream);
  }
}

}  // namespace

const BlockSparsePath block_sparse_tiles = {fits, workspace, run};

}  // namespace resgrow
