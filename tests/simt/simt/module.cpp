// The Python side of the interpreter.
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <memory>
#include <string>

#include "simt/glue.h"
#include "simt/guarded_allocator.h"
#include "simt/machine.h"
#include "simt/registry.h"
#include "simt/traffic.h"

namespace py = pybind11;

namespace simt {

std::vector<Registration>& registrations() {
  static std::vector<Registration> all;
  return all;
}

namespace {

int multiprocessor_count = 2;
bool is_capturing = false;
std::unique_ptr<torch::Library> installed;

// The number of multiprocessors goes with the order of threads: what a kernel computes depends on
// neither.
void set_seed(uint64_t seed) {
  machine.random = seed * 0x9e3779b97f4a7c15u | 1;
  for (int i = 0; i < 8; ++i) machine.draw(1);
  multiprocessor_count = 2 + static_cast<int>(seed % 3);
}

// That CPU kernels are overridden is the purpose; uninstall() brings them back.
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Registers the families' functions in front of the CPU's, until uninstall().
void install() {
  TORCH_CHECK(!installed, "the interpreter is installed already");
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "resgrow",
                                                  c10::DispatchKey::CPU, __FILE__, __LINE__);
  Silent silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  for (const Registration f : registrations()) f(*library);
  install_allocator();
  installed = std::move(library);
}

void uninstall() {
  if (!installed) return;
  uninstall_allocator();
  installed.reset();
}

}  // namespace

int multiprocessors() {
  return multiprocessor_count;
}
bool capturing() {
  return is_capturing;
}
std::string take_failure() {
  return std::move(machine.failure);
}

}  // namespace simt

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  simt::set_seed(1);
  m.def("install", &simt::install);
  m.def("uninstall", &simt::uninstall);
  m.def("is_installed", [] { return simt::installed != nullptr; });
  m.def("set_seed", &simt::set_seed);
  m.def("set_patience", [](uint64_t accesses) { simt::machine.patience = accesses; });
  m.def("set_traffic", [](bool on) { simt::traffic.on = on; });
  m.def("take_traffic", [] {
    py::list rows;
    for (const auto& row : simt::traffic.take()) {
      rows.append(
          py::make_tuple(row.kernel, row.place, row.what, row.requests, row.taken, row.needed));
    }
    return rows;
  });
  m.def("set_capturing", [](bool value) { simt::is_capturing = value; });
}
