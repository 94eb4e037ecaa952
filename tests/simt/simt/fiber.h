// Fibers: stacks that one thread of the host switches between, in a few instructions where their
// assembly is written down here. (swapcontext enters the system to save a signal mask.)
#pragma once

#include <cstddef>
#include <cstdint>

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(SIMT_NO_ASSEMBLY)
#  define SIMT_ASSEMBLY
#else
#  include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // The next transfer to this fiber enters `entry`, which never returns, on the given stack.
  void start(char* stack, size_t size, void (*entry)());
  static void transfer(Fiber& from, Fiber& to);

 private:
#ifdef SIMT_ASSEMBLY
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace simt
