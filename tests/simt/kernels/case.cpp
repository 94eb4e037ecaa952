// resgrow_simt::run(name, wrong, tensors, n): launches a kernel of this folder.
#include "case.h"

#include <string>

#include "cuda/glue.h"

namespace resgrow {
namespace {

void run(const std::string& name, bool wrong, at::TensorList tensors, int64_t n) {
  const auto data = [&](size_t i) { return i < tensors.size() ? tensors[i].data_ptr() : nullptr; };
  const CaseArgs args{static_cast<const float*>(data(0)), static_cast<float*>(data(1)),
                      static_cast<float*>(data(2)), static_cast<int*>(data(3)),
                      static_cast<int>(n)};
  const OnDeviceOf on(tensors[0]);
  for (const Case* row : {fault_cases, copy_cases, warp_cases}) {
    for (; row->name; ++row) {
      if (row->name == name) {
        return succeeded("run", launch_case(*row, wrong, args, on.stream()));
      }
    }
  }
  TORCH_CHECK(false, "there is no kernel ", name);
}

}  // namespace

TORCH_LIBRARY(resgrow_simt, m) {
  m.def("run(str name, bool wrong, Tensor[] tensors, int n) -> ()");
  m.impl("run", c10::DispatchKey::CompositeExplicitAutograd, &run);
}

}  // namespace resgrow
