// block_sparse_scalar, forward: y (pixels, outputs of one row of blocks) = A (pixels, inputs of the
// row's blocks) B (those, outputs). B is the row's values as they lie in memory; A is gathered from
// x into shared memory, kDepth columns at a time, neighbouring threads reading neighbouring
// channels. A thread keeps 4 pixels x 8 outputs: 32 products for three 16-byte loads.
#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = kScalarThreads;
constexpr int kDepth = 8;
constexpr int kPixels = 4, kOutputs = 8;  // of a thread
constexpr int kMaxStrips = 4;             // threads side by side over the outputs

// How a block's threads share its pixels and outputs.
struct Tile {
  int strips, pixels, outputs;
  int pitch;   // of A's columns: threads that store one pixel's columns meet different banks
  int chunks;  // of a row's outputs
};

inline Tile tile_of(const ScalarShape& s) {
  int strips = 1;
  while (strips < kMaxStrips && strips * kOutputs < s.block_out) strips *= 2;
  const int pixels = kThreads / strips * kPixels, outputs = strips * kOutputs;
  return {strips, pixels, outputs, pixels + 4, (s.block_out + outputs - 1) / outputs};
}

template <class Sum>
size_t shared_bytes(const Tile& t) {
  const size_t operands = t.pitch * kDepth + t.outputs * kDepth;
  const size_t results = t.pixels * (t.outputs + 1);
  return t.pixels * sizeof(ScalarWindow) + (operands > results ? operands : results) * sizeof(Sum);
}

template <class T>
RESGROW_DEVICE typename SumOf<T>::type value_at(const void* p, Int i) {
  return widen(static_cast<const T*>(p)[i]);
}

// y + bias + residual, then its slope: one output, in the precision of the sums.
template <class T, class Sum>
RESGROW_DEVICE Sum finished(const ScalarArgs& a, Sum v, int output, Int element) {
  if (a.bias) v += value_at<T>(a.bias, output);
  if (a.residual) v += value_at<T>(a.residual, element);
  if (a.positive) v *= v >= 0 ? value_at<T>(a.positive, output) : value_at<T>(a.negative, output);
  return v;
}

template <class T>
RESGROW_KERNEL(kThreads)
void forward(ScalarArgs a, Tile t) {
  using Sum = typename SumOf<T>::type;
  const ScalarShape& s = a.shape;
  auto* windows = shared_memory<ScalarWindow>();
  Sum* gathered = reinterpret_cast<Sum*>(windows + t.pixels);
  Sum* weights = gathered + t.pitch * kDepth;
  const int tid = threadIdx.x, rows = s.rows * t.chunks;
  const int row = blockIdx.x % rows / t.chunks, first_output = blockIdx.x % t.chunks * t.outputs;
  const int pixels = s.samples * s.out_height * s.out_width;
  const Int first_pixel = static_cast<Int>(blockIdx.x / rows) * t.pixels;
  const int left = static_cast<int>(min(static_cast<Int>(t.pixels), pixels - first_pixel));
  for (int p = tid; p < t.pixels; p += kThreads)
    windows[p] = window_of(s, p < left ? static_cast<int>(first_pixel) + p : pixels, pixels);

  const int start = a.starts[row], inputs = max(a.starts[row + 1] - start, 0) * s.block_in;
  const T* x = static_cast<const T*>(a.x);
  const T* values = static_cast<const T*>(a.values) +
                    static_cast<Int>(start) * s.block_in * s.block_out + first_output;
  const int lane = tid % (kThreads / t.strips), strip = tid / (kThreads / t.strips);
  Sum sums[kOutputs][kPixels] = {};
  for (int k0 = 0; k0 < inputs; k0 += kDepth) {
    __syncthreads();
    {
      const int k = tid % kDepth;
      const ScalarSource source = source_of(a, row, start, inputs, k0 + k);
      RESGROW_UNROLL
      for (int i = 0; i < kPixels * kDepth; ++i) {
        const int p = tid / kDepth + i * (kThreads / kDepth);
        if (p >= t.pixels) break;
        const ScalarWindow w = windows[p];
        gathered[k * t.pitch + p] =
            source.inside(s, w) ? static_cast<Sum>(widen(x[source.offset(s, w)])) : Sum{0};
      }
    }
    for (int i = tid; i < kDepth * t.outputs; i += kThreads) {
      const int k = k0 + i / t.outputs, o = i % t.outputs;
      const bool valid = k < inputs && first_output + o < s.block_out;
      weights[i] = valid ? static_cast<Sum>(widen(values[k * s.block_out + o])) : Sum{0};
    }
    __syncthreads();
    RESGROW_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      const auto in = load<Four<Sum>>(gathered + k * t.pitch + lane * kPixels);
      RESGROW_UNROLL
      for (int half = 0; half < kOutputs; half += 4) {
        const auto w = load<Four<Sum>>(weights + k * t.outputs + strip * kOutputs + half);
        RESGROW_UNROLL
        for (int o = 0; o < 4; ++o) {
          RESGROW_UNROLL
          for (int p = 0; p < kPixels; ++p)
            sums[half + o][p] = multiply_added(in.v[p], w.v[o], sums[half + o][p]);
        }
      }
    }
  }

  // Through shared memory, so that neighbouring threads store neighbouring outputs.
  __syncthreads();
  Sum* results = gathered;
  RESGROW_UNROLL
  for (int o = 0; o < kOutputs; ++o) {
    RESGROW_UNROLL
    for (int p = 0; p < kPixels; ++p)
      results[(lane * kPixels + p) * (t.outputs + 1) + strip * kOutputs + o] = sums[o][p];
  }
  __syncthreads();
  T* y = static_cast<T*>(a.y);
  const int present = min(s.block_out - first_output, t.outputs);
  for (int i = tid; i < left * t.outputs; i += kThreads) {
    const int p = i / t.outputs, o = i % t.outputs;
    const int output = row * s.block_out + first_output + o;
    if (o >= present || output >= s.outputs) continue;
    const Int element = (first_pixel + p) * s.outputs + output;
    y[element] = narrow<T>(finished<T>(a, results[p * (t.outputs + 1) + o], output, element));
  }
}

Int workspace(const BlockSparseCall& call) {
  return (call.shape.rows + 1) * static_cast<Int>(sizeof(int));
}

Status run(const BlockSparseCall& call, Stream stream) {
  int* starts = static_cast<int*>(call.workspace);
  const Status found = find_row_starts(call, starts, stream);
  if (found != 0) return found;
  ScalarArgs args = scalar_args(call);
  args.starts = starts;
  const Tile t = tile_of(args.shape);
  const Int pixels = call.shape.samples * call.shape.out_height * call.shape.out_width;
  const Int tiles = (pixels + t.pixels - 1) / t.pixels;
  const dim3 grid(static_cast<unsigned>(tiles * call.shape.rows * t.chunks));
  return with_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(&forward<T>, grid, dim3(kThreads), shared_bytes<typename SumOf<T>::type>(t),
                  stream, args, t);
  });
}

}  // namespace

const ScalarProduct scalar_forward = {workspace, run};

}  // namespace resgrow
