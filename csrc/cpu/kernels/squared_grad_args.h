// Border between the glue of squared_grad and its kernels: plain structs of pointers and strides.
// Strides count elements. Which struct a kernel takes says what it computes.
#pragma once

namespace resgrow {

using Int = long long;

// out[k][lane] += f(sum_{row, col} vec[row, col][lane] * bcast[row, col][k]) for each sample in turn, with
// f = square (per-sample gradients) or identity. lane runs over whole vectors, k over single values.
template <class T>
struct SquaredGradTile {
  const T* vec;
  const T* bcast;
  T* out;
  Int samples, rows, cols;
  Int vec_sample, vec_row, vec_col;
  Int bcast_sample, bcast_row, bcast_col;
  bool square;
};

// Depthwise convolution, one kernel row: out[kx][lane] += (sum_{oy, ox} grad[oy, ox][lane] *
// x[oy * sh + y0, ox * sw + x0 + kx * dw][lane])^2. Rows oy are all valid; columns are checked against [0, width).
template <class T>
struct SquaredGradDepthwise {
  const T* x;  // at row y0, column 0
  const T* grad;
  T* out;
  Int samples, rows, cols, width;
  Int x_sample, x_row, x_col;  // x_row: between the x rows of consecutive output rows
  Int grad_sample, grad_row, grad_col;
  Int stride, dilation, x0;
};

// target[pixel][channel] = source[pixel][channel], converted, optionally squared, then `zeros` zeros.
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
// x is null where only the bias is wanted. One of the two strides is 1.
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
