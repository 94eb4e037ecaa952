#include "simt/shadow.h"

#include <algorithm>
#include <cstring>

#include "simt/machine.h"
#include "simt/symbols.h"

namespace simt {

Releases releases;

namespace {

Mark mark_now(Access access, const void* pc) {
  Mark me;
  me.stamp = machine.now;
  me.block = machine.block_number;
  me.thread = machine.current->number;
  me.atomic = access == Access::atomic;
  me.pc = offset_in_library(pc);
  return me;
}

// Whether the earlier access comes before whatever the current thread does now.
bool ordered(const Mark& earlier, uint32_t since) {
  const Machine& m = machine;
  if (earlier.stamp < since) return true;
  const auto scope = static_cast<Scope>(earlier.scope);
  if (earlier.block != m.block_number || scope == Scope::grid) return releases.knows(earlier);
  if (earlier.stamp < m.barrier.synced) return true;
  const unsigned me = m.current->number;
  if (scope == Scope::thread && earlier.thread == me) return true;
  return scope != Scope::block && earlier.thread / kWarp == me / kWarp &&
         earlier.stamp < m.warps[me / kWarp].synced;
}

// What stands for both the earlier accesses and mine.
Mark merged(const Mark& earlier, const Mark& me, uint32_t since) {
  if (ordered(earlier, since)) return me;
  Mark both = me;
  Scope scope = Scope::warp;
  if (earlier.block != me.block) {
    scope = Scope::grid;
  } else if (earlier.thread / kWarp != me.thread / kWarp) {
    scope = Scope::block;
  }
  both.scope = std::max<unsigned>(earlier.scope, static_cast<unsigned>(scope));
  return both;
}

Conflict note(Cell& cell, const Mark& me, Access access, uint32_t since) {
  if (cell.write.pending && cell.write.stamp >= since) return Conflict::pending;
  const bool both_atomic = access == Access::atomic && cell.write.atomic;
  if (!both_atomic && !ordered(cell.write, since)) return Conflict::write;
  if (access == Access::read) {
    cell.read = merged(cell.read, me, since);
    return Conflict::none;
  }
  if (!ordered(cell.read, since)) return Conflict::read;
  cell.write = both_atomic ? merged(cell.write, me, since) : me;
  return Conflict::none;
}

}  // namespace

Conflict note(Cell* cells, size_t size, Access access, const void* pc, uint32_t since,
              size_t* byte) {
  const Mark me = mark_now(access, pc);
  // Most often the bytes of an access have one history. (Copied as bytes: a compiler takes bit
  // fields apart otherwise.)
  Cell before, after;
  for (*byte = 0; *byte < size; ++*byte) {
    Cell& cell = cells[*byte];
    if (*byte > 0 && std::memcmp(&cell, &before, sizeof cell) == 0) {
      std::memcpy(&cell, &after, sizeof cell);
      continue;
    }
    std::memcpy(&before, &cell, sizeof cell);
    const Conflict conflict = note(cell, me, access, since);
    if (conflict != Conflict::none) return conflict;
    std::memcpy(&after, &cell, sizeof cell);
  }
  return Conflict::none;
}

void Releases::begin_launch() {
  released_.clear();
  known_.clear();
}

void Releases::atomic(const void* p) {
  const Machine& m = machine;
  const Thread& me = *m.current;
  auto& here = released_[p];
  for (const Release& r : here) {
    if (r.block != m.block_number) known_.push_back(r);
  }
  if (me.fenced == 0) return;
  // Other threads of the block take part if a barrier came between their accesses and this thread's
  // fence, or between the fences of all of them and this atomic.
  uint32_t of_block = m.barrier.synced;
  if (me.fenced < of_block) {
    const bool all = std::all_of(
        m.threads.begin(), m.threads.begin() + m.count,
        [&](const Thread& t) { return t.fenced >= std::max(m.barrier.synced_before, m.started); });
    if (!all) of_block = 0;
  }
  here.push_back({m.block_number, me.number, me.fenced, of_block});
}

bool Releases::knows(const Mark& earlier) const {
  if (static_cast<Scope>(earlier.scope) == Scope::grid) {
    // Whose accesses these were is not known any more: all other blocks must have released theirs.
    std::vector<bool> seen(machine.grid.x * machine.grid.y * machine.grid.z);
    for (const Release& r : known_) seen[r.block] = true;
    seen[machine.block_number] = true;
    return std::all_of(seen.begin(), seen.end(), [](bool b) { return b; });
  }
  return std::any_of(known_.begin(), known_.end(), [&](const Release& r) {
    return r.block == earlier.block &&
           (earlier.stamp < r.of_block ||
            (r.thread == earlier.thread && earlier.stamp < r.of_thread));
  });
}

}  // namespace simt
