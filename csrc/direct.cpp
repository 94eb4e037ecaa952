// Python's way past torch.ops to operators that small tensors call often: matching three arguments
// to a schema takes as long as ten thousand values do.
#include "direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/library.h>

namespace resgrow {
namespace {

// What torch.ops would hand on to others, it must see: subclasses, modes and torch.jit.trace.
// torch.func, torch_dispatch modes and all the rest live in the dispatcher.
bool nobody_listens(PyObject* const* tensors, Py_ssize_t count) {
  if (at::impl::torch_function_mode_enabled() || at::tracer::impl::is_dispatch_enabled())
    return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!THPVariable_CheckExact(tensors[i])) return false;
  }
  return true;
}

PyObject* tristate_relu(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 3 || !nobody_listens(args, count)) Py_RETURN_NONE;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("resgrow::tristate_relu", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  at::Tensor y;
  {
    pybind11::gil_scoped_release no_gil;
    y = op.call(THPVariable_Unpack(args[0]), THPVariable_Unpack(args[1]),
                THPVariable_Unpack(args[2]));
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"tristate_relu", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&tristate_relu)),
     METH_FASTCALL,
     "torch.ops.resgrow.tristate_relu(x, w, d), or None where that has to be called."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_direct_calls(PyObject* module) {
  return PyModule_AddFunctions(module, methods) == 0;
}

}  // namespace resgrow
