// block_sparse_scalar, weight gradient: values (inputs of the blocks of one row, outputs of the
// row) = A^T (inputs, pixels) G (pixels, outputs), the forward's A with the pixels as depth. A
// block of threads computes 128 inputs x 16 outputs over one part of the pixels; a thread keeps 4 x
// 4 of them and gathers one input. Parts are as many as fill the device; their sums are added in
// order.
#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = kScalarThreads;
constexpr int kInputs = kThreads, kOutputs = 16;  // of a tile
constexpr int kDepth = 32;                        // pixels in shared memory

struct Work {
  int parts, part_pixels;
  int input_tiles, chunks;  // of a row, at most; of a row's outputs
};

Int ceil_of(Int a, Int b) {
  return (a + b - 1) / b;
}

Work work_of(const BlockSparseCall& call) {
  const auto& s = call.shape;
  const Int pixels = s.samples * s.out_height * s.out_width;
  const Int chunks = ceil_of(s.block_out, kOutputs);
  const Int row_blocks = min(call.blocks, s.cols * s.kernel[0] * s.kernel[1]);
  const Int tiles = (ceil_of(call.blocks * s.block_in, kInputs) + s.rows) * chunks;
  const Int wanted = ceil_of(8 * call.processors, tiles);
  const Int part_pixels = max(ceil_of(ceil_of(pixels, wanted), kDepth), Int{8}) * kDepth;
  return {static_cast<int>(ceil_of(pixels, part_pixels)), static_cast<int>(part_pixels),
          static_cast<int>(ceil_of(row_blocks * s.block_in, kInputs)), static_cast<int>(chunks)};
}

template <class Sum>
size_t shared_bytes() {
  return kDepth * (sizeof(ScalarWindow) + (kInputs + kOutputs) * sizeof(Sum));
}

// sums: (parts, blocks, block_in, block_out), null if there is one part.
template <class T>
RESGROW_KERNEL(kThreads)
void weight_grad(ScalarArgs a, Work work, int blocks, typename SumOf<T>::type* sums) {
  using Sum = typename SumOf<T>::type;
  const ScalarShape& s = a.shape;
  const int tid = threadIdx.x;
  const int chunk = blockIdx.x % work.chunks,
            input_tile = blockIdx.x / work.chunks % work.input_tiles;
  const int row = blockIdx.x / work.chunks / work.input_tiles, part = blockIdx.y;
  const int start = a.starts[row], inputs = max(a.starts[row + 1] - start, 0) * s.block_in;
  const int first_input = input_tile * kInputs;
  if (first_input >= inputs) return;

  auto* windows = shared_memory<ScalarWindow>();
  Sum* gathered = reinterpret_cast<Sum*>(windows + kDepth);  // (kDepth, inputs)
  Sum* grads = gathered + kDepth * kInputs;                  // (kDepth, outputs)
  const ScalarSource source = source_of(a, row, start, inputs, first_input + tid);
  const int first_output = chunk * kOutputs;
  const int pixels = s.samples * s.out_height * s.out_width;
  const Int begin = static_cast<Int>(part) * work.part_pixels;
  const Int end = min(begin + work.part_pixels, static_cast<Int>(pixels));
  const T* x = static_cast<const T*>(a.x);
  const T* gradient = static_cast<const T*>(a.y);
  const int in = tid / (kOutputs / 4) * 4, out = tid % (kOutputs / 4) * 4;
  Sum result[4][4] = {};
  for (Int first = begin; first < end; first += kDepth) {
    __syncthreads();
    if (tid < kDepth)
      windows[tid] =
          window_of(s, static_cast<int>(min(first + tid, static_cast<Int>(pixels))), pixels);
    RESGROW_UNROLL
    for (int i = 0; i < kDepth * kOutputs / kThreads; ++i) {
      const int p = tid / kOutputs + i * (kThreads / kOutputs), o = tid % kOutputs;
      const int output = row * s.block_out + first_output + o;
      const bool valid = first + p < end && first_output + o < s.block_out && output < s.outputs;
      const Int element = (first + p) * s.outputs + output;
      grads[p * kOutputs + o] = valid ? static_cast<Sum>(widen(gradient[element])) : Sum{0};
    }
    __syncthreads();
    RESGROW_UNROLL
    for (int p = 0; p < kDepth; ++p) {
      const ScalarWindow w = windows[p];
      gathered[p * kInputs + tid] =
          source.inside(s, w) ? static_cast<Sum>(widen(x[source.offset(s, w)])) : Sum{0};
    }
    __syncthreads();
    RESGROW_UNROLL
    for (int p = 0; p < kDepth; ++p) {
      const auto v = load<Four<Sum>>(gathered + p * kInputs + in);
      const auto g = load<Four<Sum>>(grads + p * kOutputs + out);
      RESGROW_UNROLL
      for (int i = 0; i < 4; ++i) {
        RESGROW_UNROLL
        for (int o = 0; o < 4; ++o) result[i][o] = multiply_added(v.v[i], g.v[o], result[i][o]);
      }
    }
  }

  const Int offset = static_cast<Int>(start) * s.block_in * s.block_out;
  const Int size = static_cast<Int>(blocks) * s.block_in * s.block_out;
  RESGROW_UNROLL
  for (int i = 0; i < 4; ++i) {
    RESGROW_UNROLL
    for (int o = 0; o < 4; ++o) {
      if (first_input + in + i >= inputs || first_output + out + o >= s.block_out) continue;
      const Int element = offset + (first_input + in + i) * s.block_out + first_output + out + o;
      if (sums) {
        sums[part * size + element] = result[i][o];
      } else {
        static_cast<T*>(a.values)[element] = narrow<T>(result[i][o]);
      }
    }
  }
}

constexpr int kAdders = 4;                 // threads that share a sum
constexpr int kSums = kThreads / kAdders;  // of a block of threads
constexpr int kAhead = 8;                  // parts that a thread reads at a time

// Few sums of many parts would wait for memory one part after the other. The order depends on the
// number of parts alone.
template <class T>
RESGROW_KERNEL(kThreads)
void add_parts(const typename SumOf<T>::type* sums, Int size, int parts, T* values) {
  using Sum = typename SumOf<T>::type;
  const int adder = threadIdx.x / kSums;
  const Int i = static_cast<Int>(blockIdx.x) * kSums + threadIdx.x % kSums;
  Sum sum = 0;
  for (int first = adder; first < parts && i < size; first += kAdders * kAhead) {
    Sum part[kAhead];
    RESGROW_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int p = first + k * kAdders;
      part[k] = p < parts ? sums[p * size + i] : Sum{0};
    }
    RESGROW_UNROLL
    for (int k = 0; k < kAhead; ++k) sum += part[k];
  }
  Sum* shared = shared_memory<Sum>();
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (adder != 0 || i >= size) return;
  for (int other = 1; other < kAdders; ++other) sum += shared[other * kSums + threadIdx.x];
  values[i] = narrow<T>(sum);
}

Int size_of(const BlockSparseCall& call) {
  return call.blocks * call.shape.block_in * call.shape.block_out;
}
// Bytes of the row starts, such that sums behind them are aligned.
Int starts_bytes(const BlockSparseCall& call) {
  return ceil_of((call.shape.rows + 1) * static_cast<Int>(sizeof(int)), 256) * 256;
}
Int workspace(const BlockSparseCall& call) {
  const Int parts = work_of(call).parts;
  const Int bytes = call.type == Type::float64 ? sizeof(double) : sizeof(float);
  return starts_bytes(call) + (parts > 1 ? parts * size_of(call) * bytes : 0);
}

Status run(const BlockSparseCall& call, Stream stream) {
  int* starts = static_cast<int*>(call.workspace);
  const Status found = find_row_starts(call, starts, stream);
  if (found != 0) return found;
  ScalarArgs args = scalar_args(call);
  args.starts = starts;
  const Work work = work_of(call);
  const Int size = size_of(call);
  const dim3 grid(static_cast<unsigned>(call.shape.rows * work.input_tiles * work.chunks),
                  work.parts);
  return with_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    using Sum = typename SumOf<T>::type;
    void* behind = static_cast<char*>(call.workspace) + starts_bytes(call);
    Sum* sums = work.parts > 1 ? static_cast<Sum*>(behind) : nullptr;
    const Status done = launch(&weight_grad<T>, grid, dim3(kThreads), shared_bytes<Sum>(), stream,
                               args, work, static_cast<int>(call.blocks), sums);
    if (done != 0 || !sums) return done;
    return add_block_sparse_parts(call.type, sums, size, work.parts, call.values, stream);
  });
}

}  // namespace

Status add_block_sparse_parts(Type type, const void* sums, Int size, int parts, void* values,
                              Stream stream) {
  return with_type(type, [&](auto zero) {
    using T = decltype(zero);
    using Sum = typename SumOf<T>::type;
    return launch(&add_parts<T>, dim3(static_cast<unsigned>(ceil_of(size, kSums))), dim3(kThreads),
                  kThreads * sizeof(Sum), stream, static_cast<const Sum*>(sums), size, parts,
                  static_cast<T*>(values));
  });
}

const ScalarProduct scalar_weight_grad = {workspace, run};

}  // namespace resgrow
