// Kernels of squared_grad: register tiles of per-sample products, squared before they are
// accumulated (or not, where the input is squared instead). Included once per instruction set
// (unit.inc): torch-free and std-free. Expects ISA and VECTOR_BYTES.
#include "cpu/kernels/squared_grad_args.h"
#include "cpu/kernels/squared_grad_moments.h"
#include "cpu/kernels/squared_grad_pack.h"

namespace resgrow {
namespace ISA {

// Register tiles: `vectors` x k accumulators, the vectors themselves and one broadcast value must
// fit the register file (32 with AVX-512, 16 below; without FMA the product needs one more).
#if VECTOR_BYTES == 64
constexpr int kMaxK1 = 28, kMaxK2 = 13, kMaxTaps1 = 9, kMaxTaps2 = 9;
#elif VECTOR_BYTES == 32
constexpr int kMaxK1 = 12, kMaxK2 = 6, kMaxTaps1 = 9, kMaxTaps2 = 5;
#else
constexpr int kMaxK1 = 10, kMaxK2 = 5, kMaxTaps1 = 9, kMaxTaps2 = 5;
#endif

template <class T, int VECTORS, int K>
void squared_grad_tile(const SquaredGradTile<T>& a) {
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  for (Int n = 0; n < a.samples; ++n) {
    V acc[VECTORS][K] = {};
    for (Int row = 0; row < a.rows; ++row) {
      const T* vec = a.vec + n * a.vec_sample + row * a.vec_row;
      const T* bcast = a.bcast + n * a.bcast_sample + row * a.bcast_row;
      for (Int col = 0; col < a.cols; ++col, vec += a.vec_col, bcast += a.bcast_col) {
        V v[VECTORS];
#pragma GCC unroll 2
        for (int i = 0; i < VECTORS; ++i) v[i] = load<V>(vec + i * lanes);
#pragma GCC unroll 32
        for (int k = 0; k < K; ++k) {
          const T b = bcast[k];
#pragma GCC unroll 2
          for (int i = 0; i < VECTORS; ++i) acc[i][k] += v[i] * b;
        }
      }
    }
    if (a.square) {
#pragma GCC unroll 32
      for (int k = 0; k < K; ++k) {
#pragma GCC unroll 2
        for (int i = 0; i < VECTORS; ++i) acc[i][k] *= acc[i][k];
      }
    }
    T* out = a.out;
    if (a.add || n > 0) {
#pragma GCC unroll 32
      for (int k = 0; k < K; ++k, out += a.out_k) {
#pragma GCC unroll 2
        for (int i = 0; i < VECTORS; ++i)
          store<V>(out + i * lanes, load<V>(out + i * lanes) + acc[i][k]);
      }
    } else {
#pragma GCC unroll 32
      for (int k = 0; k < K; ++k, out += a.out_k) {
#pragma GCC unroll 2
        for (int i = 0; i < VECTORS; ++i) store<V>(out + i * lanes, acc[i][k]);
      }
    }
  }
}

template <class T, int VECTORS, int TAPS>
void squared_grad_depthwise(const SquaredGradDepthwise<T>& a) {
  using V = typename Vector<T>::type;
  constexpr int lanes = VECTOR_BYTES / sizeof(T);
  // Output columns [first, last) have every tap inside the image and need no checks.
  Int first = a.x0 < 0 ? (-a.x0 + a.stride - 1) / a.stride : 0;
  const Int room = a.width - 1 - a.x0 - (TAPS - 1) * a.dilation;
  Int last = room < 0 ? 0 : room / a.stride + 1;
  if (last > a.cols) last = a.cols;
  if (first > last) first = last;
  const Int step = a.dilation * a.x_col;
  for (Int n = 0; n < a.samples; ++n) {
    V acc[VECTORS][TAPS] = {};
    for (Int row = 0; row < a.rows; ++row) {
      const T* grad = a.grad + n * a.grad_sample + row * a.grad_row;
      const T* x = a.x + n * a.x_sample + row * a.x_row;
      for (Int col = 0; col < a.cols; ++col) {
        if (col == first && first < last) {
          const T* inner = x + (first * a.stride + a.x0) * a.x_col;
          for (; col < last; ++col, inner += a.stride * a.x_col) {
#pragma GCC unroll 2
            for (int i = 0; i < VECTORS; ++i) {
              const V g = load<V>(grad + col * a.grad_col + i * lanes);
#pragma GCC unroll 9
              for (int k = 0; k < TAPS; ++k) acc[i][k] += g * load<V>(inner + k * step + i * lanes);
            }
          }
          if (col == a.cols) break;
        }
#pragma GCC unroll 9
        for (int k = 0; k < TAPS; ++k) {
          const Int ix = col * a.stride + a.x0 + k * a.dilation;
          if (ix < 0 || ix >= a.width) continue;
#pragma GCC unroll 2
          for (int i = 0; i < VECTORS; ++i) {
            acc[i][k] += load<V>(grad + col * a.grad_col + i * lanes) *
                         load<V>(x + ix * a.x_col + i * lanes);
          }
        }
      }
    }
    T* out = a.out;
    const bool add = a.add || n > 0;
#pragma GCC unroll 9
    for (int k = 0; k < TAPS; ++k, out += a.out_k) {
#pragma GCC unroll 2
      for (int i = 0; i < VECTORS; ++i) {
        const V before = add ? load<V>(out + i * lanes) : V{};
        store<V>(out + i * lanes, before + (a.square ? acc[i][k] * acc[i][k] : acc[i][k]));
      }
    }
  }
}

// Tables [k] of the template instances 1..MAX, built by recursion because <utility> is out of
// bounds here.
template <class T, int VECTORS, int MAX>
struct SquaredGradTiles {
  void (*entry[MAX + 1])(const SquaredGradTile<T>&) = {};
  void (*depthwise[MAX + 1])(const SquaredGradDepthwise<T>&) = {};

  template <int K>
  constexpr void fill_tiles() {
    entry[K] = squared_grad_tile<T, VECTORS, K>;
    if constexpr (K > 1) fill_tiles<K - 1>();
  }
  template <int K>
  constexpr void fill_depthwise() {
    depthwise[K] = squared_grad_depthwise<T, VECTORS, K>;
    if constexpr (K > 1) fill_depthwise<K - 1>();
  }
};

template <class T, int VECTORS, int MAX>
constexpr SquaredGradTiles<T, VECTORS, MAX> make_tiles() {
  SquaredGradTiles<T, VECTORS, MAX> tiles;
  tiles.template fill_tiles<MAX>();
  return tiles;
}

template <class T, int VECTORS, int MAX>
constexpr SquaredGradTiles<T, VECTORS, MAX> make_depthwise() {
  SquaredGradTiles<T, VECTORS, MAX> tiles;
  tiles.template fill_depthwise<MAX>();
  return tiles;
}

template <class T>
struct SquaredGradInstances {
  static constexpr auto tile1 = make_tiles<T, 1, kMaxK1>();
  static constexpr auto tile2 = make_tiles<T, 2, kMaxK2>();
  static constexpr auto depthwise1 = make_depthwise<T, 1, kMaxTaps1>();
  static constexpr auto depthwise2 = make_depthwise<T, 2, kMaxTaps2>();
};

template <class T>
constexpr SquaredGradKernels<T> squared_grad_kernels() {
  using All = SquaredGradInstances<T>;
  return {VECTOR_BYTES / sizeof(T),
          {0, kMaxK1, kMaxK2},
          {0, kMaxTaps1, kMaxTaps2},
          {nullptr, All::tile1.entry, All::tile2.entry},
          {nullptr, All::depthwise1.depthwise, All::depthwise2.depthwise},
          squared_grad_pack<T>,
          squared_grad_moments<T>};
}

}  // namespace ISA
}  // namespace resgrow
