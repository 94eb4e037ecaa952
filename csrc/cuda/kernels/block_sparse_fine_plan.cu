// Thin blocks: how a call is cut into tiles of the output, units, chunks of channels and warps.
#include "cuda/kernels/block_sparse_fine.cuh"

namespace resgrow {
namespace fine {
namespace {

constexpr Int kLargest = 1 << 30;  // of what kernels count in 32 bits
constexpr int kLargestImage = 1 << 15;
constexpr int kMostChunk = 256;

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// A pointwise product has no rows or images: all pixels lie side by side.
bool is_pointwise(const BlockSparseShape& s) {
  for (int i = 0; i < 2; ++i) {
    if (s.kernel[i] != 1 || s.stride[i] != 1 || s.padding[i] != 0) return false;
  }
  return true;
}

Axis axis_of(const BlockSparseShape& s, int i) {
  Axis a{};
  a.in = static_cast<int>(i ? s.width : s.height);
  a.out = static_cast<int>(i ? s.out_width : s.out_height);
  a.kernel = static_cast<int>(s.kernel[i]);
  a.stride = static_cast<int>(s.stride[i]);
  a.padding = static_cast<int>(s.padding[i]);
  a.dilation = a.kernel == 1 ? 1 : static_cast<int>(s.dilation[i]);
  a.phases = a.kernel == 1 ? 1 : a.stride;
  return a;
}

void set_tile(Axis* a, int tile) {
  a->tile = tile;
  a->tiles = ceil_div(a->out, tile);
  a->patch = tile + (a->kernel - 1) * a->dilation / a->stride;
}

void set_tiles(Geometry* g, int rows, int cols) {
  set_tile(&g->h, rows);
  set_tile(&g->w, cols);
  g->positions = g->h.phases * g->w.phases * g->h.patch * g->w.patch;
  g->pitch = g->positions | 1;
  g->runs = ceil_div(g->positions, kAhead);
  g->units = ceil_div(rows * cols, kUnit);
  g->tiles = g->samples * g->h.tiles * g->w.tiles;
}

// Whether the halves of a unit lie 64 bytes apart (modulo 128), for pairs of 4 or 8 positions.
bool halves_part(const Geometry& g, int pair) {
  if (pair == 4) return g.w.tile % 8 == 0;
  return g.w.tile == 4 && g.w.patch % 4 == 2 && g.units % 2 == 0;
}

// Clocks of a multiprocessor's shared memory for a channel of a block's eight tiles. A step of 16
// columns takes 16 per unit and output tile, a seventh more for what classes cannot part and about
// 40 % more where the halves of units meet, and 4.5 per warp for its weights; staging takes 14 for
// 32 channels of a position.
double time_of(const Geometry& g, double columns, int row_warps) {
  const bool parted = halves_part(g, 4) || halves_part(g, 8);
  const double step = g.units * (parted ? 18.4 : 22.4) + (g.units + 1) / 2 * 4.5;
  return columns / kStep * row_warps * step + g.positions * 0.44;
}

// The same where tiles are multiplied as wholes, at about 1080 multiply-adds a clock.
double whole_tiles(const Geometry& g, int row_warps) {
  return static_cast<double>(kLanes) * g.h.tile * g.w.tile * g.taps * kOutputs * row_warps / 1080;
}

// The tile of at most `positions` outputs with the least time per image.
void choose_tile(Geometry* g, int positions, double columns, int row_warps) {
  double least = 0;
  int best = 0;
  for (int cols = 1; cols <= g->w.out && cols <= positions; ++cols) {
    set_tiles(g, positions / cols < g->h.out ? positions / cols : g->h.out, cols);
    const double time = time_of(*g, columns, row_warps) * g->h.tiles * g->w.tiles;
    if (best == 0 || time <= least) {
      least = time;
      best = cols;
    }
  }
  set_tiles(g, positions / best < g->h.out ? positions / best : g->h.out, best);
  g->pair = halves_part(*g, 8) ? 8 : 4;
}

// The larger one, up to kMostChunk.
int at_least(int a, double b) {
  const double larger = a > b ? a : b;
  return larger > kMostChunk ? kMostChunk : static_cast<int>(larger);
}

// Chunks of at most `most` channels that fit `bytes` of shared memory, in as many buffers as are of
// use up to `buffers`; false: not even 16 channels fit.
bool choose_chunk(Geometry* g, int most, int buffers, int bytes) {
  // Places within a patch are kept in 16 bits.
  if (static_cast<Int>(g->h.patch) * g->h.stride >= kLargestImage ||
      static_cast<Int>(g->w.patch) * g->w.stride >= kLargestImage)
    return false;
  const int beyond = 16 % g->block_in == 0 ? 0 : (g->block_in + 6) / 8 * 8;
  const int all = ceil_div(g->group_channels, 16) * 16;
  for (g->chunk = all < most ? all : (most + 15) / 16 * 16; g->chunk >= 16; g->chunk -= 16) {
    g->chunks = ceil_div(g->group_channels, g->chunk);
    g->buffers = g->chunks > 1 ? buffers : 1;
    g->staged = g->chunk + (g->chunks > 1 ? beyond : 0);
    if (static_cast<Int>(buffer_cells(*g)) * g->buffers * kCell > bytes ||
        shared_layout(*g).end > bytes || !lists_fit(*g))
      continue;
    // Chunks of equal size rather than a small last one.
    g->chunk = ceil_div(ceil_div(g->group_channels, g->chunks), 16) * 16;
    g->staged = g->chunk + (g->chunks > 1 ? beyond : 0);
    return true;
  }
  return false;
}

bool countable(const BlockSparseCall& call) {
  const BlockSparseShape& s = call.shape;
  const Int taps = s.kernel[0] * s.kernel[1];
  for (int i = 0; i < 2; ++i) {
    if (s.kernel[i] * s.dilation[i] + s.stride[i] > kLargestImage / 2) return false;
    if (s.padding[i] > kLargest / 8) return false;
  }
  return s.samples * s.height * s.width < kLargest &&
         s.samples * s.out_height * s.out_width < kLargest && s.height < kLargest / 8 &&
         s.width < kLargest / 8 && s.channels < kLargest && s.outputs < kLargest &&
         s.rows * s.block_out < kLargest && (s.cols + 1) * s.block_in < kLargest &&
         taps < kLargestImage && call.blocks * s.block_in < kLargest && s.rows < 65536;
}

// What both kinds of plan begin with; false: this call is not for this path.
bool describe(const BlockSparseCall& call, Geometry* g) {
  const BlockSparseShape& s = call.shape;
  if (call.type != Type::bfloat16 && call.type != Type::float16) return false;
  if (s.block_out % kOutputs != 0 || s.block_in % 16 == 0 || call.blocks < 1) return false;
  if (!countable(call)) return false;
  *g = {};
  g->h = axis_of(s, 0);
  g->w = axis_of(s, 1);
  g->samples = s.samples;
  if (is_pointwise(s)) {
    g->w.in = g->w.out = static_cast<int>(s.samples * s.height * s.width);
    g->h.in = g->h.out = 1;
    g->samples = 1;
  }
  g->channels = s.channels;
  g->outputs = s.outputs;
  g->group_channels = static_cast<int>(s.channels / s.groups);
  g->rows = static_cast<int>(s.rows);
  g->group_rows = static_cast<int>(s.rows / s.groups);
  g->block_in = static_cast<int>(s.block_in);
  g->block_out = static_cast<int>(s.block_out);
  g->taps = g->h.kernel * g->w.kernel;
  return true;
}

// Present columns per channel and row of blocks.
double columns_of(const BlockSparseShape& s, const BlockSparseCall& call) {
  return static_cast<double>(call.blocks) / (s.rows * s.cols);
}

Axis axis_of_y(Axis a) {
  a.in = a.out;
  a.kernel = a.stride = a.dilation = a.phases = 1;
  a.padding = 0;
  return a;
}
// y as something to stage: its own pixels, the outputs of a block of threads at a time.
Geometry geometry_of_y(const BlockSparseShape& s, const Geometry& x, int row_warps) {
  Geometry g = x;
  g.h = axis_of_y(x.h);
  g.w = axis_of_y(x.w);
  g.channels = s.outputs;
  g.group_channels = static_cast<int>(s.outputs / s.groups);
  set_tiles(&g, x.h.tile, x.w.tile);
  g.chunk = g.staged = row_warps * kOutputs;
  g.buffers = 1;
  return g;
}

// The same for the weight gradient, and eight tiles of a chunk: y is read, and staged, too, and
// each turn waits for its loads.
double grad_time(const GradPlan& plan, double columns) {
  const Geometry& g = plan.x;
  const double steps = columns * g.chunk / kStep * plan.row_warps * g.units * 20.4;
  return steps + 0.44 * (g.positions * g.staged + plan.y.positions * plan.y.staged) + 500;
}

// Cuts the pixels into as many parts as fill a large device once, two blocks on each of 132
// multiprocessors: what is computed must not depend on the one at hand, and each part's sums are
// written and read again.
void choose_parts(GradPlan* plan, Int others) {
  constexpr Int kWanted = 132 * 2;
  plan->turns = (plan->x.tiles + kLanes - 1) / kLanes;
  const Int most = others < kWanted ? kWanted / others : 1;
  const Int parts = most < plan->turns ? most : plan->turns;
  plan->part_turns = (plan->turns + parts - 1) / parts;
  plan->parts = (plan->turns + plan->part_turns - 1) / plan->part_turns;
}

}  // namespace

bool make_plan(const BlockSparseCall& call, Plan* plan) {
  Geometry& g = plan->geometry;
  if (!describe(call, &g)) return false;
  const int output_tiles = g.group_rows * (g.block_out / kOutputs);
  plan->threads = output_tiles > 8 ? 512 : 256;
  // Two blocks of 256 threads share a multiprocessor, which keeps 1 KB of each for itself.
  const int most = most_shared_memory();
  const int warps = plan->threads / 32, bytes = plan->threads == 512 ? most : most / 2 - 1024;
  plan->row_warps = 1;
  while (plan->row_warps < warps && plan->row_warps < output_tiles) plan->row_warps *= 2;
  const double columns = columns_of(call.shape, call);
  for (int units = 2 * warps / plan->row_warps; units >= 1; units /= 2) {
    choose_tile(&g, units * kUnit, columns, plan->row_warps);
    // A block that has the multiprocessor to itself must stage while it multiplies, a fourth of the
    // channels at a time; but lists of less than three steps are mostly padding.
    const int quarter = ceil_div(g.group_channels, 4);
    const int channels = plan->threads == 512 ? at_least(quarter, 3 * kStep / columns) : kMostChunk;
    if (!choose_chunk(&g, channels, 2, bytes)) continue;
    plan->shared = shared_layout(g);
    // Lists of uneven length cost a tenth.
    plan->pays = 1.1 * time_of(g, columns, plan->row_warps) < whole_tiles(g, plan->row_warps);
    return true;
  }
  return false;
}

bool make_grad_plan(const BlockSparseCall& call, GradPlan* plan) {
  constexpr int kWarps = 8;
  GradPlan next{};
  Geometry& g = next.x;
  if (!describe(call, &g)) return false;
  const int output_tiles = g.group_rows * (g.block_out / kOutputs);
  const double columns = columns_of(call.shape, call);
  next.row_warps = 1;
  while (next.row_warps < kWarps && next.row_warps < output_tiles) next.row_warps *= 2;
  const Int row_blocks = ceil_div(output_tiles, next.row_warps);
  // As many channels as fill the sums of a row's warps to seven eighths.
  const int share = kWarps / next.row_warps * kGradSteps;
  const int channels = at_least(16, share * kStep * 0.875 / columns) / 16 * 16;
  double least = 0;
  for (int units = 8; units >= 1; units /= 2) {
    choose_tile(&g, units * kUnit, columns, next.row_warps);
    next.y = geometry_of_y(call.shape, g, next.row_warps);
    next.at_y = shared_layout(next.y);
    const int bytes = most_shared_memory() / 2 - 1024 - next.at_y.end;
    if (!choose_chunk(&g, channels, 1, bytes)) continue;
    next.at_x = shared_layout(g);
    next.passes = ceil_div(ceil_div(longest_list(g), kStep), share);
    if (static_cast<Int>(g.chunks) * next.passes >= 65536 ||
        row_blocks * call.shape.groups >= 65536)
      continue;
    const double time = grad_time(next, columns) / (1.0 * g.chunk * g.h.tile * g.w.tile);
    if (least != 0 && time >= least) continue;
    least = time;
    // Lists of uneven length cost a tenth.
    next.pays = 1.1 * grad_time(next, columns) < whole_tiles(g, next.row_warps) * g.chunk;
    *plan = next;
  }
  if (least != 0) choose_parts(plan, plan->x.chunks * row_blocks * call.shape.groups);
  return least != 0;
}

}  // namespace fine
}  // namespace resgrow
