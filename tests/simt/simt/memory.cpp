#include "simt/memory.h"

#include <cstring>

#include "simt/machine.h"

namespace simt {

namespace {

void check_aligned(const void* p, unsigned size, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % size != 0) {
    fail("misaligned access of " + std::to_string(size) + " bytes", where);
  }
}

}  // namespace

void begin_launch() {}

void access(const void* p, unsigned size, Access, Where where) {
  check_aligned(p, size, where);
}

void access_shared(const void* p, unsigned size, Access, Where where) {
  check_aligned(p, size, where);
  const auto* byte = static_cast<const unsigned char*>(p);
  if (byte < machine.shared || byte + size > machine.shared + machine.shared_size) {
    fail("address outside of the block's shared memory", where);
  }
}

void fence() {}

void begin(const Copy& copy) {
  access_shared(copy.shared, copy.bytes, Access::write, copy.where);
  if (copy.global) access(copy.global, copy.bytes, Access::read, copy.where);
  for (unsigned i = 0; i < copy.bytes; i += 2) {
    std::memcpy(static_cast<char*>(copy.shared) + i, &kPoison, 2);
  }
}

void complete(const Copy& copy) {
  if (copy.global) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

}  // namespace simt
