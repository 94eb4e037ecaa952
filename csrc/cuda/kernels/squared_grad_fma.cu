// squared_grad's contraction without tensor cores: any type, any strides. It serves float64 and
// whatever the other paths refuse.
//
// 256 threads make a tile of 64 x 64 sums, 4 x 4 each. Per position a thread reads 8 values from
// shared memory (two 16-byte reads in float) for 16 products.
#include "cuda/kernels/squared_grad_walk.cuh"
#include "cuda/kernels/value.cuh"

namespace resgrow {
namespace {

constexpr int kThreads = 256, kTile = 64, kDepth = 16, kOwn = 4;
constexpr SquaredGradCut kCut{kTile, kTile, kDepth, 2, 1, 8, 20};

// Value i of a tile of kDepth x kTile: neighbouring threads take what lies side by side.
struct Spot {
  int k, j;
};
RESGROW_DEVICE Spot spot(int i, bool by_channel) {
  return by_channel ? Spot{i / kTile, i % kTile} : Spot{i % kDepth, i / kDepth};
}

// The tile of positions p0.. of sample n: grads[k][row] and inputs[k][column], zero outside.
template <class T, class A>
RESGROW_DEVICE void fetch(const SquaredGradContraction& a, const SquaredGradWalk& w,
                          const SquaredGradPlace& place, Int n, int p0, A* grads, A* inputs) {
  const T* const grad =
      static_cast<const T*>(a.grad) + n * a.grad_sample + place.group * a.grad_group;
  const T* const x = static_cast<const T*>(a.x) + n * a.x_sample + place.group * a.x_group;
  for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
    const Spot s = spot(i, a.grad_channel == 1);
    const int p = p0 + s.k, row = place.row + s.j;
    A value = 0;
    if (p < w.positions && row < a.outputs) {
      const int oy = quotient(p, w.out_width), ox = p - oy * static_cast<int>(a.out_width);
      value = widen(grad[oy * a.grad_row + ox * a.grad_col + row * a.grad_channel]);
    }
    grads[s.k * kTile + s.j] = a.form == SquaredGradForm::factors ? value * value : value;
  }
  for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
    const Spot s = spot(i, a.x_channel == 1);
    const int p = p0 + s.k, column = place.column + s.j;
    A value = 0;
    if (p < w.positions && column < w.columns) {
      const int tap = column / w.column_channels, c = column % w.column_channels;
      const int width = static_cast<int>(a.kernel[1]), ky = tap / width, kx = tap % width;
      const int oy = quotient(p, w.out_width), ox = p - oy * static_cast<int>(a.out_width);
      const Int iy = oy * a.stride[0] + ky * a.dilation[0] - a.padding[0];
      const Int ix = ox * a.stride[1] + kx * a.dilation[1] - a.padding[1];
      if (iy >= 0 && iy < a.height && ix >= 0 && ix < a.width) {
        value = widen(x[iy * a.x_row + ix * a.x_col + c * a.x_channel]);
      }
    }
    inputs[s.k * kTile + s.j] = a.form == SquaredGradForm::per_sample ? value : value * value;
  }
}

template <class T>
RESGROW_KERNEL(kThreads)
void contract_fma(const SquaredGradContraction a, const SquaredGradWalk w) {
  using A = typename SumOf<T>::type;
  A* const grads = shared_memory<A>();
  A* const inputs = grads + kDepth * kTile;
  const SquaredGradPlace place = squared_grad_place<kTile, kTile>(w);
  const int row = threadIdx.x / (kTile / kOwn) * kOwn, column = threadIdx.x % (kTile / kOwn) * kOwn;
  A product[kOwn][kOwn] = {}, sum[kOwn][kOwn] = {};
  Int n = place.first / w.stages;
  auto stage = static_cast<int>(place.first % w.stages);
  for (Int i = place.first; i < place.last; ++i) {
    __syncthreads();
    fetch<T, A>(a, w, place, n, stage * kDepth, grads, inputs);
    __syncthreads();
    RESGROW_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      A g[kOwn], v[kOwn];
      RESGROW_UNROLL
      for (int j = 0; j < kOwn; ++j) {
        g[j] = grads[k * kTile + row + j];
        v[j] = inputs[k * kTile + column + j];
      }
      RESGROW_UNROLL
      for (int r = 0; r < kOwn; ++r) {
        RESGROW_UNROLL
        for (int c = 0; c < kOwn; ++c) product[r][c] += g[r] * v[c];
      }
    }
    if (++stage < w.stages) continue;
    stage = 0;
    ++n;
    RESGROW_UNROLL
    for (int r = 0; r < kOwn; ++r) {
      RESGROW_UNROLL
      for (int c = 0; c < kOwn; ++c) {
        const A p = product[r][c];
        sum[r][c] += a.form == SquaredGradForm::per_sample ? p * p : p;
        product[r][c] = 0;
      }
    }
  }
  A* const sums = squared_grad_sums<A>(a, w, place.group);
  RESGROW_UNROLL
  for (int r = 0; r < kOwn; ++r) {
    RESGROW_UNROLL
    for (int c = 0; c < kOwn; ++c) {
      const int m = place.row + row + r, j = place.column + column + c;
      // What a part that ends within a sample has left over is not to be squared.
      if (m < a.outputs && j < w.columns) sums[Int(m) * w.columns + j] = sum[r][c] + product[r][c];
    }
  }
}

template <class T>
Status run_type(const SquaredGradContraction& a, Stream stream) {
  const SquaredGradWalk w = squared_grad_walk(a, kCut);
  const dim3 grid(static_cast<unsigned>(a.groups * w.row_tiles * w.column_tiles), w.parts);
  const size_t shared = 2 * kDepth * kTile * sizeof(typename SumOf<T>::type);
  const Status status = launch(&contract_fma<T>, grid, dim3(kThreads), shared, stream, a, w);
  return status != 0 ? status : squared_grad_finish(a, w, stream);
}

Status run(const SquaredGradContraction& a, Stream stream) {
  return with_type(a.type, [&](auto zero) { return run_type<decltype(zero)>(a, stream); });
}

bool fits(const SquaredGradContraction&) {
  return true;
}

Int workspace(const SquaredGradContraction& a) {
  return squared_grad_sums_bytes(a, squared_grad_walk(a, kCut));
}

}  // namespace

const SquaredGradPath squared_grad_fma{&fits, &workspace, &run};

}  // namespace resgrow
