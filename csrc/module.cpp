// Python import shell. Importing it loads the library, whose static initialisers register
// the operators; the module itself only answers questions about the build and calls what torch.ops
// would take too long to.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "direct.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#else
  info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
  info["compiled_isas"] = resgrow::compiled_isas();
  info["usable_isas"] = resgrow::usable_isas();
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of resgrow: registers torch.ops.resgrow.*";
  m.def("build_info", &build_info, "Compiler, compiled and usable instruction sets, OpenMP.");
  m.def("cpu_isa", &resgrow::cpu_isa, "The instruction set whose kernels are in use.");
  m.def("set_cpu_isa", &resgrow::set_cpu_isa, py::arg("name"),
        "Use another compiled instruction set; for tests and benchmarks.");
  if (!resgrow::add_direct_calls(m.ptr())) throw py::error_already_set();
}
