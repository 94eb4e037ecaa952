// Channels in short runs (channels_last): memory as rows of whole periods of the channels, so that
// a column has one channel. A thread goes down the columns of one vector, their slopes and sums in
// registers.
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/tristate_relu.cuh"

namespace resgrow {

// Adds what the block's threads found for its columns, down the lines, then over each run.
// sums: (lines, width * count).
template <class A>
RESGROW_DEVICE void add_columns(const TriStatePlan& plan, A* sums, Int band, int tile) {
  const int columns = plan.tile;
  // Where columns are few, several threads share one; each begins with a line that only it reads.
  const int shares = max(1, min(plan.lines, kTriStateThreads / columns));
  __syncthreads();
  for (int i = threadIdx.x; i < shares * columns; i += kTriStateThreads) {
    A sum = sums[i];
    for (int line = i / columns + shares; line < plan.lines; line += shares) {
      sum += sums[line * columns + i % columns];
    }
    sums[i] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; shares > 1 && i < columns; i += kTriStateThreads) {
    A sum = sums[i];
    for (int share = 1; share < shares; ++share) sum += sums[share * columns + i];
    sums[i] = sum;
  }
  __syncthreads();
  // As many lanes to a run as its length fills.
  int lanes = 1;
  while (lanes < kWarp && 2 * lanes <= plan.run) lanes *= 2;
  const int begin = tile * columns, end = min(begin + columns, plan.cols);
  const int first = begin / plan.run, last = (end - 1) / plan.run;
  for (int group = first; group <= last; group += kTriStateThreads / lanes) {
    const int run = group + threadIdx.x / lanes;
    A sum = A(0);
    if (run <= last) {
      const int from = max(run * plan.run, begin) - begin;
      const int to = min((run + 1) * plan.run, end) - begin;
      for (int i = from + threadIdx.x % lanes; i < to; i += lanes) sum += sums[i];
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    if (run <= last && threadIdx.x % lanes == 0) *slot_sum<A>(plan, band, run, tile) = sum;
  }
}

template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
RESGROW_KERNEL_OF(kTriStateThreads, resident(SUMS, ALIGNED))
void tristate_columns(TriStatePlan plan) {
  using Thread = TriStateThread<T, FORWARD, SUMS, ALIGNED>;
  using A = typename Thread::A;
  constexpr int count = Thread::count;
  const TriStatePass& pass = plan.pass;
  const int line = threadIdx.x / plan.width, place = threadIdx.x % plan.width;
  const int tile = blockIdx.x % static_cast<unsigned>(plan.tiles);
  const Int band = blockIdx.x / static_cast<unsigned>(plan.tiles);
  const Int row = band * plan.lines * plan.rows + line;
  const int column = tile * plan.tile + place * count;
  Thread thread(pass);
  A sum_w[count];
  RESGROW_UNROLL
  for (int j = 0; j < count; ++j) sum_w[j] = A(0);
  if (line < plan.lines && column < plan.cols) {
    const int run = column / plan.run, channels = static_cast<int>(pass.channels);
    int channel = run % channels, inside = column - run * plan.run;
    Int gates[count];
    RESGROW_UNROLL
    for (int j = 0; j < count; ++j) {
      gates[j] = channel * pass.w_stride;
      if (++inside < plan.run) continue;
      inside = 0;
      if (++channel == channels) channel = 0;
    }
    bool open[count];
    read_gates(pass.w, pass.w_type, gates, open);
    A width[count];
    RESGROW_UNROLL
    for (int j = 0; j < count; ++j) width[j] = open[j] ? A(1) : A(0);
    // Of the last, shorter row a vector may be there in part.
    const Int whole = plan.full_rows + (column + count <= plan.rest ? 1 : 0);
    const int left = static_cast<int>(max(min(whole - row, Int(plan.lines) * plan.rows), Int(0)));
    const int n = (left + plan.lines - 1) / plan.lines;
    const Int first = row * plan.cols + column, step = Int(plan.lines) * plan.cols;
    thread.vectors(first, step, n, width, sum_w);
    if (n < plan.rows && row + Int(n) * plan.lines == plan.full_rows) {
      RESGROW_UNROLL
      for (int j = 0; j < count; ++j) {
        if (column + j < plan.rest) thread.value(first + n * step + j, width[j], sum_w[j]);
      }
    }
  }
  if constexpr (SUMS) {
    A* shared = shared_memory<A>();
    if (line < plan.lines) {
      RESGROW_UNROLL
      for (int j = 0; j < count; ++j) {
        shared[kWarp + line * plan.tile + place * count + j] = sum_w[j];
      }
    }
    add_columns(plan, shared + kWarp, band, tile);
    const A sum = block_sum(thread.sum_d, shared);
    if (threadIdx.x == 0) block_sums<A>(plan)[blockIdx.x] = sum;
  }
}

namespace {

template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
struct Columns {
  static Status run(const TriStatePlan& plan, Stream stream) {
    using A = typename Values<T>::Compute;
    const size_t shared = SUMS ? (kWarp + plan.lines * plan.tile) * sizeof(A) : 0;
    return launch(&tristate_columns<T, FORWARD, SUMS, ALIGNED>,
                  dim3(static_cast<unsigned>(plan.blocks)), dim3(kTriStateThreads), shared, stream,
                  plan);
  }
};

}  // namespace

Status launch_tristate_columns(const TriStatePlan& plan, Stream stream) {
  return for_type<Columns>(plan, stream);
}

}  // namespace resgrow
