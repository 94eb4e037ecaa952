// Python import shell of the CUDA half. Importing it registers the families' CUDA functions; the
// schemas are _C's.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["toolkit"] = RESGROW_CUDA_TOOLKIT;
  info["architectures"] = py::str(RESGROW_CUDA_ARCHITECTURES).attr("split")();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of resgrow, for torch.ops.resgrow.*";
  m.def("build_info", &build_info, "CUDA toolkit and the architectures compiled for.");
}
