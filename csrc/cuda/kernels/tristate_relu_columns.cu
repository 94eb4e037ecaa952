// Channels in short runs (channels_last): memory as rows of whole periods of the channels, so that
// a column has one channel. A thread goes down the columns of one vector, their slopes and sums in
// registers.
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/tristate_relu.cuh"

namespace resgrow {

// Shared memory: a bit per column of the tile for w', 32 values for the sum over the block, and
// per line the sums of the columns.
constexpr int kOpenWords = kTriStateThreads * 8 / 32;

// The sums of a line: those of the vectors' first values, then of their second ones, and so on,
// `stride` apart, so that threads side by side write side by side.
template <class V>
RESGROW_DEVICE int sum_at(const TriStatePlan& plan, int line, int column) {
  return (line * V::count + column % V::count) * plan.stride + column / V::count;
}

// Each gate is read once for all lines, side by side.
RESGROW_DEVICE void read_gates(const TriStatePlan& plan, int tile, unsigned* open) {
  const TriStatePass& pass = plan.pass;
  const int lane = threadIdx.x % kWarp, channels = static_cast<int>(pass.channels);
  for (int base = threadIdx.x - lane; base < plan.tile; base += kTriStateThreads) {
    const int column = tile * plan.tile + base + lane;
    bool is = false;
    if (base + lane < plan.tile && column < plan.cols) {
      is = gate_open(pass.w, pass.w_type, column / plan.run % channels * pass.w_stride);
    }
    const unsigned bits = __ballot_sync(kAllLanes, is);
    if (lane == 0) open[base / kWarp] = bits;
  }
  __syncthreads();
}

// Adds what the block's threads found for its columns, down the lines, then over each run.
template <class V, class A>
RESGROW_DEVICE void add_columns(const TriStatePlan& plan, A* sums, Int band, int tile) {
  const int columns = plan.tile;
  // Where columns are few, several threads share one; each begins with a line that only it reads.
  const int shares = max(1, min(plan.lines, kTriStateThreads / columns));
  __syncthreads();
  for (int i = threadIdx.x; i < shares * columns; i += kTriStateThreads) {
    const int column = i % columns, share = i / columns;
    A sum = sums[sum_at<V>(plan, share, column)];
    for (int line = share + shares; line < plan.lines; line += shares) {
      sum += sums[sum_at<V>(plan, line, column)];
    }
    sums[sum_at<V>(plan, share, column)] = sum;
  }
  __syncthreads();
  for (int column = threadIdx.x; shares > 1 && column < columns; column += kTriStateThreads) {
    A sum = sums[sum_at<V>(plan, 0, column)];
    for (int share = 1; share < shares; ++share) sum += sums[sum_at<V>(plan, share, column)];
    sums[sum_at<V>(plan, 0, column)] = sum;
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
      for (int i = from + threadIdx.x % lanes; i < to; i += lanes) {
        sum += sums[sum_at<V>(plan, 0, i)];
      }
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
  unsigned* open = shared_memory<unsigned>();
  read_gates(plan, tile, open);
  Thread thread(pass);
  A sum_w[count];
  RESGROW_UNROLL
  for (int j = 0; j < count; ++j) sum_w[j] = A(0);
  if (line < plan.lines && column < plan.cols) {
    const unsigned bits = open[place * count / 32] >> place * count % 32;
    A width[count];
    RESGROW_UNROLL
    for (int j = 0; j < count; ++j) width[j] = bits >> j & 1 ? A(1) : A(0);
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
    A* shared = reinterpret_cast<A*>(open + kOpenWords);
    if (line < plan.lines) {
      RESGROW_UNROLL
      for (int j = 0; j < count; ++j)
        shared[kWarp + sum_at<Values<T>>(plan, line, place * count + j)] = sum_w[j];
    }
    add_columns<Values<T>>(plan, shared + kWarp, band, tile);
    const A sum = block_sum(thread.sum_d, shared);
    if (threadIdx.x == 0) block_sums<A>(plan)[blockIdx.x] = sum;
  }
}

namespace {

template <class T, bool FORWARD, bool SUMS, bool ALIGNED>
struct Columns {
  static Status run(const TriStatePlan& plan, Stream stream) {
    using V = Values<T>;
    size_t shared = kOpenWords * sizeof(unsigned);
    if (SUMS) {
      shared += (kWarp + plan.lines * V::count * plan.stride) * sizeof(typename V::Compute);
    }
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
