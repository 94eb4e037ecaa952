// Launches: blocks in shuffled order, and within a block threads that run, in shuffled order, from
// one meeting to the next.
#include "simt/machine.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <utility>

#include "simt/findings.h"
#include "simt/memory.h"
#include "simt/traffic.h"

namespace simt {

Machine machine;

namespace {

std::mutex one_launch_at_a_time;

// CUDA's numbers of errors.
constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kInvalidConfiguration = 9;
constexpr int kLaunchFailure = 719;

void transfer_to_next(Fiber& from) {
  Machine& m = machine;
  if (m.ready.empty()) {
    m.current = nullptr;
    Fiber::transfer(from, m.scheduler);
    return;
  }
  std::swap(m.ready[m.draw(m.ready.size())], m.ready.back());
  Thread* const next = m.ready.back();
  m.ready.pop_back();
  m.current = next;
  if (&next->fiber != &from) Fiber::transfer(from, next->fiber);
}

// Every fiber comes here once, and back to here for every block.
void thread_main() {
  for (;;) {
    machine.call(machine.body);
    Thread& me = *machine.current;
    me.done = true;
    ++machine.finished;
    transfer_to_next(me.fiber);
  }
}

void start_fibers() {
  Machine& m = machine;
  if (!m.stacks) m.stacks.reset(new char[kMaxThreads * kStack]);
  for (; m.started_stacks < m.count; ++m.started_stacks) {
    char* const stack = &m.stacks[m.started_stacks * kStack];
    m.threads[m.started_stacks].stack = stack;
    m.threads[m.started_stacks].fiber.start(stack, kStack, thread_main);
  }
}

void run_block(unsigned number) {
  Machine& m = machine;
  m.block_number = number;
  m.block_index = {number % m.grid.x, number / m.grid.x % m.grid.y, number / m.grid.x / m.grid.y};
  m.started = ++m.now;
  begin_block();
  m.finished = 0;
  m.accesses = 0;
  m.barrier = {};
  m.warps.assign((m.count + kWarp - 1) / kWarp, {});
  m.ready.clear();
  for (unsigned i = 0; i < m.count; ++i) {
    Thread& t = m.threads[i];
    t.number = i;
    t.index = {i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y)};
    t.done = false;
    t.copies.clear();
    t.fenced = 0;
    make_ready(t);
  }
  std::fill_n(reinterpret_cast<unsigned short*>(m.shared), (m.shared_size + 1) / 2, kPoison);
  transfer_to_next(m.scheduler);
  if (m.failure.empty() && m.finished < m.count) m.failure = describe_deadlock();
  if (traffic.on) traffic.end_block();
}

bool possible(dim3 grid, dim3 block) {
  const auto positive = [](dim3 d) { return d.x > 0 && d.y > 0 && d.z > 0; };
  return positive(grid) && positive(block) && grid.x < 1u << 31 && grid.y < 65536 &&
         grid.z < 65536 && block.z <= 64 && uint64_t(block.x) * block.y * block.z <= kMaxThreads;
}

}  // namespace

unsigned Machine::draw(unsigned below) {
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  return static_cast<unsigned>((random >> 32) * below >> 32);
}

void Machine::stop() {
  Fiber& from = std::exchange(current, nullptr)->fiber;
  Fiber::transfer(from, scheduler);
  std::abort();  // nobody resumes it
}

int run(dim3 grid, dim3 block, size_t shared, void (*call)(const void*), const void* body,
        const void* kernel) {
  const std::lock_guard<std::mutex> guard(one_launch_at_a_time);
  Machine& m = machine;
  m.failure.clear();
  m.kernel = kernel;
  if (!possible(grid, block)) {
    m.failure = "invalid configuration: grid " + describe({grid.x, grid.y, grid.z}) + ", block " +
                describe({block.x, block.y, block.z});
    return kInvalidConfiguration;
  }
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (shared > kMaxShared || blocks > kMaxBlocks) {
    m.failure = std::to_string(shared) + " bytes of shared memory, " + std::to_string(blocks) +
                " blocks: the most are " + std::to_string(kMaxShared) + " and, interpreted, " +
                std::to_string(kMaxBlocks);
    return kInvalidValue;
  }
  m.grid = grid;
  m.block = block;
  m.count = block.x * block.y * block.z;
  m.shared_size = shared;
  m.call = call;
  m.body = body;
  m.threads.resize(kMaxThreads);
  m.ready.reserve(kMaxThreads);
  if (!m.shared) m.shared = static_cast<unsigned char*>(std::aligned_alloc(1024, kSharedSpace));
  start_fibers();
  begin_launch();
  m.launched = ++m.now;

  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[m.draw(i)]);
  for (const unsigned number : order) {
    run_block(number);
    if (!m.failure.empty()) {
      m.failure += "\n  in " + function_at(m.kernel);
      m.started_stacks = 0;  // those fibers are in the middle of something: never resumed
      return kLaunchFailure;
    }
  }
  return kSuccess;
}

void suspend() {
  transfer_to_next(machine.current->fiber);
}

uint3 thread_index() {
  return machine.current->index;
}
uint3 block_index() {
  return machine.block_index;
}
dim3 block_size() {
  return machine.block;
}
dim3 grid_size() {
  return machine.grid;
}
unsigned lane() {
  return machine.current->number % kWarp;
}
void* shared_memory() {
  return machine.shared;
}

}  // namespace simt
