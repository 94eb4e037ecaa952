// What both sides of the border between CUDA glue and kernels know; neither torch nor CUDA.
#pragma once

struct CUstream_st;

namespace resgrow {

using Int = long long;
using Stream = CUstream_st*;  // cudaStream_t
using Status = int;           // cudaError_t: 0 is success

enum class Type { float32, float64, bfloat16, float16 };

// Storage of 16-bit floating point.
struct alignas(2) BFloat16 {
  unsigned short bits;
};
struct alignas(2) Half {
  unsigned short bits;
};

}  // namespace resgrow
