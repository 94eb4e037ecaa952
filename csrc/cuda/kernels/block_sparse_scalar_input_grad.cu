// block_sparse_scalar, input gradient: a block of threads computes 128 pixels x 32 channels of x's
// gradient. It goes through the rows and taps that have a present block in one of these channels,
// kDepth outputs at a time: y's gradients of the pixels, and the values with zeros where a block is
// absent, lie in shared memory; a warp has 8 channels and skips those that are absent, a thread
// keeps 4 pixels x 8 channels.
//
// Blocks are looked up in a dense table (row, tap, column) -> number, filled on the device: an
// entry out of range is left out, and no order is relied on.
#include "cuda/kernels/block_sparse_scalar.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = kScalarThreads;
constexpr int kPixels = 4, kChannels = 8;  // of a thread
constexpr int kTilePixels = 32 * kPixels, kTileChannels = kThreads / 32 * kChannels;
constexpr int kDepth = 16;
constexpr int kPitch = kTilePixels + 4;

static_assert(kTilePixels == kThreads, "each thread finds the source of one pixel");

template <class Sum>
size_t shared_bytes() {
  const size_t operands = kPitch * kDepth + kTileChannels * kDepth;
  const size_t results = kTilePixels * (kTileChannels + 1);
  return (operands > results ? operands : results) * sizeof(Sum) +
         (kTilePixels + kThreads + kTileChannels + kThreads / 32) * sizeof(int);
}

RESGROW_KERNEL(kThreads) void clear_table(int* table, int entries) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < entries) table[i] = -1;
}

RESGROW_KERNEL(kThreads)
void fill_table(ScalarShape s, const int* row, const int* col, const int* tap, int blocks,
                int* table) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= blocks) return;
  const int r = row[i], c = col[i], t = tap[i];
  const bool valid = r >= 0 && r < s.rows && c >= 0 && c < s.cols && t >= 0 && t < s.taps;
  if (valid) table[(r * s.taps + t) * s.cols + c] = i;
}

// The pixel of y that `tap` leads to from a pixel of x, or -1.
RESGROW_DEVICE int pixel_of_y(const ScalarShape& s, int sample, int y, int x, int tap) {
  if (sample < 0) return -1;
  const int down = y + s.padding[0] - tap / s.kernel_width * s.dilation[0];
  const int right = x + s.padding[1] - tap % s.kernel_width * s.dilation[1];
  if (down < 0 || right < 0) return -1;
  const int oy = down / s.stride[0], ox = right / s.stride[1];
  const bool exists = oy * s.stride[0] == down && ox * s.stride[1] == right && oy < s.out_height &&
                      ox < s.out_width;
  return exists ? (sample * s.out_height + oy) * s.out_width + ox : -1;
}

// Appends to `list`, in order, those of `count` numbers whose thread has `present`; returns how
// many. `counts`: one per warp.
RESGROW_DEVICE int compacted(int number, bool present, int* list, int* counts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned votes = __ballot_sync(~0u, present);
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    before += w < warp ? counts[w] : 0;
    all += counts[w];
  }
  if (present) list[before + __popc(votes & ((1u << lane) - 1))] = number;
  __syncthreads();
  return all;
}

template <class T>
RESGROW_KERNEL_OF(kThreads, sizeof(T) == 8 ? 3 : 4)
void input_grad(ScalarArgs a, const int* table, int tiles) {
  using Sum = typename SumOf<T>::type;
  const ScalarShape& s = a.shape;
  Sum* grads = shared_memory<Sum>();       // (kDepth, pixels)
  Sum* weights = grads + kPitch * kDepth;  // (channels, kDepth)
  Sum* results = grads;                    // (pixels, channels), when the operands are done with
  constexpr int operands = kPitch * kDepth + kTileChannels * kDepth;
  constexpr int room = kTilePixels * (kTileChannels + 1);
  int* sources = reinterpret_cast<int*>(grads + (operands > room ? operands : room));
  int* list = sources + kTilePixels;  // rows and taps
  int* blocks = list + kThreads;      // of the tile's channels at one of them
  int* counts = blocks + kTileChannels;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

  const int tile = blockIdx.x % tiles, group_tiles = tiles / (s.rows / s.group_rows);
  const int group = tile / group_tiles, first_channel = tile % group_tiles * kTileChannels;
  const int channels = min(kTileChannels, s.group_channels - first_channel);
  const int first_col = first_channel / s.block_in;
  const int last_col = (first_channel + channels - 1) / s.block_in;
  const int pixels = s.samples * s.height * s.width;
  const Int first_pixel = static_cast<Int>(blockIdx.x / tiles) * kTilePixels;
  const int left = static_cast<int>(min(static_cast<Int>(kTilePixels), pixels - first_pixel));
  const int pixel = static_cast<int>(first_pixel) + min(tid, left - 1);
  const int x = pixel % s.width, y = pixel / s.width % s.height;
  const int sample = tid < left ? pixel / s.width / s.height : -1;
  const T* gradient = static_cast<const T*>(a.y);
  const T* values = static_cast<const T*>(a.values);

  Sum sums[kChannels][kPixels] = {};
  const int first_place = group * s.group_rows * s.taps, places = s.group_rows * s.taps;
  for (int begin = 0; begin < places; begin += kThreads) {
    const int mine = begin + tid;
    bool present = false;
    if (mine < places) {
      const int* entries = table + (first_place + mine) * s.cols;
      for (int col = first_col; col <= last_col; ++col) present |= entries[col] >= 0;
    }
    const int listed = compacted(first_place + mine, present, list, counts);
    for (int l = 0; l < listed; ++l) {
      const int place = list[l], row = place / s.taps;
      for (int o0 = 0; o0 < s.block_out; o0 += kDepth) {
        if (o0 == 0) {
          sources[tid] = pixel_of_y(s, sample, y, x, place % s.taps);
          if (tid < kTileChannels) {
            const int channel = first_channel + tid;
            blocks[tid] = tid < channels ? table[place * s.cols + channel / s.block_in] : -1;
          }
          __syncthreads();
        }
        const int o = tid % kDepth;
        const int output = row * s.block_out + o0 + o;
        const bool is_output = o0 + o < s.block_out && output < s.outputs;
        RESGROW_UNROLL
        for (int i = 0; i < kDepth; ++i) {
          const int p = tid / kDepth + i * (kThreads / kDepth), source = sources[p];
          const bool valid = is_output && source >= 0;
          const Int element = static_cast<Int>(source) * s.outputs + output;
          grads[o * kPitch + p] = valid ? static_cast<Sum>(widen(gradient[element])) : Sum{0};
        }
        RESGROW_UNROLL
        for (int i = 0; i < kTileChannels * kDepth / kThreads; ++i) {
          const int c = tid / kDepth + i * (kThreads / kDepth), block = blocks[c];
          const int in = (first_channel + c) % s.block_in;
          const Int element = (static_cast<Int>(block) * s.block_in + in) * s.block_out + o0 + o;
          const bool valid = is_output && block >= 0;
          weights[c * kDepth + o] = valid ? static_cast<Sum>(widen(values[element])) : Sum{0};
        }
        __syncthreads();
        RESGROW_UNROLL
        for (int quarter = 0; quarter < kDepth; quarter += 4) {
          Four<Sum> g[4];
          RESGROW_UNROLL
          for (int j = 0; j < 4; ++j)
            g[j] = load<Four<Sum>>(grads + (quarter + j) * kPitch + lane * kPixels);
          RESGROW_UNROLL
          for (int c = 0; c < kChannels; ++c) {
            if (blocks[warp * kChannels + c] < 0) continue;  // the same for the whole warp
            const auto w = load<Four<Sum>>(weights + (warp * kChannels + c) * kDepth + quarter);
            RESGROW_UNROLL
            for (int j = 0; j < 4; ++j) {
              RESGROW_UNROLL
              for (int p = 0; p < kPixels; ++p)
                sums[c][p] = multiply_added(g[j].v[p], w.v[j], sums[c][p]);
            }
          }
        }
        __syncthreads();
      }
    }
  }

  // Through shared memory, so that neighbouring threads store neighbouring channels.
  RESGROW_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    RESGROW_UNROLL
    for (int p = 0; p < kPixels; ++p)
      results[(lane * kPixels + p) * (kTileChannels + 1) + warp * kChannels + c] = sums[c][p];
  }
  __syncthreads();
  T* result = static_cast<T*>(a.x) + group * s.group_channels + first_channel;
  for (int i = tid; i < left * kTileChannels; i += kThreads) {
    const int p = i / kTileChannels, c = i % kTileChannels;
    if (c < channels)
      result[(first_pixel + p) * s.channels + c] = narrow<T>(results[p * (kTileChannels + 1) + c]);
  }
}

Int entries_of(const BlockSparseCall& call) {
  const auto& s = call.shape;
  return s.rows * s.cols * s.kernel[0] * s.kernel[1];
}
Int workspace(const BlockSparseCall& call) {
  return entries_of(call) * static_cast<Int>(sizeof(int));
}

unsigned blocks_for(Int work) {
  return static_cast<unsigned>((work + kThreads - 1) / kThreads);
}

Status run(const BlockSparseCall& call, Stream stream) {
  const ScalarArgs args = scalar_args(call);
  const ScalarShape& s = args.shape;
  int* table = static_cast<int*>(call.workspace);
  const Int entries = entries_of(call);
  Status status = launch(&clear_table, dim3(blocks_for(entries)), dim3(kThreads), 0, stream, table,
                         static_cast<int>(entries));
  if (status == 0 && call.blocks > 0) {
    status = launch(&fill_table, dim3(blocks_for(call.blocks)), dim3(kThreads), 0, stream, s,
                    call.row, call.col, call.tap, static_cast<int>(call.blocks), table);
  }
  if (status != 0) return status;
  const int group_tiles = (s.group_channels + kTileChannels - 1) / kTileChannels;
  const int tiles = group_tiles * (s.rows / s.group_rows);
  const Int pixels = call.shape.samples * call.shape.height * call.shape.width;
  const dim3 grid(static_cast<unsigned>((pixels + kTilePixels - 1) / kTilePixels * tiles));
  return with_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(&input_grad<T>, grid, dim3(kThreads), shared_bytes<typename SumOf<T>::type>(),
                  stream, args, table, tiles);
  });
}

}  // namespace

const ScalarProduct scalar_input_grad = {workspace, run};

}  // namespace resgrow
