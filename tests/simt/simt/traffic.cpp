#include "simt/traffic.h"

#include <algorithm>

#include "simt/machine.h"
#include "simt/symbols.h"

namespace simt {

Traffic traffic;

namespace {

constexpr size_t kSector = 32;
constexpr size_t kBanks = 32;
constexpr size_t kWord = 4;
constexpr size_t kTurn = kBanks * kWord;

size_t parts(size_t bytes, size_t of) {
  return (bytes + of - 1) / of;
}

using Units = std::vector<uintptr_t>;

// The units of `size` bytes that accesses touch, each once.
Units units(const std::vector<uintptr_t>& addresses, size_t bytes, size_t size) {
  Units all;
  for (const uintptr_t p : addresses) {
    for (uintptr_t u = p / size; u <= (p + bytes - 1) / size; ++u) all.push_back(u);
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

struct Cost {
  size_t taken = 0, needed = 0;
};

// Bytes are counted in the largest unit that accesses of this size are aligned to.
Cost of_global(const std::vector<uintptr_t>& addresses, size_t size) {
  const size_t unit = size % kWord == 0 ? kWord : size;
  return {units(addresses, size, kSector).size(),
          parts(units(addresses, size, unit).size() * unit, kSector)};
}

// One part of a request: lanes that together want up to 128 bytes.
Cost of_shared(const std::vector<uintptr_t>& addresses, size_t size) {
  const Units words = units(addresses, size, kWord);
  size_t of_bank[kBanks] = {};
  for (const uintptr_t w : words) ++of_bank[w % kBanks];
  return {*std::max_element(of_bank, of_bank + kBanks), parts(words.size(), kBanks)};
}

}  // namespace

void Traffic::note(const void* p, size_t size, Access access, bool shared, const void* pc) {
  const unsigned thread = machine.current->number;
  Site& site = of_block_[{Key{offset_in_library(pc), access, shared}, thread / kWarp}];
  const unsigned visit = site.visits[thread % kWarp]++;
  if (site.requests.size() <= visit) site.requests.resize(visit + 1);
  Request& request = site.requests[visit];
  request.size = size;
  request.addresses.push_back(reinterpret_cast<uintptr_t>(p));
  request.lanes.push_back(thread % kWarp);
}

void Traffic::end_block() {
  for (const auto& [place, site] : of_block_) {
    const Key& key = place.first;
    Row& row = rows_[{machine.kernel, key}];
    for (const Request& request : site.requests) {
      ++row.requests;
      // Lanes whose accesses make 128 bytes are served together.
      const size_t together =
          key.shared ? std::clamp<size_t>(kTurn / request.size, 1, kWarp) : kWarp;
      for (size_t first = 0; first < kWarp; first += together) {
        std::vector<uintptr_t> part;
        for (size_t i = 0; i < request.lanes.size(); ++i) {
          if (request.lanes[i] / together == first / together) part.push_back(request.addresses[i]);
        }
        if (part.empty()) continue;
        const Cost cost =
            key.shared ? of_shared(part, request.size) : of_global(part, request.size);
        row.taken += cost.taken;
        row.needed += cost.needed;
      }
    }
  }
  of_block_.clear();
}

std::vector<Traffic::Row> Traffic::take() {
  static constexpr const char* kVerbs[] = {"read", "write", "atomic"};
  std::vector<uint32_t> offsets;
  for (const auto& [key, row] : rows_) {
    offsets.push_back(offset_in_library(key.first));
    offsets.push_back(offset_of_call(key.second.pc));
  }
  const std::vector<Symbol> found = symbols(offsets);
  std::vector<Row> all;
  for (auto& [key, row] : rows_) {
    row.kernel = found[2 * all.size()].function;
    row.place = found[2 * all.size() + 1].place;
    row.what = std::string(key.second.shared ? "shared " : "global ") +
               kVerbs[static_cast<int>(key.second.access)];
    all.push_back(std::move(row));
  }
  rows_.clear();
  return all;
}

}  // namespace simt
