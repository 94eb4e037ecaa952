// Addresses of this library in words, from its debug information.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

struct Symbol {
  std::string function = "?";
  std::string place = "an unknown place";  // file:line
};

// Addresses as offsets from where the library begins in memory.
uint32_t offset_in_library(const void* p);
// All of them in one go: reading the debug information is what takes time. Of inlined functions the
// innermost that is not the interpreter's counts for the place.
std::vector<Symbol> symbols(const std::vector<uint32_t>& offsets);

// A call is known by the address that it returns to: its line is that of the byte before.
inline uint32_t offset_of_call(uint32_t returns_to) {
  return returns_to - 1;
}

}  // namespace simt
