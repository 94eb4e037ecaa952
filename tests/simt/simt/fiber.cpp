#include "simt/fiber.h"

#include <cstring>

#if defined(SIMT_ASSEMBLY) && defined(__x86_64__)

// simt_transfer(void** save, void* load): registers that a call preserves go to the stack.
asm(R"(
.text
.p2align 4
.type simt_transfer, @function
simt_transfer:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_transfer, .-simt_transfer
)");
constexpr int kReturn = 6;  // where it is
constexpr int kFrameWords =
    8;  // an entered function finds its stack at 8 bytes above a multiple of 16

#elif defined(SIMT_ASSEMBLY)

asm(R"(
.text
.p2align 4
.type simt_transfer, %function
simt_transfer:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_transfer, .-simt_transfer
)");
constexpr int kReturn = 11;  // x30
constexpr int kFrameWords = 20;

#endif

namespace simt {

#ifdef SIMT_ASSEMBLY

extern "C" void simt_transfer(void** save, void* load);

void Fiber::start(char* stack, size_t size, void (*entry)()) {
  const auto top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top) - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof(void*));
  frame[kReturn] = reinterpret_cast<void*>(entry);
  stack_pointer_ = frame;
}

void Fiber::transfer(Fiber& from, Fiber& to) {
  simt_transfer(&from.stack_pointer_, to.stack_pointer_);
}

#else

void Fiber::start(char* stack, size_t size, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = size;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::transfer(Fiber& from, Fiber& to) {
  swapcontext(&from.context_, &to.context_);
}

#endif

}  // namespace simt
