// squared_grad's contraction for groups of few channels, depthwise convolutions above all: no
// matrices to multiply, so a lane takes one output channel and nine of its weights, and the block's
// eight warps share a sample's positions.
//
// Per position a lane reads one value of grad and nine of x, which its neighbours in time find in
// the first-level cache: memory sees every value once or twice. Bounds and addresses make some
// eight instructions per product, which is what binds.
#include "cuda/kernels/squared_grad_walk.cuh"
#include "cuda/kernels/value.cuh"

namespace resgrow {
namespace {

constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps, kWeights = 9;
constexpr int kOwned = (kWeights + kWarps - 1) / kWarps;  // weights whose totals a thread keeps

// A whole sample is one stage.
constexpr SquaredGradCut kCut{kLanes, kWeights, 1 << 30, 3, 1, 1, 1, true};

// A weight's channel among its group's, and its tap's offset in the image.
struct Weight {
  int channel, dy, dx;
  bool inside;
};

RESGROW_DEVICE Weight weight_of(const SquaredGradContraction& a, const SquaredGradWalk& w, int j) {
  const int width = static_cast<int>(a.kernel[1]);
  const int tap = j / w.column_channels, ky = tap / width, kx = tap % width;
  return {j % w.column_channels,
          ky * static_cast<int>(a.dilation[0]) - static_cast<int>(a.padding[0]),
          kx * static_cast<int>(a.dilation[1]) - static_cast<int>(a.padding[1]), j < w.columns};
}

template <class T>
RESGROW_KERNEL_OF(kThreads, sizeof(T) == 8 ? 2 : 3)
void contract_grouped(const SquaredGradContraction a, const SquaredGradWalk w) {
  using A = typename SumOf<T>::type;
  A* const shared = shared_memory<A>();  // [warp][weight][lane]
  const SquaredGradPlace place = squared_grad_place<kLanes, kWeights>(w);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int output = place.row + lane, outputs = static_cast<int>(a.groups * a.outputs);
  const bool inside = output < outputs;
  const int group = inside ? output / static_cast<int>(a.outputs) : 0;
  Weight weights[kWeights];
  RESGROW_UNROLL
  for (int j = 0; j < kWeights; ++j) weights[j] = weight_of(a, w, place.column + j);

  A total[kOwned] = {};
  for (Int n = place.first; n < place.last; ++n) {
    const T* const grad = static_cast<const T*>(a.grad) + n * a.grad_sample + (inside ? output : 0);
    const T* const x = static_cast<const T*>(a.x) + n * a.x_sample + group * a.x_group;
    A product[kWeights] = {};
    for (int p = inside ? warp : w.positions; p < w.positions; p += kWarps) {
      const int oy = quotient(p, w.out_width), ox = p - oy * static_cast<int>(a.out_width);
      A g = widen(grad[oy * a.grad_row + ox * a.grad_col]);
      if (a.form == SquaredGradForm::factors) g *= g;
      const int y = oy * static_cast<int>(a.stride[0]), left = ox * static_cast<int>(a.stride[1]);
      RESGROW_UNROLL
      for (int j = 0; j < kWeights; ++j) {
        const int iy = y + weights[j].dy, ix = left + weights[j].dx;
        const bool valid = weights[j].inside &&
                           static_cast<unsigned>(iy) < static_cast<unsigned>(a.height) &&
                           static_cast<unsigned>(ix) < static_cast<unsigned>(a.width);
        A v = 0;
        if (valid) v = widen(x[iy * a.x_row + ix * a.x_col + weights[j].channel]);
        product[j] += g * (a.form == SquaredGradForm::per_sample ? v : v * v);
      }
    }
    // The warps' shares, in order. Warp j % 8 keeps the total of weight j.
    __syncthreads();
    RESGROW_UNROLL
    for (int j = 0; j < kWeights; ++j) {
      shared[(warp * kWeights + j) * kLanes + lane] = product[j];
    }
    __syncthreads();
    RESGROW_UNROLL
    for (int i = 0; i < kOwned; ++i) {
      const int j = i * kWarps + warp;
      if (j >= kWeights) continue;
      A sum = 0;
      RESGROW_UNROLL
      for (int other = 0; other < kWarps; ++other) {
        sum += shared[(other * kWeights + j) * kLanes + lane];
      }
      total[i] += a.form == SquaredGradForm::per_sample ? sum * sum : sum;
    }
  }
  A* const sums = squared_grad_sums<A>(a, w, 0);
  RESGROW_UNROLL
  for (int i = 0; i < kOwned; ++i) {
    const int j = i * kWarps + warp, column = place.column + j;
    if (j < kWeights && column < w.columns && inside) {
      sums[Int(output) * w.columns + column] = total[i];
    }
  }
}

template <class T>
Status run_type(const SquaredGradContraction& a, Stream stream) {
  const SquaredGradWalk w = squared_grad_walk(a, kCut);
  const dim3 grid(static_cast<unsigned>(w.row_tiles * w.column_tiles), w.parts);
  const size_t shared = sizeof(typename SumOf<T>::type) * kThreads * kWeights;
  const Status status = launch(&contract_grouped<T>, grid, dim3(kThreads), shared, stream, a, w);
  return status != 0 ? status : squared_grad_finish(a, w, stream);
}

Status run(const SquaredGradContraction& a, Stream stream) {
  return with_type(a.type, [&](auto zero) { return run_type<decltype(zero)>(a, stream); });
}

bool fits(const SquaredGradContraction& a) {
  return a.groups > 1 && a.outputs < 16;
}

Int workspace(const SquaredGradContraction& a) {
  return squared_grad_sums_bytes(a, squared_grad_walk(a, kCut));
}

}  // namespace

const SquaredGradPath squared_grad_grouped{&fits, &workspace, &run};

}  // namespace resgrow
