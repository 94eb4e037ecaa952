#include "simt/findings.h"

#include <map>
#include <stdexcept>

#include "simt/machine.h"
#include "simt/shadow.h"
#include "simt/symbols.h"

namespace simt {

namespace {

std::string threads_name(unsigned block, unsigned thread) {
  const Machine& m = machine;
  const uint3 b = {block % m.grid.x, block / m.grid.x % m.grid.y, block / m.grid.x / m.grid.y};
  return describe(m.threads[thread]) + " of block " + describe(b);
}

}  // namespace

std::string place(uint32_t offset) {
  return symbols({offset_of_call(offset)}).front().place;
}

std::string function_at(const void* pc) {
  return symbols({offset_in_library(pc)}).front().function;
}

std::string describe(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string describe(const Thread& t) {
  return "thread " + describe(t.index);
}

std::string describe(Where where) {
  const std::string path = where.file;
  const size_t at = path.find("csrc/");
  return path.substr(at == std::string::npos ? 0 : at) + ":" + std::to_string(where.line);
}

std::string describe(const Mark& mark) {
  std::string text = threads_name(mark.block, mark.thread);
  if (static_cast<Scope>(mark.scope) != Scope::thread) text += " and others";
  return text;
}

void fail(std::string message, Where where) {
  Machine& m = machine;
  if (where.file) message += ", at " + describe(where);
  if (!m.current) throw std::runtime_error(message);
  m.failure = std::move(message);
  m.failure += "\n  by " + threads_name(m.block_number, m.current->number);
  m.stop();
}

void fail_at(std::string message, const void* pc) {
  fail(message + ", at " + place(offset_in_library(pc)));
}

// Threads by what they wait for, with the first of each kind.
std::string describe_deadlock() {
  struct Kind {
    unsigned count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Kind> kinds;
  for (unsigned i = 0; i < machine.count; ++i) {
    const Thread& t = machine.threads[i];
    Kind& kind =
        kinds[t.done ? "returned"
                     : std::string("waits at ") + t.wait.what + ", " + describe(t.wait.where)];
    if (kind.count++ == 0) kind.first = &t;
  }
  std::string text = "deadlock in block " + describe(machine.block_index) +
                     ": not all threads that must come to a barrier or warp-wide operation do";
  for (const auto& [what, kind] : kinds) {
    text += "\n  " + describe(*kind.first);
    if (kind.count > 1) text += " and " + std::to_string(kind.count - 1) + " more";
    text += ": " + what;
  }
  return text;
}

}  // namespace simt
