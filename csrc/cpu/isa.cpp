#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace resgrow {
namespace {

struct Entry {
  const char* name;
  const KernelTable* table;
  bool usable;
};

// Weakest first, so that the last usable entry is the best.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = [] {
    std::vector<Entry> found;
    found.push_back({"base", kernel_table_base(), true});
#ifdef RESGROW_HAVE_AVX2
    found.push_back({"avx2", kernel_table_avx2(),
                     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#ifdef RESGROW_HAVE_AVX512
    found.push_back({"avx512", kernel_table_avx512(),
                     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("fma")});
#endif
    return found;
  }();
  return list;
}

// How many entries ATEN_CPU_CAPABILITY leaves in play.
size_t allowed_entries() {
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  if (cap == nullptr) return entries().size();
  const std::string name = cap;
  if (name == "default") return 1;
  if (name == "avx2") return std::min<size_t>(2, entries().size());
  return entries().size();
}

const Entry* best_entry() {
  const Entry* best = &entries().front();
  for (size_t i = 0; i < allowed_entries(); ++i) {
    if (entries()[i].usable) best = &entries()[i];
  }
  return best;
}

std::atomic<const Entry*>& current() {
  static std::atomic<const Entry*> entry{best_entry()};
  return entry;
}

}  // namespace

const KernelTable& kernels() {
  return *current().load(std::memory_order_relaxed)->table;
}

std::string cpu_isa() {
  return current().load(std::memory_order_relaxed)->name;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) names.emplace_back(entry.name);
  return names;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (entry.usable) names.emplace_back(entry.name);
  }
  return names;
}

void set_cpu_isa(const std::string& name) {
  for (const Entry& entry : entries()) {
    if (name == entry.name && entry.usable) {
      current().store(&entry);
      return;
    }
  }
  std::string usable;
  for (const std::string& known : usable_isas()) usable += " " + known;
  throw std::invalid_argument("set_cpu_isa: the name must be one of those usable here (got '" +
                              name + "', usable:" + usable + ")");
}

}  // namespace resgrow
