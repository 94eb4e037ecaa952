// What -fsanitize=thread makes of a kernel's accesses.
#include "simt/machine.h"

extern "C" {
#define SIMT_HOOKS(size)           \
  void __tsan_read##size(void*) {} \
  void __tsan_write##size(void*) {}
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
void __tsan_read_range(void*, long) {}
void __tsan_write_range(void*, long) {}
void __tsan_init() {}
}
