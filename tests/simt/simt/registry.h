// The families' registrations, made when the library is loaded and used while the interpreter is
// installed.
#pragma once

#include <torch/library.h>

#include <vector>

namespace simt {

using Registration = void (*)(torch::Library&);
std::vector<Registration>& registrations();

struct Registered {
  explicit Registered(Registration f) { registrations().push_back(f); }
};

}  // namespace simt
