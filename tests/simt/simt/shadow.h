// Who last wrote and read each byte, and what orders two accesses.
//
// A clock that grows with every launch, block, barrier, __syncwarp and fence stamps accesses. As
// the machine runs one thread at a time, an access is ordered before the present one by a barrier
// of their block exactly if its stamp is older than that barrier's, and so for warps and launches:
// no vector clocks are needed, and a race is found in whichever order threads happen to run.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "simt/interface.h"

namespace simt {

// Whom a mark stands for: unordered reads (or atomics) of several threads share one.
enum class Scope : unsigned { thread, warp, block, grid };

struct Mark {
  uint32_t stamp = 0;
  uint32_t block : 18;
  uint32_t thread : 10;
  uint32_t scope : 2;
  uint32_t atomic : 1;
  uint32_t pending : 1;  // an asynchronous copy that has not been waited for
  uint32_t pc = 0;       // from the library's begin
  Mark() : block(0), thread(0), scope(0), atomic(0), pending(0) {}
};

struct alignas(8) Cell {
  Mark write, read;
};

enum class Conflict { none, write, read, pending };

// Checks an access of the current thread against each byte's earlier ones and notes it. Stops at
// the first byte with a conflict, whose number goes to `byte`. Marks older than `since` do not
// count: the launch's begin or, for shared memory, the block's.
Conflict note(Cell* cells, size_t size, Access, const void* pc, uint32_t since, size_t* byte);

// __threadfence and atomics: a block that finds another's atomic in one of its own knows what that
// other has fenced off before ("the last block adds up").
class Releases {
 public:
  void begin_launch();
  void begin_block() { known_.clear(); }
  void atomic(const void* p);
  bool knows(const Mark& earlier) const;

 private:
  struct Release {
    unsigned block, thread;
    uint32_t of_thread;  // accesses of that thread older than this are released,
    uint32_t of_block;   // and of its block older than this
  };
  std::unordered_map<const void*, std::vector<Release>> released_;
  std::vector<Release> known_;
};
extern Releases releases;

}  // namespace simt
