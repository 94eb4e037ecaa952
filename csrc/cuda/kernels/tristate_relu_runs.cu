// Channels in long runs (NCHW): a warp per piece of a run, with the slopes of one channel.
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/tristate_relu.cuh"

namespace resgrow {

template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
RESGROW_KERNEL_OF(kTriStateThreads, resident(SUMS, ALIGNED))
void tristate_runs(TriStatePlan plan) {
  using Thread = TriStateThread<T, FORWARD, SUMS, ALIGNED>;
  using A = typename Thread::A;
  constexpr int count = Thread::count;
  const TriStatePass& pass = plan.pass;
  const int lane = threadIdx.x % kWarp, warps = kTriStateThreads / kWarp;
  Thread thread(pass);
  const Int items = plan.bands * plan.tiles;
  RESGROW_NO_UNROLL
  for (Int item = blockIdx.x * Int(warps) + threadIdx.x / kWarp; item < items;
       item += gridDim.x * Int(warps)) {
    const Int band = item / plan.tiles, tile = item % plan.tiles;
    const Int channel = tile / plan.parts, begin = tile % plan.parts * plan.piece;
    const Int first = (band * pass.channels + channel) * pass.inner + begin;
    const int length = static_cast<int>(min(plan.piece, pass.inner - begin));
    const A open = gate_open(pass.w, pass.w_type, channel * pass.w_stride) ? A(1) : A(0);
    A width[count], sum_w[count];
    RESGROW_UNROLL
    for (int j = 0; j < count; ++j) {
      width[j] = open;
      sum_w[j] = A(0);
    }
    // Vectors lie at multiples of 16 bytes; fewer than a vector's values remain at either end.
    const int head = min(static_cast<int>(-first & (count - 1)), length);
    const int whole = (length - head) / count, tail = (length - head) % count;
    const int left = lane % (kWarp / 2);  // half of the warp at each end
    const bool front = lane < kWarp / 2;
    if (left < (front ? head : tail)) {
      thread.value(first + (front ? left : length - tail + left), open, sum_w[0]);
    }
    thread.vectors(first + head + lane * count, kWarp * count, (whole - lane + kWarp - 1) / kWarp,
                   width, sum_w);
    if constexpr (SUMS) {
      A sum = A(0);
      RESGROW_UNROLL
      for (int j = 0; j < count; ++j) sum += sum_w[j];
      sum = warp_sum(sum);
      if (lane == 0) *slot_sum<A>(plan, band, channel, tile) = sum;
    }
  }
  if constexpr (SUMS) {
    const A sum = block_sum(thread.sum_d, shared_memory<A>());
    if (threadIdx.x == 0) block_sums<A>(plan)[blockIdx.x] = sum;
  }
}

namespace {

template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
struct Runs {
  static Status run(const TriStatePlan& plan, Stream stream) {
    return launch(&tristate_runs<T, FORWARD, SUMS, ALIGNED>,
                  dim3(static_cast<unsigned>(plan.blocks)), dim3(kTriStateThreads),
                  SUMS ? kWarp * sizeof(double) : 0, stream, plan);
  }
};

}  // namespace

Status launch_tristate_runs(const TriStatePlan& plan, Stream stream) {
  return for_type<Runs>(plan, stream);
}

}  // namespace resgrow
