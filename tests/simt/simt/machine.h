// The state of the machine that interprets: one launch, one block of it at a time, a fiber per
// thread of the block.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "simt/copies.h"
#include "simt/fiber.h"
#include "simt/interface.h"

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlocks = 1u << 18;   // numbers that shadow memory has bits for
constexpr size_t kMaxShared = 227 * 1024;   // of a block, on sm_90
constexpr size_t kSharedSpace = 1 << 18;    // around it
constexpr size_t kStack = 64 * 1024;        // of a thread
constexpr unsigned short kPoison = 0xffa5;  // no number in any type of floating point

// What a thread waits for; null while it runs.
struct Wait {
  const char* what = nullptr;
  Where where{};
};

struct Thread {
  Fiber fiber;
  const char* stack;
  uint3 index;
  unsigned number;  // in its block
  bool done;
  Wait wait;
  Copies copies;
  uint32_t fenced;  // when it last called __threadfence
};

// A lane's operands of a collective, and the meeting of 32 lanes.
struct Operands {
  alignas(16) uint32_t word[12];
};
struct Meeting {
  Operands in[kWarp];
  Operands out[kWarp];
};
struct Warp {
  Meeting meetings[2];  // a lane may be at the next one while others still read this one
  unsigned turn = 0;
  unsigned arrived = 0;
  Wait wait;            // of the lanes that are here
  uint32_t synced = 0;  // when its lanes last synchronised memory
};

struct Barrier {
  unsigned arrived = 0;
  unsigned votes = 0;
  unsigned result = 0;
  Wait wait;
  uint32_t synced = 0, synced_before = 0;
};

struct Machine {
  // Of the launch.
  dim3 grid, block;
  size_t shared_size = 0;
  void (*call)(const void*) = nullptr;
  const void* body = nullptr;
  const void* kernel = nullptr;
  uint32_t launched = 0;
  // Of the block.
  uint3 block_index;
  unsigned block_number = 0;
  unsigned count = 0;  // of threads
  uint32_t started = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<Thread*> ready;
  unsigned finished = 0;
  Thread* current = nullptr;
  // Of the machine.
  Fiber scheduler;
  std::unique_ptr<char[]> stacks;
  unsigned started_stacks = 0;
  unsigned char* shared = nullptr;
  uint64_t random = 1;
  uint64_t patience = uint64_t{1} << 30;  // accesses that a block may make
  uint64_t accesses = 0;
  uint32_t now = 1;  // grows with everything that orders accesses
  std::string failure;

  unsigned draw(unsigned below);
  [[noreturn]] void stop();  // the launch, from within a thread
  Warp& warp() { return warps[current->number / kWarp]; }
};
extern Machine machine;

// Lets others run until this thread is made ready again.
void suspend();
inline void make_ready(Thread& t) {
  t.wait.what = nullptr;
  machine.ready.push_back(&t);
}

}  // namespace simt
