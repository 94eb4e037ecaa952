// What the CUDA glue of every family uses: device, stream, launch errors, types.
//
// The glue also compiles against the interpreter of tests/simt/, where tensors are the host's and
// RESGROW_SIMT is defined.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "check.h"
#include "cuda/border.h"

#ifdef RESGROW_SIMT
#  include "simt/glue.h"
#else

#  include <c10/cuda/CUDAException.h>
#  include <c10/cuda/CUDAGuard.h>
#  include <c10/cuda/CUDAStream.h>

// Registers the family's functions for CUDA tensors: RESGROW_CUDA_LIBRARY(m) { m.impl(...); }
#  define RESGROW_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(resgrow, CUDA, m)

namespace resgrow {

// Makes the tensor's device the current one while it lives.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const at::Tensor& t)
      : guard_(t.device()), stream_(c10::cuda::getCurrentCUDAStream(t.device().index()).stream()) {}

  Stream stream() const { return stream_; }

  int multiprocessors() const {
    int count = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount,
                                          guard_.current_device().index()));
    return count;
  }

  // Whether work is recorded for a CUDA graph: the host must not wait for results then.
  bool capturing() const {
    cudaStreamCaptureStatus status;
    C10_CUDA_CHECK(cudaStreamIsCapturing(stream_, &status));
    return status != cudaStreamCaptureStatusNone;
  }

 private:
  c10::cuda::CUDAGuard guard_;
  Stream stream_;
};

inline void succeeded(const char* op, Status status) {
  const auto error = static_cast<cudaError_t>(status);
  TORCH_CHECK(error == cudaSuccess, op, ": its CUDA kernel was not launched (",
              cudaGetErrorString(error), ")");
}

}  // namespace resgrow

#endif

namespace resgrow {

// Of a tensor that has passed check_floating(..., half=true).
inline Type type_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Type::float64;
    case at::kBFloat16:
      return Type::bfloat16;
    case at::kHalf:
      return Type::float16;
    default:
      return Type::float32;
  }
}

// float32 products may round their operands to tf32: torch.set_float32_matmul_precision("high").
inline bool tf32_allowed() {
  return at::globalContext().allowTF32CuBLAS();
}

}  // namespace resgrow
