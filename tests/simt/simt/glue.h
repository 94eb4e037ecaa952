// The interpreter's side of csrc/cuda/glue.h: device and stream are the host's.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "cuda/border.h"
#include "simt/registry.h"

#define RESGROW_CUDA_LIBRARY(m)                                          \
  static void resgrow_register(torch::Library&);                         \
  static const ::simt::Registered resgrow_registered(&resgrow_register); \
  static void resgrow_register(torch::Library& m)

namespace simt {

int multiprocessors();
bool capturing();
std::string take_failure();

}  // namespace simt

namespace resgrow {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const at::Tensor& t) {
    TORCH_CHECK(t.device().is_cpu(), "the interpreter works on the host's tensors (got ",
                t.device(), ")");
  }
  Stream stream() const { return nullptr; }
  int multiprocessors() const { return ::simt::multiprocessors(); }
  bool capturing() const { return ::simt::capturing(); }
};

inline void succeeded(const char* op, Status status) {
  TORCH_CHECK(status == 0, op,
              ": its CUDA kernel failed in the interpreter: ", ::simt::take_failure());
}

}  // namespace resgrow
