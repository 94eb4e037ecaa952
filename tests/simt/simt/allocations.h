// The memory of the tensors that kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "simt/shadow.h"

namespace simt {

struct Allocation {
  uintptr_t begin = 0;
  size_t size = 0;
  unsigned serial = 0;
  std::unique_ptr<Cell[]> cells;  // made when a kernel first touches it

  bool contains(uintptr_t p, size_t bytes) const {
    return p - begin < size && bytes <= size - (p - begin);
  }
};

class Allocations {
 public:
  void add(void* begin, size_t size);
  void remove(void* begin);
  // The one that p lies in or, where there is none, null.
  Allocation* find(uintptr_t p);
  // "12 bytes past the end of a tensor's 400 bytes"
  std::string describe(uintptr_t p);

 private:
  Allocation* nearest(uintptr_t p);

  static constexpr unsigned kCached = 64;
  std::mutex mutex_;  // tensors come and go on other threads too
  std::map<uintptr_t, Allocation> by_begin_;
  Allocation* cached_[kCached] = {};  // by page
  unsigned serial_ = 0;
};
extern Allocations allocations;

}  // namespace simt
