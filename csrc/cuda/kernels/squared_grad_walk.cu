// The cut of squared_grad's contractions, and the kernel that adds up their parts.
#include "cuda/kernels/squared_grad_walk.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = 256;

Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

// The number of parts with which the device is done first: rounds of blocks times the length of the
// longest. Of those that give the same length the fewest, and never more than fill eight rounds:
// their sums take memory.
Int best_parts(Int tiles, Int units, Int unit, Int slots, Int overhead) {
  Int best = 1, least = -1;
  for (Int rounds = 1; rounds <= 8; ++rounds) {
    const Int fit = min(max(rounds * slots / tiles, Int(1)), units);
    const Int longest = ceil_div(units, fit), parts = ceil_div(units, longest);
    const Int cost = ceil_div(tiles * parts, slots) * (longest * unit + overhead);
    if (least >= 0 && cost >= least) continue;
    best = parts;
    least = cost;
  }
  return best;
}

// How a block of add_parts is cut: so many channels (side by side, as the parts are read), of which
// each has so many threads for its taps, and so many taps before the block writes. Taps lie side by
// side in H, so sums pass through shared memory, channels an odd number of words apart.
struct AddPlan {
  int channels, threads_per_channel, taps, pitch;
};

// Eight loads are in flight at once: there may be few weights and many parts. They are added in
// order all the same.
constexpr int kFlight = 8;

template <class A>
RESGROW_DEVICE A sum_of_parts(const A* sums, int parts, Int size) {
  A sum = 0;
  int part = 0;
  for (; part + kFlight <= parts; part += kFlight) {
    A some[kFlight];
    RESGROW_UNROLL
    for (int i = 0; i < kFlight; ++i) some[i] = sums[(part + i) * size];
    RESGROW_UNROLL
    for (int i = 0; i < kFlight; ++i) sum += some[i];
  }
  for (; part < parts; ++part) sum += sums[part * size];
  return sum;
}

template <class A>
RESGROW_KERNEL(kThreads)
void add_parts(const SquaredGradContraction a, const SquaredGradWalk w, const AddPlan plan) {
  A* const shared = shared_memory<A>();
  const int lane = threadIdx.x % plan.channels, way = threadIdx.x / plan.channels;
  const int first = blockIdx.x * plan.channels, taps = static_cast<int>(a.kernel[0] * a.kernel[1]);
  const int here = static_cast<int>(min(Int(plan.channels), a.channels - first));
  const Int rows = a.groups * a.outputs;
  for (Int row = blockIdx.y; row < rows; row += gridDim.y) {
    const A* const sums = static_cast<const A*>(a.workspace) + row * w.columns + first + lane;
    A* const result = static_cast<A*>(a.result) + (row * a.channels + first) * taps;
    for (int start = 0; start < taps; start += plan.taps) {
      const int count = min(plan.taps, taps - start);
      for (int tap = way; tap < count && lane < here; tap += plan.threads_per_channel) {
        shared[lane * plan.pitch + tap] =
            sum_of_parts(sums + (start + tap) * w.column_channels, w.parts, rows * w.columns);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < here * count; i += kThreads) {
        const int channel = i / count, tap = i % count;
        result[Int(channel) * taps + start + tap] = shared[channel * plan.pitch + tap];
      }
      __syncthreads();
    }
  }
}

template <class A>
Status finish(const SquaredGradContraction& a, const SquaredGradWalk& w, Stream stream) {
  const Int rows = a.groups * a.outputs, taps = a.kernel[0] * a.kernel[1];
  const int together = static_cast<int>(taps < 64 ? taps : 64);
  AddPlan plan{kThreads, 1, together, together | 1};
  while (plan.channels > 32 && plan.threads_per_channel < taps) {
    plan.channels /= 2;
    plan.threads_per_channel *= 2;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(a.channels, plan.channels)),
                  static_cast<unsigned>(rows < 65535 ? rows : 65535));
  const size_t shared = sizeof(A) * plan.channels * plan.pitch;
  return launch(&add_parts<A>, grid, dim3(kThreads), shared, stream, a, w, plan);
}

}  // namespace

SquaredGradWalk squared_grad_walk(const SquaredGradContraction& a, const SquaredGradCut& cut) {
  SquaredGradWalk w{};
  w.out_width = divisor_of(a.out_width);
  w.positions = static_cast<int>(a.out_height * a.out_width);
  w.column_channels =
      static_cast<int>(ceil_div(a.channels, cut.channel_multiple) * cut.channel_multiple);
  w.columns = static_cast<int>(a.kernel[0] * a.kernel[1] * w.column_channels);
  const Int groups = cut.across_groups ? 1 : a.groups;
  w.row_tiles = static_cast<int>(ceil_div(a.outputs * a.groups / groups, cut.rows));
  w.column_tiles = static_cast<int>(ceil_div(w.columns, cut.columns));
  w.stages = static_cast<int>(ceil_div(w.positions, cut.depth));
  w.all_stages = a.samples * w.stages;
  w.unit = a.form == SquaredGradForm::per_sample ? w.stages : cut.together;
  const Int units = ceil_div(w.all_stages, w.unit);
  const Int tiles = groups * w.row_tiles * w.column_tiles;
  w.parts = static_cast<int>(
      best_parts(tiles, units, w.unit, kSquaredGradProcessors * cut.blocks, cut.overhead));
  w.each = units / w.parts;
  w.more = units % w.parts;
  return w;
}

Int squared_grad_sums_bytes(const SquaredGradContraction& a, const SquaredGradWalk& w) {
  return Int(w.parts) * a.groups * a.outputs * w.columns * (a.type == Type::float64 ? 8 : 4);
}

Status squared_grad_finish(const SquaredGradContraction& a, const SquaredGradWalk& w,
                           Stream stream) {
  return a.type == Type::float64 ? finish<double>(a, w, stream) : finish<float>(a, w, stream);
}

}  // namespace resgrow
