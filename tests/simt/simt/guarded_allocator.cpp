#include "simt/guarded_allocator.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "simt/allocations.h"
#include "simt/machine.h"

namespace simt {

namespace {

constexpr size_t kAlignment = 512;  // of CUDA's caching allocator

void release(void* p) {
  if (!p) return;
  allocations.remove(p);
  std::free(static_cast<char*>(p) - kAlignment);
}

// At least 512 bytes that nobody may touch are between two tensors.
class GuardedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const c10::Device host(c10::DeviceType::CPU);
    if (size == 0) return {nullptr, nullptr, &release, host};
    const size_t whole = (size + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
    char* const memory = static_cast<char*>(std::aligned_alloc(kAlignment, whole));
    if (!memory) throw std::bad_alloc();
    char* const begin = memory + kAlignment;
    std::fill_n(reinterpret_cast<unsigned short*>(begin), (size + 1) / 2, kPoison);
    allocations.add(begin, size);
    return {begin, begin, &release, host};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
};

GuardedAllocator guarded;
c10::Allocator* before = nullptr;

}  // namespace

void install_allocator() {
  before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&guarded);
}

void uninstall_allocator() {
  c10::SetCPUAllocator(before);
}

}  // namespace simt
