// What warps ask of memory, by line of the source: how much more than they need.
//
// Lanes' accesses at one place are one request of their warp if each lane comes there for the same
// time in its block, which holds where lanes take loops together. Global memory answers in sectors
// of 32 bytes; shared memory has 32 banks of 4 bytes, and a request takes one turn more for each
// further word that it wants of one bank, in parts of 128 bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "simt/interface.h"

namespace simt {

class Traffic {
 public:
  struct Row {
    std::string kernel, place, what;
    uint64_t requests = 0;
    uint64_t taken = 0;   // sectors or turns
    uint64_t needed = 0;  // had all bytes that differ been side by side
  };

  bool on = false;

  void note(const void* p, size_t size, Access, bool shared, const void* pc);
  void end_block();
  // All since the last call.
  std::vector<Row> take();

 private:
  struct Request {
    size_t size = 0;
    std::vector<uintptr_t> addresses;  // of its lanes, in any order
    std::vector<unsigned> lanes;
  };
  struct Site {
    unsigned visits[32] = {};
    std::vector<Request> requests;
  };
  struct Key {
    uint32_t pc;
    Access access;
    bool shared;
    bool operator<(const Key& o) const {
      return std::tie(pc, access, shared) < std::tie(o.pc, o.access, o.shared);
    }
  };

  std::map<std::pair<Key, unsigned>, Site> of_block_;  // by place and warp
  std::map<std::pair<const void*, Key>, Row> rows_;    // by kernel and place
};
extern Traffic traffic;

}  // namespace simt
