// Chooses the tile of a contraction on tensor cores.
#include "cuda/kernels/squared_grad_tiles.cuh"

namespace resgrow {
namespace {

constexpr Int kInt = (Int(1) << 31) - 1;

SquaredGradTiles tiles_of(Type type) {
  return type == Type::float32    ? squared_grad_tiles_float
         : type == Type::bfloat16 ? squared_grad_tiles_bfloat16
                                  : squared_grad_tiles_half;
}

// Whether so many values can be copied at once. Groups, strides and the first value are multiples.
bool in_runs(const SquaredGradContraction& a, int run) {
  const Int bytes = run * (a.type == Type::float32 ? 4 : 2);
  const void* const operands[] = {a.x, a.grad};
  for (const void* p : operands) {
    if (reinterpret_cast<unsigned long long>(p) % bytes != 0) return false;
  }
  const Int strides[] = {a.x_sample,    a.x_row,    a.x_col,    a.x_group,
                         a.grad_sample, a.grad_row, a.grad_col, a.grad_group};
  for (const Int stride : strides) {
    if (stride % run != 0) return false;
  }
  return run == kSquaredGradRun || (a.channels % run == 0 && a.outputs % run == 0);
}

Int filled(Int size, Int tile) {
  return (size + tile - 1) / tile * tile;
}

// The one that takes least time for the products of its tiles, those beyond the edges too.
const SquaredGradTile& tile_of(const SquaredGradContraction& a) {
  const SquaredGradTiles tiles = tiles_of(a.type);
  const Int columns = a.kernel[0] * a.kernel[1] * filled(a.channels, kSquaredGradRun);
  const SquaredGradTile* best = nullptr;
  Int least = 0;
  for (int i = 0; i < tiles.count; ++i) {
    const SquaredGradTile& tile = tiles.first[i];
    if (tile.form != a.form || (tile.tf32 && !a.tf32) || !in_runs(a, tile.run)) continue;
    const Int cost =
        filled(a.outputs, tile.cut.rows) * filled(columns, tile.cut.columns) * tile.cost;
    if (best && cost >= least) continue;
    best = &tile;
    least = cost;
  }
  return *best;  // every type has a tile of runs of kSquaredGradRun for every form
}

// Groups of few channels would leave most of a tile empty.
bool fits(const SquaredGradContraction& a) {
  if (a.type == Type::float64) return false;
  if (a.groups > 1 && (a.outputs < 16 || a.kernel[0] * a.kernel[1] * a.channels < 16)) return false;
  // Within a sample values are counted in 32 bits, channels filled up.
  const Int run = kSquaredGradRun;
  return a.height * a.width * a.groups * filled(a.channels, run) <= kInt &&
         a.out_height * a.out_width * a.groups * filled(a.outputs, run) <= kInt;
}

Int workspace(const SquaredGradContraction& a) {
  return squared_grad_sums_bytes(a, squared_grad_walk(a, tile_of(a).cut));
}

Status run(const SquaredGradContraction& a, Stream stream) {
  const SquaredGradTile& tile = tile_of(a);
  const SquaredGradWalk w = squared_grad_walk(a, tile.cut);
  const Status status = tile.run_tiles(a, w, stream);
  return status != 0 ? status : squared_grad_finish(a, w, stream);
}

}  // namespace

const SquaredGradPath squared_grad_tiles{&fits, &workspace, &run};

}  // namespace resgrow
