// Accesses to memory, checked.
#pragma once

#include "simt/copies.h"
#include "simt/interface.h"

namespace simt {

void begin_launch();
void access_shared(const void* p, unsigned size, Access, Where);
// The two ends of an asynchronous copy.
void begin(const Copy&);
void complete(const Copy&);

}  // namespace simt
