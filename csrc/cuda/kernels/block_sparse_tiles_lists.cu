// The lists of work of block_sparse_tiles, from the index of present blocks.
//
// One thread block per list looks at all blocks (a few thousand, in the second-level cache), notes
// those of its targets in a table in shared memory and compacts the table by prefix sums: a few
// microseconds, no host, nothing that depends on the blocks' order. Indices out of range are
// skipped, so that none leaves the tensors.
#include "cuda/kernels/block_sparse_tiles.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = 512;
constexpr int kMostVisits = 4800;
constexpr unsigned kFull = 0xffffffffu;

// Sum of `own` over the threads before this one.
RESGROW_DEVICE unsigned sum_before(unsigned own, unsigned* scratch, unsigned& total) {
  unsigned sum = own;
  RESGROW_UNROLL
  for (int d = 1; d < 32; d *= 2) {
    const unsigned below = __shfl_up_sync(kFull, sum, d);
    if (lane_id() >= d) sum += below;
  }
  if (lane_id() == 31) scratch[warp_id()] = sum;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp_id()) before += scratch[w];
    total += scratch[w];
  }
  __syncthreads();
  return before + sum - own;
}

// The list's shared memory.
struct Table {
  int* slots;        // [visit][group of 16 targets]: place in values, or -1
  unsigned* before;  // pieces of the visits before
  int* present;      // numbers of the visits that have pieces
  int* first;        // visit that begins a round
  int* rank;         // of each tap in the class, or -1
  int* tap_at;       // the other way
  int* plane;        // rank of the first tap of the same patch
  unsigned* scratch;
};
RESGROW_DEVICE Table table_of(int visits) {
  Table t;
  t.slots = shared_memory<int>();
  t.before = reinterpret_cast<unsigned*>(t.slots + visits * kVisitTargets);
  t.present = reinterpret_cast<int*>(t.before + visits + 1);
  t.first = t.present + visits + 1;
  t.rank = t.first + visits + 1;
  t.tap_at = t.rank + kTilesTaps;
  t.plane = t.tap_at + kTilesTaps;
  t.scratch = reinterpret_cast<unsigned*>(t.plane + kTilesTaps);
  return t;
}
size_t table_bytes(int visits) {
  return sizeof(int) *
         (static_cast<size_t>(visits) * (kVisitTargets + 3) + 3 + 3 * kTilesTaps + kThreads / 32);
}

// Taps of the class in the order of their planes, then by themselves.
template <bool forward>
RESGROW_DEVICE int order_taps(const TilesArgs& a, const Table& t, int residue_y, int residue_x) {
  const TilesAxis &y = a.axis[0], &x = a.axis[1];
  const int taps = y.kernel * x.kernel, own = static_cast<int>(threadIdx.x);
  const auto plane = [&](int tap) {
    const int ey = tap / x.kernel * y.dilation % y.stride;
    const int ex = tap % x.kernel * x.dilation % x.stride;
    if constexpr (forward) return a.whole ? ey * x.stride + ex : tap;
    if (ey != residue_y || ex != residue_x) return -1;
    return a.whole ? 0 : tap;
  };
  int count = 0, rank = 0, first = 0;
  const int mine = own < taps ? plane(own) : -1;
  for (int tap = 0; tap < taps; ++tap) {
    const int other = plane(tap);
    count += other >= 0;
    first += other >= 0 && other < mine;
    rank += other >= 0 && (other < mine || (other == mine && tap < own));
  }
  if (own < taps) {
    t.rank[own] = mine < 0 ? -1 : rank;
    if (mine >= 0) {
      t.tap_at[rank] = own;
      t.plane[rank] = first;
    }
  }
  return count;
}

// Notes the list's blocks in its slots.
template <bool forward>
RESGROW_DEVICE void note_blocks(const TilesArgs& a, const Table& t, int taps, int subs, int group,
                                int target0) {
  const int rows_of_group = a.rows / a.groups, all_taps = a.axis[0].kernel * a.axis[1].kernel;
  const int out_parts = a.block_out / 16, in_parts = a.block_in / 16;
  const int size = a.block_in * out_parts;      // in 16 values
  const int sums = (a.source_group + 15) / 16;  // blocks at the edge reach beyond
  for (int i = static_cast<int>(threadIdx.x); i < a.blocks; i += kThreads) {
    const int row = a.row[i], col = a.col[i], tap = a.tap[i];
    if (row < 0 || row >= a.rows || col < 0 || col >= a.cols || tap < 0 || tap >= all_taps)
      continue;
    const int rank = t.rank[tap], own_group = a.groups == 1 ? 0 : row / rows_of_group;
    if (rank < 0 || own_group != group) continue;
    const int out0 = (row - group * rows_of_group) * out_parts, in0 = col * in_parts;
    for (int out = 0; out < out_parts; ++out) {
      for (int in = 0; in < in_parts && (forward ? in0 + in : out0 + out) < sums; ++in) {
        const int target = (forward ? out0 + out : in0 + in) - target0;
        const int k = forward ? in0 + in : out0 + out;
        if (target < 0 || target >= kVisitTargets) continue;
        const int visit = (k / subs * taps + rank) * subs + k % subs;
        t.slots[visit * kVisitTargets + target] = i * size + in * a.block_out + out;
      }
    }
  }
}

// Numbers the visits that have pieces, and writes these. Returns how many there are.
RESGROW_DEVICE int compact(const TilesLists& lists, const Table& t, int list, int visits) {
  const int share = (visits + kThreads - 1) / kThreads;
  const int from = min(static_cast<int>(threadIdx.x) * share, visits);
  const int to = min(from + share, visits);
  unsigned own = 0;  // pieces << 16 | visits
  for (int v = from; v < to; ++v) {
    unsigned pieces = 0;
    for (int j = 0; j < kVisitTargets; ++j) pieces += t.slots[v * kVisitTargets + j] >= 0;
    own += pieces << 16 | (pieces > 0);
  }
  unsigned total;
  unsigned next = sum_before(own, t.scratch, total);
  int* pieces = lists.pieces + static_cast<Int>(list) * lists.most * kVisitTargets;
  for (int v = from; v < to; ++v) {
    t.before[v] = next >> 16;
    const unsigned start = next;
    for (int j = 0; j < kVisitTargets; ++j) {
      const int slot = t.slots[v * kVisitTargets + j];
      if (slot < 0) continue;
      pieces[next >> 16] = slot;
      next += 1u << 16;
    }
    if (next == start) continue;
    t.present[next & 0xffff] = v;
    ++next;
  }
  if (threadIdx.x == 0) t.before[visits] = total >> 16;
  __syncthreads();
  return static_cast<int>(total & 0xffff);
}

struct Steps {
  int taps, subs;
};
// First visit of the step of visit v.
RESGROW_DEVICE int step_of(const Steps& s, const Table& t, int v) {
  const int rank = v / s.subs % s.taps, chunk = v / s.subs / s.taps;
  return (chunk * s.taps + t.plane[rank]) * s.subs;
}

// Cuts the visits into rounds: of one step, and of as many pieces as a stage has room for.
template <bool forward>
RESGROW_DEVICE void cut(const TilesArgs& a, const Table& t, const Steps& s, int list, int count) {
  const int quota = a.pieces - (kVisitTargets - 1);
  const auto part = [&](int i) {
    const int v = t.present[i];
    return (t.before[v] - t.before[step_of(s, t, v)]) / quota;
  };
  const auto begins = [&](int i) {
    return i == 0 || step_of(s, t, t.present[i]) != step_of(s, t, t.present[i - 1]) ||
           part(i) != part(i - 1);
  };
  const int share = (count + kThreads - 1) / kThreads;
  const int from = min(static_cast<int>(threadIdx.x) * share, count);
  const int to = min(from + share, count);
  unsigned own = 0, total;
  for (int i = from; i < to; ++i) own += begins(i);
  unsigned next = sum_before(own, t.scratch, total);
  int* visits = a.lists.visits + static_cast<Int>(list) * a.lists.most;
  for (int i = from; i < to; ++i) {
    if (begins(i)) t.first[next++] = i;
    const int v = t.present[i], tap = t.tap_at[v / s.subs % s.taps];
    unsigned targets = 0;
    for (int j = 0; j < kVisitTargets; ++j)
      targets |= static_cast<unsigned>(t.slots[v * kVisitTargets + j] >= 0) << j;
    const TilesTap y = tiles_tap<forward>(a.axis[0], tap / a.axis[1].kernel, a.whole);
    const TilesTap x = tiles_tap<forward>(a.axis[1], tap % a.axis[1].kernel, a.whole);
    const int shift = y.shift * a.pitch + x.shift;
    visits[i] = static_cast<int>(targets) | v % s.subs << 8 | shift << kShiftAt;
  }
  if (threadIdx.x == 0) {
    t.first[total] = count;
    a.lists.rounds_of[list] = static_cast<int>(total);
  }
  __syncthreads();
  TilesRound* rounds = a.lists.rounds + static_cast<Int>(list) * a.lists.most;
  for (int r = static_cast<int>(threadIdx.x); r < static_cast<int>(total); r += kThreads) {
    const int first = t.first[r], end = t.first[r + 1];
    const int v = t.present[first], step = step_of(s, t, v);
    const unsigned last = end < count ? t.before[t.present[end]] : t.before[t.present[end - 1] + 1];
    const int pieces = static_cast<int>(last - t.before[v]);
    const bool opens = r == 0 || step_of(s, t, t.present[t.first[r - 1]]) != step;
    const int tap = t.tap_at[v / s.subs % s.taps], chunk = v / s.subs / s.taps;
    const TilesTap y = tiles_tap<forward>(a.axis[0], tap / a.axis[1].kernel, a.whole);
    const TilesTap x = tiles_tap<forward>(a.axis[1], tap % a.axis[1].kernel, a.whole);
    const int counts = (end - first) | pieces << 8 | static_cast<int>(opens) << 16 | chunk << 17;
    store(rounds + r, make_int4(first, static_cast<int>(t.before[v]), counts,
                                static_cast<int>(static_cast<unsigned>(y.origin) << 16 |
                                                 static_cast<unsigned>(x.origin))));
  }
}

template <bool forward>
RESGROW_KERNEL(kThreads)
void tiles_lists_kernel(TilesArgs a, int subs) {
  const int list = static_cast<int>(blockIdx.x), tile = list % a.target_tiles;
  const int group = list / a.target_tiles % a.groups, residue = list / a.target_tiles / a.groups;
  const int chunks = (a.source_group + 16 * subs - 1) / (16 * subs);
  const Table t = table_of(a.lists.most);
  const int taps =
      order_taps<forward>(a, t, residue / a.axis[1].stride, residue % a.axis[1].stride);
  const int visits = chunks * taps * subs;
  for (int i = static_cast<int>(threadIdx.x); i < visits * kVisitTargets; i += kThreads)
    t.slots[i] = -1;
  __syncthreads();
  note_blocks<forward>(a, t, taps, subs, group, tile * kVisitTargets);
  __syncthreads();
  const int count = compact(a.lists, t, list, visits);
  cut<forward>(a, t, {taps, subs}, list, count);
}

}  // namespace

int tiles_lists_most() {
  return kMostVisits;
}

Status launch_tiles_lists(const TilesArgs& a, bool forward, Type type, Stream stream) {
  const int classes = forward ? 1 : a.axis[0].stride * a.axis[1].stride;
  const unsigned lists = static_cast<unsigned>(classes * a.groups * a.target_tiles);
  const int subs = (1 << a.log_units) / (type == Type::float32 ? 4 : 2);
  const auto kernel = forward ? &tiles_lists_kernel<true> : &tiles_lists_kernel<false>;
  return launch(kernel, dim3(lists), dim3(kThreads), table_bytes(a.lists.most), stream, a, subs);
}

}  // namespace resgrow
