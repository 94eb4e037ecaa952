// Operators that Python calls without torch.ops.
#pragma once

#include <Python.h>

namespace resgrow {

// False with a Python error set.
bool add_direct_calls(PyObject* module);

}  // namespace resgrow
