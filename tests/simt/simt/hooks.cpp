// What the compiler's sanitizers make of a kernel's accesses: with -fsanitize=thread each calls one
// of these first, with -fsanitize=alignment,bounds,... those that are wrong in themselves do.
#include <cstddef>
#include <string>

#include "simt/findings.h"
#include "simt/machine.h"
#include "simt/memory.h"

namespace {

using simt::Access;

inline void see(const void* p, size_t size, Access access, const void* pc) {
  // Launchers are compiled with the kernels, but run on the host.
  const simt::Thread* const me = simt::machine.current;
  if (!me) return;
  const auto on_stack = static_cast<size_t>(static_cast<const char*>(p) - me->stack);
  if (on_stack < simt::kStack) return;
  simt::checked_access(p, size, 1, access, pc);
}

// How UBSan describes a place, which all its reports begin with.
struct Place {
  const char* file;
  unsigned line, column;
};

struct TypeMismatch {
  Place place;
  const void* type;
  unsigned char log_alignment, kind;
};

[[noreturn]] void undefined(const std::string& what, const Place& place) {
  simt::fail(what, {place.file, static_cast<int>(place.line)});
}

}  // namespace

extern "C" {

#define SIMT_HOOKS(size)                                      \
  void __tsan_read##size(void* p) {                           \
    see(p, size, Access::read, __builtin_return_address(0));  \
  }                                                           \
  void __tsan_write##size(void* p) {                          \
    see(p, size, Access::write, __builtin_return_address(0)); \
  }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
#undef SIMT_HOOKS
void __tsan_read_range(void* p, size_t size) {
  see(p, size, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t size) {
  see(p, size, Access::write, __builtin_return_address(0));
}
void __tsan_init() {}

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, void* p) {
  undefined("accesses a type " + simt::misaligned(p, size_t{1} << data->log_alignment),
            data->place);
}
void __ubsan_handle_out_of_bounds(const Place* place, void*) {
  undefined("index out of an array's bounds", *place);
}
void __ubsan_handle_shift_out_of_bounds(const Place* place, void*, void*) {
  undefined("shift by a negative or too large number of bits", *place);
}
void __ubsan_handle_divrem_overflow(const Place* place, void*, void*) {
  undefined("integer division by zero or overflow", *place);
}
}
