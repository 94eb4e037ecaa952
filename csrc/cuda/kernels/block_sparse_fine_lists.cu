// Thin blocks: the lists of columns that tensor cores multiply, made on the device.
//
// A list has room for its columns in steps of 16: the first step of list i is (columns before it) /
// 16 + i, so that lists are made independently of each other. Within a step, the four columns that
// one shared-memory access reads should lie in different classes (cell modulo 4); column r of class
// c goes to access r of class c, and what a class has too much of fills the gaps of the others.
#include "cuda/kernels/block_sparse_fine_stage.cuh"

namespace resgrow {
namespace fine {
namespace {

constexpr int kThreads = 32 * kClasses;  // a warp per class

struct ListArgs {
  Geometry g;
  Lists lists;
  const int *row, *col, *tap;
  const Bits* values;
  int blocks, buffer, zeros, limit;  // bytes; columns that a list can have
};

// Whether block b comes before (row, chunk).
RESGROW_DEVICE bool before(const ListArgs& a, int b, int row, int chunk) {
  const int at = a.row[b];
  return at < row || (at == row && a.col[b] * a.g.block_in / a.g.chunk < chunk);
}

// The first block that does not come before (row, chunk): 32 probes at a time.
RESGROW_DEVICE int first_block(const ListArgs& a, int row, int chunk) {
  int low = 0, high = a.blocks;
  while (low < high) {
    const int step = (high - low + 31) / 32;
    const int probe = low + static_cast<int>(threadIdx.x % 32) * step;
    const int below = __popc(__ballot_sync(~0u, probe < high && before(a, probe, row, chunk)));
    if (below == 0) break;
    high = min(high, low + below * step);
    low += (below - 1) * step + 1;
  }
  return low;
}

// Bytes from the first buffer to the column's first position; the zeros where it has none: beyond
// the group's channels, or for an index that is no index.
RESGROW_DEVICE int offset_of(const ListArgs& a, int entry, int chunk) {
  const Geometry& g = a.g;
  const int b = entry / g.block_in, tap = a.tap[b];
  const int channel = a.col[b] * g.block_in + entry % g.block_in, slot = channel - chunk * g.chunk;
  if (slot < 0 || slot >= g.staged || channel >= g.group_channels || tap < 0 || tap >= g.taps)
    return a.zeros;
  const int row = tap / g.w.kernel * g.h.dilation, col = tap % g.w.kernel * g.w.dilation;
  const int phase = row % g.h.stride * g.w.phases + col % g.w.stride;
  const int position = (phase * g.h.patch + row / g.h.stride) * g.w.patch + col / g.w.stride;
  return chunk % g.buffers * a.buffer + (slot_cell(g, slot) + position) * kCell;
}

// Where the column of rank r in its class goes: see above. `counts`: columns of each class.
RESGROW_DEVICE int place_of(const int* counts, int accesses, int type, int rank) {
  if (rank >= accesses) {
    int surplus = rank - accesses;
    for (int c = 0; c < type; ++c) surplus += max(counts[c] - accesses, 0);
    for (type = 0; type < kClasses - 1; ++type) {
      const int gaps = max(accesses - counts[type], 0);
      if (surplus < gaps) break;
      surplus -= gaps;
    }
    rank = counts[type] + surplus;
  }
  return rank / 4 * kStep + type * 4 + rank % 4;
}

// Warp c goes through the columns [first, first + count) and either counts those of class c or,
// with `accesses`, puts them into their places.
RESGROW_DEVICE void classify(const ListArgs& a, int chunk, int first, int count, int accesses,
                             int* counts, int* places) {
  const int type = threadIdx.x / 32, lane = threadIdx.x % 32;
  int rank = 0;
  for (int i = 0; i < count; i += 32) {
    const bool mine =
        i + lane < count && offset_of(a, first + i + lane, chunk) / kCell % kClasses == type;
    const unsigned votes = __ballot_sync(~0u, mine);
    if (mine && accesses > 0) {
      const int before_me = rank + __popc(votes & ((1u << lane) - 1));
      places[place_of(counts, accesses, type, before_me)] = first + i + lane;
    }
    rank += __popc(votes);
  }
  if (accesses == 0 && lane == 0) counts[type] = rank;
}

// The registers of lane (output g, column c): with k = 2c, 2c + 1, 2c + 8, 2c + 9 for places 4c to
// 4c + 3. Column n of output tile j is output 4 (n / 2) + 2 j + n % 2: a thread's sums are then
// four neighbouring outputs.
RESGROW_DEVICE uint4 registers_of(const ListArgs& a, const int* places, int lane, int output) {
  const int base = output + lane / 8 * 4 + lane / 4 % 2;
  unsigned r[4] = {0, 0, 0, 0};
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int entry = places[lane % 4 * 4 + i];
    if (entry < 0) continue;
    const Bits* from = a.values + static_cast<Int>(entry) * a.g.block_out + base;
    r[i / 2] |= static_cast<unsigned>(from[0]) << (i % 2 * 16);
    r[2 + i / 2] |= static_cast<unsigned>(from[2]) << (i % 2 * 16);
  }
  return {r[0], r[1], r[2], r[3]};
}

RESGROW_KERNEL(kThreads) void make(ListArgs a) {
  int* counts = shared_memory<int>();
  int* places = counts + kClasses;
  const Geometry& g = a.g;
  const int chunk = blockIdx.x, row = blockIdx.y, thread = threadIdx.x;
  const int from = first_block(a, row, chunk);
  const int to = max(first_block(a, row, chunk + 1), from);
  const int first = from * g.block_in, count = min((to - from) * g.block_in, a.limit);
  const int steps = (count + kStep - 1) / kStep;
  const Int start = first / kStep + static_cast<Int>(row) * g.chunks + chunk;

  for (int i = thread; i < steps * kStep; i += kThreads) places[i] = -1;
  classify(a, chunk, first, count, 0, counts, places);
  __syncthreads();
  classify(a, chunk, first, count, steps * 4, counts, places);
  __syncthreads();

  if (thread == 0) a.lists.ranges[row * g.chunks + chunk] = {static_cast<int>(start), steps};
  for (int i = thread; i < steps * kStep; i += kThreads) {
    const int entry = places[i];
    a.lists.offsets[start * kStep + i] = entry < 0 ? a.zeros : offset_of(a, entry, chunk);
    if (a.lists.entries) a.lists.entries[start * kStep + i] = entry;
  }
  if (!a.lists.weights) return;
  const int parts = g.block_out / kOutputs;
  for (int i = thread; i < steps * parts * 32; i += kThreads) {
    const int step = i / (parts * 32), part = i / 32 % parts;
    a.lists.weights[start * parts * 32 + i] =
        registers_of(a, places + step * kStep, i % 32, part * kOutputs);
  }
}

}  // namespace

int longest_list(const Geometry& g) {
  return (g.chunk / g.block_in + 2) * g.block_in * g.taps;
}

Int list_steps(const BlockSparseCall& call, const Geometry& g) {
  return call.blocks * g.block_in / kStep + static_cast<Int>(g.rows) * g.chunks + 1;
}

bool lists_fit(const Geometry& g) {
  return (kClasses + longest_list(g) + kStep) * 4 <= 48 * 1024;
}

Status make_lists(const BlockSparseCall& call, const Geometry& g, int zeros, const Lists& lists,
                  Stream stream) {
  ListArgs a{g, lists, call.row, call.col, call.tap, static_cast<const Bits*>(call.values)};
  a.blocks = static_cast<int>(call.blocks);
  a.buffer = buffer_cells(g) * kCell;
  a.zeros = zeros;
  a.limit = longest_list(g);
  const size_t shared = (kClasses + a.limit + kStep) * sizeof(int);
  return launch(&make, dim3(g.chunks, g.rows), dim3(kThreads), shared, stream, a);
}

}  // namespace fine
}  // namespace resgrow
