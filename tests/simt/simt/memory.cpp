#include "simt/memory.h"

#include <cstring>

#include "simt/allocations.h"
#include "simt/findings.h"
#include "simt/machine.h"
#include "simt/shadow.h"
#include "simt/traffic.h"

// Of the linker: where this library begins and ends in memory.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) const char _end[];

namespace simt {

namespace {

Cell shared_cells[kMaxShared];

const char* verb(Access access) {
  return access == Access::read ? "reads" : access == Access::write ? "writes" : "updates";
}

std::string bytes(size_t size) {
  return std::to_string(size) + (size == 1 ? " byte" : " bytes");
}

struct Memory {
  Cell* cells;
  size_t offset;
  bool shared;
};

std::string describe(const Memory& memory, const void* p, size_t byte) {
  if (memory.shared) return "byte " + std::to_string(memory.offset + byte) + " of shared memory";
  return allocations.describe(reinterpret_cast<uintptr_t>(p) + byte);
}

[[noreturn]] void fail_conflict(const Memory& memory, const void* p, size_t size, size_t byte,
                                Access access, Conflict conflict, const void* pc) {
  const Cell& cell = memory.cells[memory.offset + byte];
  const std::string here =
      std::string(verb(access)) + " " + bytes(size) + ", " + describe(memory, p, byte);
  if (conflict == Conflict::pending) {
    fail_at(here + ", while the copy_async of " + simt::describe(cell.write) + " at " +
                place(cell.write.pc) + " to it has not been waited for",
            pc);
  }
  const Mark& other = conflict == Conflict::write ? cell.write : cell.read;
  const bool elsewhere = other.block != machine.block_number;
  fail_at("race: " + here + ", which " + simt::describe(other) +
              (conflict == Conflict::read ? " read"
               : other.atomic             ? " updated atomically"
                                          : " wrote") +
              " at " + place(other.pc) +
              (elsewhere ? "; blocks of one launch are not ordered"
                         : "; no barrier is between the two"),
          pc);
}

// Whether 2-byte values are all poison, which is what torch's allocations hold until the host or a
// kernel writes them.
bool poisoned(const void* p, size_t size) {
  if (size < 2 || reinterpret_cast<uintptr_t>(p) % 2 != 0) return false;
  for (size_t i = 0; i + 2 <= size; i += 2) {
    if (std::memcmp(static_cast<const char*>(p) + i, &kPoison, 2) != 0) return false;
  }
  return true;
}

bool written(const Memory& memory, size_t byte) {
  const Cell& cell = memory.cells[memory.offset + byte];
  return cell.write.stamp >= (memory.shared ? machine.started : 1);
}

void check_written(const Memory& memory, const void* p, size_t size, const void* pc) {
  for (size_t i = 0; i < size; ++i) {
    if (written(memory, i)) continue;
    if (!memory.shared && !poisoned(p, size)) return;
    fail_at("reads " + bytes(size) + " that nobody wrote, " + describe(memory, p, i), pc);
  }
}

void note_all(const Memory& memory, const void* p, size_t size, Access access, const void* pc) {
  size_t byte;
  const Conflict conflict = note(memory.cells + memory.offset, size, access, pc,
                                 memory.shared ? machine.started : machine.launched, &byte);
  if (conflict != Conflict::none) fail_conflict(memory, p, size, byte, access, conflict, pc);
}

bool in_shared(const void* p) {
  return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(machine.shared) <
         kSharedSpace;
}

Memory shared_at(const void* p, size_t size, Access access, const void* pc) {
  const size_t offset = static_cast<const unsigned char*>(p) - machine.shared;
  if (offset + size > machine.shared_size) {
    fail_at(std::string("out of bounds: ") + verb(access) + " " + bytes(size) + " at byte " +
                std::to_string(offset) + " of " + std::to_string(machine.shared_size) +
                " bytes of shared memory",
            pc);
  }
  return {shared_cells, offset, true};
}

Memory global_at(const void* p, size_t size, Access access, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Allocation* const a = allocations.find(address);
  if (!a || !a->contains(address, size)) {
    const size_t inside = a ? a->begin + a->size - address : 0;
    fail_at(std::string("out of bounds: ") + verb(access) + " " + bytes(size) + ", " +
                (inside ? "the last " + std::to_string(size - inside) + " of them " : "") +
                allocations.describe(address + inside),
            pc);
  }
  return {a->cells.get(), address - a->begin, false};
}

// The machine's own: a thread's stack, where arguments and local arrays are, and constants.
bool is_private(const void* p, Access access, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const uintptr_t in_stacks = address - reinterpret_cast<uintptr_t>(machine.stacks.get());
  if (in_stacks < kMaxThreads * kStack) {
    if (in_stacks / kStack != machine.current->number) {
      fail_at(std::string(verb(access)) + " another thread's local memory", pc);
    }
    return true;
  }
  const auto image = reinterpret_cast<uintptr_t>(__ehdr_start);
  if (address - image < reinterpret_cast<uintptr_t>(_end) - image) {
    if (access == Access::read) return true;
    fail_at(std::string(verb(access)) + " a variable of the host", pc);
  }
  return false;
}

}  // namespace

std::string misaligned(const void* p, size_t alignment) {
  const auto* byte = static_cast<const unsigned char*>(p);
  return "at an address that is not a multiple of " + std::to_string(alignment) + ": " +
         (in_shared(p) ? "byte " + std::to_string(byte - machine.shared) + " of shared memory"
                       : allocations.describe(reinterpret_cast<uintptr_t>(p)));
}

void begin_launch() {
  releases.begin_launch();
}

void begin_block() {
  releases.begin_block();
}

void checked_access(const void* p, size_t size, size_t alignment, Access access, const void* pc) {
  if (++machine.accesses > machine.patience) {
    fail_at("a block has made " + std::to_string(machine.patience) +
                " accesses: it loops for ever or waits for another block or thread, which only a "
                "barrier can do here",
            pc);
  }
  if (!in_shared(p) && is_private(p, access, pc)) return;
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    fail_at(std::string(verb(access)) + " " + misaligned(p, alignment), pc);
  }
  const Memory memory =
      in_shared(p) ? shared_at(p, size, access, pc) : global_at(p, size, access, pc);
  if (access != Access::write) check_written(memory, p, size, pc);
  note_all(memory, p, size, access, pc);
  if (traffic.on) traffic.note(p, size, access, memory.shared, pc);
  if (access == Access::atomic && !memory.shared) releases.atomic(p);
}

void shared_access(const void* p, unsigned size, Access access, const void* pc) {
  if (!in_shared(p)) fail_at("takes an address that is not in shared memory", pc);
  checked_access(p, size, size, access, pc);
}

void access(const void* p, unsigned size, Access access, const void* pc) {
  checked_access(p, size, size, access, pc);
}

void fence() {
  machine.current->fenced = ++machine.now;
}

// The bytes belong to the copy from now on: whoever still reads them races with it.
void begin(const Copy& copy) {
  shared_access(copy.shared, copy.bytes, Access::write, copy.pc);
  if (copy.global) {
    if (in_shared(copy.global)) fail_at("copy_async from shared memory", copy.pc);
    checked_access(copy.global, copy.bytes, copy.bytes, Access::read, copy.pc);
  }
  const size_t offset = static_cast<unsigned char*>(copy.shared) - machine.shared;
  for (unsigned i = 0; i < copy.bytes; ++i) {
    shared_cells[offset + i].write.pending = 1;
    reinterpret_cast<unsigned char*>(copy.shared)[i] =
        static_cast<unsigned char>(kPoison >> i % 2 * 8);
  }
}

void complete(const Copy& copy) {
  const size_t offset = static_cast<unsigned char*>(copy.shared) - machine.shared;
  for (unsigned i = 0; i < copy.bytes; ++i) shared_cells[offset + i].write.pending = 0;
  note_all({shared_cells, offset, true}, copy.shared, copy.bytes, Access::write, copy.pc);
  if (copy.global) {
    note_all(global_at(copy.global, copy.bytes, Access::read, copy.pc), copy.global, copy.bytes,
             Access::read, copy.pc);
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

}  // namespace simt
