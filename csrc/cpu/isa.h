// The one CPU probe: which kernel table this process uses.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/table.h"

namespace resgrow {

// The table in use: the best compiled one that the processor runs, capped by the
// environment variable ATEN_CPU_CAPABILITY (default, avx2, avx512) as torch's own is.
const KernelTable& kernels();

std::string cpu_isa();                     // name of the table in use
std::vector<std::string> compiled_isas();  // every table in this build, weakest first
std::vector<std::string> usable_isas();    // those this processor runs

// Switches the table by name; for tests and benchmarks. Throws if it is not usable.
void set_cpu_isa(const std::string& name);

}  // namespace resgrow
