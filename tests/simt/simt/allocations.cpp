#include "simt/allocations.h"

#include <algorithm>

namespace simt {

Allocations allocations;

void Allocations::add(void* begin, size_t size) {
  const std::lock_guard<std::mutex> guard(mutex_);
  Allocation& a = by_begin_[reinterpret_cast<uintptr_t>(begin)];
  a.begin = reinterpret_cast<uintptr_t>(begin);
  a.size = size;
  a.serial = ++serial_;
}

void Allocations::remove(void* begin) {
  const std::lock_guard<std::mutex> guard(mutex_);
  by_begin_.erase(reinterpret_cast<uintptr_t>(begin));
  std::fill(std::begin(cached_), std::end(cached_), nullptr);
}

Allocation* Allocations::find(uintptr_t p) {
  Allocation*& cached = cached_[p / 4096 % kCached];
  if (cached && cached->contains(p, 1)) return cached;
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto after = by_begin_.upper_bound(p);
  if (after == by_begin_.begin()) return nullptr;
  Allocation& a = std::prev(after)->second;
  if (!a.contains(p, 1)) return nullptr;
  if (!a.cells) a.cells.reset(new Cell[a.size]);
  return cached = &a;
}

Allocation* Allocations::nearest(uintptr_t p) {
  const auto after = by_begin_.upper_bound(p);
  Allocation* const above = after == by_begin_.end() ? nullptr : &after->second;
  if (after == by_begin_.begin()) return above;
  Allocation* const below = &std::prev(after)->second;
  if (above && !below->contains(p, 1) && above->begin - p < p - (below->begin + below->size))
    return above;
  return below;
}

std::string Allocations::describe(uintptr_t p) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const Allocation* a = nearest(p);
  const std::string known = "a tensor made while the interpreter is installed";
  if (!a) return "in no memory of " + known + " (copy what was made before: machine.put)";
  std::string text = known + ", number " + std::to_string(a->serial) + ", of " +
                     std::to_string(a->size) + " bytes";
  if (a->contains(p, 1)) return "byte " + std::to_string(p - a->begin) + " of " + text;
  const bool before = p < a->begin;
  const size_t distance = before ? a->begin - p : p - (a->begin + a->size);
  text = std::to_string(distance) + " bytes " + (before ? "before " : "past the end of ") + text;
  constexpr size_t kNear = 4096;
  if (distance > kNear) text += " (or in one made before: copy those with machine.put)";
  return text;
}

}  // namespace simt
