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
constexpr int kMostSlots = 38400;  // of a list: as many as shared memory has room for
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
  int width;         // groups of 16 targets
  int* slots;        // [visit][group of 16 targets]: place in values, or -1
  unsigned* before;  // pieces of the visits before << 16 | those of the first column among them
  int* present;      // numbers of the visits that have pieces
  int* first;        // visit that begins a round
  int* rank;         // of each tap in the class, or -1
  int* tap_at;       // the other way
  int* plane;        // rank of the first tap of the same patch
  unsigned* scratch;
};
RESGROW_DEVICE Table table_of(int visits, int columns) {
  Table t;
  t.width = columns * kWarpTargets;
  t.slots = shared_memory<int>();
  t.before = reinterpret_cast<unsigned*>(t.slots + visits * t.width);
  t.present = reinterpret_cast<int*>(t.before + visits + 1);
  t.first = t.present + visits + 1;
  t.rank = t.first + visits + 1;
  t.tap_at = t.rank + kTilesTaps;
  t.plane = t.tap_at + kTilesTaps;
  t.scratch = reinterpret_cast<unsigned*>(t.plane + kTilesTaps);
  return t;
}
size_t table_bytes(int visits, int columns) {
  return sizeof(int) * (static_cast<size_t>(visits) * (columns * kWarpTargets + 3) + 3 +
                        3 * kTilesTaps + kThreads / 32);
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

struct Block {
  int number, row, col, tap;
};
struct ListOf {
  int taps, subs, group, target;  // target: its first group of 16
};

// Notes a block in the slots, if it is one of the list's.
template <bool forward>
RESGROW_DEVICE void note(const TilesArgs& a, const Table& t, const ListOf& list, const Block& b) {
  const int rows_of_group = a.rows / a.groups, all_taps = a.axis[0].kernel * a.axis[1].kernel;
  if (b.row < 0 || b.row >= a.rows || b.col < 0 || b.col >= a.cols || b.tap < 0 ||
      b.tap >= all_taps)
    return;
  const int rank = t.rank[b.tap], group = a.groups == 1 ? 0 : b.row / rows_of_group;
  if (rank < 0 || group != list.group) return;
  const int out_parts = a.block_out / 16, in_parts = a.block_in / 16;
  const int out0 = (b.row - group * rows_of_group) * out_parts, in0 = b.col * in_parts;
  const int place = b.number * a.block_in * out_parts;  // in 16 values
  const int sums = (a.source_group + 15) / 16;          // blocks at the edge reach beyond
  for (int out = 0; out < out_parts; ++out) {
    for (int in = 0; in < in_parts; ++in) {
      const int target = (forward ? out0 + out : in0 + in) - list.target;
      const int k = forward ? in0 + in : out0 + out;
      if (target < 0 || target >= t.width || k >= sums) continue;
      const int visit = (k / list.subs * list.taps + rank) * list.subs + k % list.subs;
      t.slots[visit * t.width + target] = place + in * a.block_out + out;
    }
  }
}

// Notes all blocks; several are loaded at once, since waiting for them is most of the time.
template <bool forward>
RESGROW_DEVICE void note_blocks(const TilesArgs& a, const Table& t, const ListOf& list) {
  constexpr int at_once = 4;
  for (int i = static_cast<int>(threadIdx.x); i < a.blocks; i += at_once * kThreads) {
    Block blocks[at_once];
    RESGROW_UNROLL
    for (int u = 0; u < at_once; ++u) {
      const int number = i + u * kThreads;
      blocks[u] = {number, -1, 0, 0};
      if (number < a.blocks) blocks[u] = {number, a.row[number], a.col[number], a.tap[number]};
    }
    RESGROW_UNROLL
    for (int u = 0; u < at_once; ++u) note<forward>(a, t, list, blocks[u]);
  }
}

// The groups of targets that have a piece in visit v.
RESGROW_DEVICE unsigned targets_of(const Table& t, int v) {
  unsigned targets = 0;
  for (int j = 0; j < t.width; ++j)
    targets |= static_cast<unsigned>(t.slots[v * t.width + j] >= 0) << j;
  return targets;
}

// Numbers the visits that have pieces. Returns how many there are.
RESGROW_DEVICE int compact(const Table& t, int visits) {
  constexpr unsigned left = (1u << kWarpTargets) - 1;
  const int share = (visits + kThreads - 1) / kThreads;
  const int from = min(static_cast<int>(threadIdx.x) * share, visits);
  const int to = min(from + share, visits);
  unsigned own = 0, number = 0, total, count;
  for (int v = from; v < to; ++v) {
    const unsigned targets = targets_of(t, v);
    own += static_cast<unsigned>(__popc(targets)) << 16 | __popc(targets & left);
    number += targets != 0;
  }
  unsigned next = sum_before(own, t.scratch, total);
  number = sum_before(number, t.scratch, count);
  for (int v = from; v < to; ++v) {
    const unsigned targets = targets_of(t, v);
    t.before[v] = next;
    next += static_cast<unsigned>(__popc(targets)) << 16 | __popc(targets & left);
    if (targets != 0) t.present[number++] = v;
  }
  if (threadIdx.x == 0) t.before[visits] = total;
  __syncthreads();
  return static_cast<int>(count);
}

struct Steps {
  int taps, subs;
};
// First visit of the step of visit v.
RESGROW_DEVICE int step_of(const Steps& s, const Table& t, int v) {
  const int rank = v / s.subs % s.taps, chunk = v / s.subs / s.taps;
  return (chunk * s.taps + t.plane[rank]) * s.subs;
}

// Cuts the visits into rounds: of one step, and of as many pieces as a stage has room for. Returns
// how many there are.
RESGROW_DEVICE int cut(const Table& t, const Steps& s, int most_pieces, int count) {
  const unsigned quota = static_cast<unsigned>(most_pieces - (t.width - 1));
  const auto begins = [&](int i) {
    if (i == 0) return true;
    const int v = t.present[i], earlier = t.present[i - 1], step = step_of(s, t, v);
    if (step != step_of(s, t, earlier)) return true;
    const unsigned start = t.before[step] >> 16;
    return ((t.before[v] >> 16) - start) / quota != ((t.before[earlier] >> 16) - start) / quota;
  };
  const int share = (count + kThreads - 1) / kThreads;
  const int from = min(static_cast<int>(threadIdx.x) * share, count);
  const int to = min(from + share, count);
  unsigned own = 0, total;
  for (int i = from; i < to; ++i) own += begins(i);
  unsigned next = sum_before(own, t.scratch, total);
  for (int i = from; i < to; ++i) {
    if (begins(i)) t.first[next++] = i;
  }
  if (threadIdx.x == 0) t.first[total] = count;
  __syncthreads();
  return static_cast<int>(total);
}

// A warp writes round r, a lane each visit.
template <bool forward>
RESGROW_DEVICE void write_round(const TilesArgs& a, const Table& t, const Steps& s, int list,
                                int r) {
  const int first = t.first[r], end = t.first[r + 1], i = first + lane_id();
  const int opening = t.present[first], step = step_of(s, t, opening);
  const unsigned begun = t.before[opening], done = t.before[t.present[end - 1] + 1];
  const int left = static_cast<int>((done & 0xffff) - (begun & 0xffff));
  const int piece = static_cast<int>(begun >> 16);
  const Int base = static_cast<Int>(list) * a.lists.most;
  if (i < end) {
    const int v = t.present[i], tap = t.tap_at[v / s.subs % s.taps];
    const TilesTap y = tiles_tap<forward>(a.axis[0], tap / a.axis[1].kernel, a.whole);
    const TilesTap x = tiles_tap<forward>(a.axis[1], tap % a.axis[1].kernel, a.whole);
    const int shift = y.shift * a.pitch + x.shift;
    a.lists.visits[base + i] =
        static_cast<int>(targets_of(t, v)) | v % s.subs << kSubAt | shift << kShiftAt;
    const int own_left = static_cast<int>((t.before[v] & 0xffff) - (begun & 0xffff));
    const int own = static_cast<int>((t.before[v] >> 16) - (begun >> 16));
    int* pieces = a.lists.pieces + base * t.width + piece;
    int at[2] = {own_left, left + own - own_left};  // in each column
    for (int j = 0; j < t.width; ++j) {
      const int slot = t.slots[v * t.width + j];
      if (slot >= 0) pieces[j < kWarpTargets ? at[0]++ : at[1]++] = slot;
    }
    if (i == first) {
      const unsigned origin =
          static_cast<unsigned>(y.origin) << 16 | static_cast<unsigned>(x.origin);
      const bool opens = r == 0 || step_of(s, t, t.present[first - 1]) != step;
      const TilesCounts counts{end - first, static_cast<int>(done >> 16) - piece, left, opens,
                               v / s.subs / s.taps};
      store(a.lists.rounds + base + r,
            make_int4(first, piece, static_cast<int>(packed(counts)), static_cast<int>(origin)));
    }
  }
}

template <bool forward>
RESGROW_KERNEL(kThreads)
void tiles_lists_kernel(TilesArgs a, int subs) {
  const int list = static_cast<int>(blockIdx.x), tile = list % a.target_tiles;
  const int group = list / a.target_tiles % a.groups, residue = list / a.target_tiles / a.groups;
  const int chunks = (a.source_group + 16 * subs - 1) / (16 * subs);
  const Table t = table_of(a.lists.most, a.columns);
  const int taps =
      order_taps<forward>(a, t, residue / a.axis[1].stride, residue % a.axis[1].stride);
  const int visits = chunks * taps * subs;
  for (int i = static_cast<int>(threadIdx.x); i < visits * t.width; i += kThreads) t.slots[i] = -1;
  __syncthreads();
  note_blocks<forward>(a, t, {taps, subs, group, tile * t.width});
  __syncthreads();
  const Steps steps{taps, subs};
  const int rounds = cut(t, steps, a.pieces, compact(t, visits));
  for (int r = warp_id(); r < rounds; r += kThreads / 32)
    write_round<forward>(a, t, steps, list, r);
  if (threadIdx.x == 0) a.lists.rounds_of[list] = rounds;
}

}  // namespace

bool tiles_lists_fit(Int visits, Int columns) {
  return visits * columns * kWarpTargets <= kMostSlots &&
         table_bytes(static_cast<int>(visits), static_cast<int>(columns)) <=
             static_cast<size_t>(most_shared_memory());
}

Status launch_tiles_lists(const TilesArgs& a, bool forward, Type type, Stream stream) {
  const int classes = forward ? 1 : a.axis[0].stride * a.axis[1].stride;
  const unsigned lists = static_cast<unsigned>(classes * a.groups * a.target_tiles);
  const int subs = (1 << a.log_units) / (type == Type::float32 ? 4 : 2);
  const auto kernel = forward ? &tiles_lists_kernel<true> : &tiles_lists_kernel<false>;
  return launch(kernel, dim3(lists), dim3(kThreads), table_bytes(a.lists.most, a.columns), stream,
                a, subs);
}

}  // namespace resgrow
