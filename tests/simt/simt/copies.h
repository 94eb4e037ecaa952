// A thread's copies under way from global to shared memory.
#pragma once

#include <cstdint>
#include <vector>

#include "simt/interface.h"

namespace simt {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  unsigned bytes;
  const void* pc;  // of copy_async
};

class Copies {
 public:
  void add(const Copy& copy) { open_.push_back(copy); }
  void commit();
  // Completes all but the youngest `pending` committed groups.
  void wait(unsigned pending);
  void clear();

 private:
  std::vector<Copy> open_;
  std::vector<std::vector<Copy>> groups_;
};

}  // namespace simt
