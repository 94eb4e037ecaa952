// What was found, in words: threads, places in the source, deadlocks.
#pragma once

#include <cstdint>
#include <string>

#include "simt/interface.h"

namespace simt {

struct Thread;
struct Mark;

// Ends the launch with a finding about the current thread, or throws where none runs.
[[noreturn]] void fail(std::string message, Where = {});
[[noreturn]] void fail_at(std::string message, const void* pc);

std::string describe(uint3);
std::string describe(const Thread&);
std::string describe(Where);
std::string describe(const Mark&);
std::string describe_deadlock();

// Of an access, by the offset of its call; and of a kernel, by its address.
std::string place(uint32_t offset);
std::string function_at(const void* pc);

}  // namespace simt
