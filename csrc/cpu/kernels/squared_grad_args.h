// Border between the glue of squared_grad and its kernels: plain structs of pointers and strides.
// Strides count elements. Which struct a kernel takes says what it computes.
#pragma once

namespace resgrow {

using Int = long long;

// out[k * out_k + lane] (+)= sum over samples of f(sum_{row, col} vec[row, col][lane] * bcast[row,
// col][k]), with f = square (per-sample gradients) or identity. lane runs over whole vectors, k
// over single values.
template <class T>
struct SquaredGradTile {
  const T* vec;
  const T* bcast;
  T* out;
  Int samples, rows, cols, out_k;
  Int vec_sample, vec_row, vec_col;
  Int bcast_sample, bcast_row, bcast_col;
  bool square;
  bool add;  // onto what out holds
};

// Depthwise convolution, taps of one kernel row: out[tap * out_k + lane] (+)= sum over samples of
// f(sum_{row, col} grad[row, col][lane] * x[row, col * stride + x0 + tap * dilation][lane]).
// All rows are valid; columns of x are checked against [0, width).
template <class T>
struct SquaredGradDepthwise {
  const T* x;  // column 0 of the row that belongs to grad's first
  const T* grad;
  T* out;
  Int samples, rows, cols, out_k;
  Int x_sample, x_row, x_col;  // x_row: from one row of grad to the next
  Int grad_sample, grad_row, grad_col;
  Int width, stride, dilation, x0;
  bool square;
  bool add;  // onto what out holds
};

// target[pixel][channel] = source[pixel][channel], converted, optionally squared, then `zeros`
// zeros (together whole vectors, where zeros > 0).
template <class T>
struct SquaredGradPack {
  const void* source;
  T* target;
  Int pixels, channels, zeros;
  Int source_pixel, source_channel, target_pixel;
  bool bfloat16;  // the source's type; otherwise T
  bool square;
};

// bias[c] += (sum_t grad)^2 and weight[c] += (sum_t grad * (x - mean) * rstd)^2, sample by sample.
// x is null where only the bias is wanted. One of the two strides is 1. With square_input instead:
// bias[c] += sum_t grad and weight[c] += sum_t grad * ((x - mean) * rstd)^2.
template <class T>
struct SquaredGradMoments {
  const void* x;
  const void* grad;
  const T* mean;
  const T* rstd;
  T* weight;
  T* bias;
  Int samples, channels, positions;
  Int x_sample, x_channel, x_position;
  Int grad_sample, grad_channel, grad_position;
  bool bfloat16;
  bool square_input;
};

template <class T>
struct SquaredGradKernels {
  int lanes;             // values of T in a vector
  int max_k[3];          // [vectors]: widest tile of that many vectors (1 or 2)
  int max_depthwise[3];  // [vectors]: most taps of a kernel row at once
  void (*const* tile[3])(const SquaredGradTile<T>&);            // [vectors][k]
  void (*const* depthwise[3])(const SquaredGradDepthwise<T>&);  // [vectors][taps]
  void (*pack)(const SquaredGradPack<T>&);
  void (*moments)(const SquaredGradMoments<T>&);
};

}  // namespace resgrow
