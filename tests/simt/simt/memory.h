// Accesses to memory: where they go, and whether they may.
#pragma once

#include <string>

#include "simt/copies.h"
#include "simt/interface.h"

namespace simt {

void begin_launch();
void begin_block();
// One of the current thread's; `alignment` of its address is required.
void checked_access(const void* p, size_t size, size_t alignment, Access, const void* pc);
// Of memory that must be the block's shared one.
void shared_access(const void* p, unsigned size, Access, const void* pc);
// Words for an address that is not a multiple of `alignment`.
std::string misaligned(const void* p, size_t alignment);
// The two ends of an asynchronous copy.
void begin(const Copy&);
void complete(const Copy&);

}  // namespace simt
