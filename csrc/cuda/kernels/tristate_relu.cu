// tristate_relu: how a pass is split, and the sums over the parts.
#include "cuda/kernels/reduce.cuh"
#include "cuda/kernels/tristate_relu.cuh"

namespace resgrow {

constexpr int kSumThreads = 512, kBatch = 8;

RESGROW_DEVICE void store_gate(void* gates, Type type, Int i, double v) {
  switch (type) {
    case Type::float64:
      static_cast<double*>(gates)[i] = v;
      break;
    case Type::bfloat16:
      static_cast<BFloat16*>(gates)[i] = from_float<BFloat16>(static_cast<float>(v));
      break;
    case Type::float16:
      static_cast<Half*>(gates)[i] = from_float<Half>(static_cast<float>(v));
      break;
    default:
      static_cast<float*>(gates)[i] = static_cast<float>(v);
  }
}

// The last block adds up d's gradient, the others those of kSumThreads / lanes channels each:
// `lanes` threads share the bands, repetitions and tiles of a channel.
template <class A>
RESGROW_KERNEL(kSumThreads)
void tristate_sums(TriStatePlan plan, int lanes) {
  const TriStatePass& pass = plan.pass;
  double* shared = shared_memory<double>();
  const int thread = threadIdx.x;
  double sum = 0;
  if (blockIdx.x == gridDim.x - 1) {
    const A* parts = block_sums<A>(plan);
    for (Int i = thread; i < plan.blocks; i += kSumThreads) sum += parts[i];
    sum = block_sum(sum, shared);
    if (thread == 0) store_gate(pass.grad_d, pass.d_type, 0, sum);
    return;
  }
  const int group = kSumThreads / lanes;
  const Int channel = blockIdx.x * Int(group) + thread % group;
  if (channel < pass.channels) {
    // Terms are below 2^31: there is not more than about one for 512 values.
    const unsigned repeats = static_cast<unsigned>(plan.runs / pass.channels);
    const unsigned terms = static_cast<unsigned>(plan.bands) * repeats * plan.parts;
    for (unsigned first = thread / group; first < terms; first += kBatch * lanes) {
      A parts[kBatch];  // on their way together: one latency for all
      RESGROW_UNROLL
      for (int k = 0; k < kBatch; ++k) {
        const unsigned i = first + k * lanes, repetition = i / plan.parts,
                       band = repetition / repeats;
        const Int run = channel + (repetition - band * repeats) * pass.channels;
        const Int tile = first_tile(plan, run) + (i - repetition * plan.parts);
        const bool there = i < terms && tile * plan.tile < (run + 1) * plan.run;
        parts[k] = there ? *slot_sum<A>(plan, band, run, tile) : A(0);
      }
      RESGROW_UNROLL
      for (int k = 0; k < kBatch; ++k) sum += parts[k];
    }
  }
  shared[thread] = sum;
  for (int half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half * group) shared[thread] += shared[thread + half * group];
  }
  if (thread < group && channel < pass.channels) {
    store_gate(pass.grad_w, pass.w_type, channel, shared[thread]);
  }
}

namespace {

// Runs of at least two vectors for each lane, else columns.
constexpr Int kShortestRun = 512;
// Parts for a warp or thread: large enough that starting and adding up do not show, and, from 1e7
// values on, enough of them to fill some waves of any device.
constexpr Int kLeastPiece = 1024, kMostPiece = 16384, kPieces = 16384, kRunBlocks = 16384;
constexpr Int kLeastRows = 4, kMostRows = 32, kColumnBlocks = 2048;
constexpr Int kWidth = 64;  // vectors: narrow blocks, so that more rows share a slot

Int over(Int a, Int b) {
  return (a + b - 1) / b;
}

Int clamp(Int v, Int least, Int most) {
  return v < least ? least : v > most ? most : v;
}

Int values_of(const TriStatePass& pass) {
  return pass.outer * pass.channels * pass.inner;
}

Int values_per_vector(Type type) {
  return type == Type::float64 ? 2 : type == Type::float32 ? 4 : 8;
}

TriStatePlan plan_runs(const TriStatePass& pass) {
  TriStatePlan plan{};
  plan.pass = pass;
  const Int piece = clamp(values_of(pass) / kPieces, kLeastPiece, kMostPiece);
  plan.piece = over(over(pass.inner, over(pass.inner, piece)), 8) * 8;
  plan.parts = static_cast<int>(over(pass.inner, plan.piece));
  plan.run = plan.parts;
  plan.tile = 1;
  plan.runs = pass.channels;
  plan.tiles = plan.runs * plan.parts;
  plan.bands = pass.outer;
  plan.blocks = over(plan.bands * plan.tiles, kTriStateThreads / 32);
  if (plan.blocks > kRunBlocks) plan.blocks = kRunBlocks;
  return plan;
}

TriStatePlan plan_columns(const TriStatePass& pass) {
  TriStatePlan plan{};
  plan.pass = pass;
  const Int values = values_of(pass), count = values_per_vector(pass.type);
  // As many periods to a row as it takes to begin each with a whole vector.
  const Int period = pass.channels * pass.inner;
  const Int power = period & -period;
  plan.runs = pass.channels * (power < count ? count / power : 1);
  plan.run = static_cast<int>(pass.inner);
  const Int cols = plan.runs * plan.run, rows = over(values, cols), vectors = cols / count;
  plan.cols = static_cast<int>(cols);
  plan.full_rows = values / cols;
  plan.rest = static_cast<int>(values % cols);
  Int widest = kWidth;
  while (widest < kTriStateThreads && widest * rows < kTriStateThreads) widest *= 2;
  plan.tiles = over(vectors, widest);
  Int width = over(vectors, plan.tiles);
  if (plan.tiles > 1) width = over(width, 8) * 8;  // whole lines of 128 bytes
  plan.tiles = over(vectors, width);
  plan.width = static_cast<int>(width);
  plan.tile = static_cast<int>(width * count);
  plan.parts = plan.run > 1 ? static_cast<int>(over(plan.run - 1, plan.tile)) + 1 : 1;
  plan.lines = kTriStateThreads / plan.width;
  // The rows are shifted by banks, so that columns side by side lie in different ones.
  plan.stride = plan.width + (count == 8 ? 4 : 8);
  const Int wanted = values / count / (kTriStateThreads * kColumnBlocks);
  plan.rows = static_cast<int>(clamp(over(wanted, 4) * 4, kLeastRows, kMostRows));
  plan.bands = over(rows, plan.lines * plan.rows);
  plan.blocks = plan.bands * plan.tiles;
  return plan;
}

// Columns are counted in 32 bits, tiles' ragged ends and a row's periods included.
bool in_runs(const TriStatePass& pass) {
  return pass.inner >= kShortestRun || pass.channels * pass.inner >= Int(1) << 27;
}

TriStatePlan plan_of(const TriStatePass& pass) {
  return in_runs(pass) ? plan_runs(pass) : plan_columns(pass);
}

Status launch_sums(const TriStatePlan& plan, Stream stream) {
  const Int channels = plan.pass.channels;
  const Int terms = plan.bands * (plan.runs / channels) * plan.parts;
  // A batch of terms to a thread, and eight channels side by side where there are: 32 bytes.
  const Int side = channels < 8 ? channels : 8;
  int lanes = 1;
  while (lanes * kBatch < terms && lanes * side < kSumThreads) lanes *= 2;
  const dim3 grid(static_cast<unsigned>(over(channels, kSumThreads / lanes) + 1));
  const auto kernel =
      plan.pass.type == Type::float64 ? &tristate_sums<double> : &tristate_sums<float>;
  return launch(kernel, grid, dim3(kSumThreads), kSumThreads * sizeof(double), stream, plan, lanes);
}

}  // namespace

Int tristate_relu_workspace(const TriStatePass& pass) {
  if (!pass.grad_w) return 0;
  const TriStatePlan plan = plan_of(pass);
  const Int sums = plan.bands * (plan.runs + plan.tiles) + plan.blocks;
  return sums * static_cast<Int>(pass.type == Type::float64 ? sizeof(double) : sizeof(float));
}

Status launch_tristate_relu(const TriStatePass& pass, Stream stream) {
  const TriStatePlan plan = plan_of(pass);
  const Status status =
      in_runs(pass) ? launch_tristate_runs(plan, stream) : launch_tristate_columns(plan, stream);
  if (status != 0 || !pass.grad_w) return status;
  return launch_sums(plan, stream);
}

}  // namespace resgrow
