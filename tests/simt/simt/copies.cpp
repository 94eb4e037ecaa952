// cp.async: nothing arrives before it is waited for, which is as late as the machine may do it.
#include "simt/copies.h"

#include <cstring>

#include "simt/machine.h"
#include "simt/memory.h"

namespace simt {

void Copies::commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
}

void Copies::wait(unsigned pending) {
  while (groups_.size() > pending) {
    for (const Copy& copy : groups_.front()) complete(copy);
    groups_.erase(groups_.begin());
  }
}

void Copies::clear() {
  open_.clear();
  groups_.clear();
}

void copy_async(void* shared, const void* global, unsigned bytes, bool valid) {
  const Copy copy{shared, valid ? global : nullptr, bytes, __builtin_return_address(0)};
  begin(copy);
  machine.current->copies.add(copy);
}

void copy_async_commit() {
  machine.current->copies.commit();
}

void copy_async_wait(unsigned pending) {
  machine.current->copies.wait(pending);
}

}  // namespace simt
