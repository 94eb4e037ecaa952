// Words for threads, places and deadlocks.
#include <cstring>
#include <map>

#include "simt/machine.h"

namespace simt {

std::string describe(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string describe(const Thread& t) {
  return "thread " + describe(t.index);
}

std::string describe(Where where) {
  const char* name = std::strstr(where.file, "csrc/");
  return std::string(name ? name : where.file) + ":" + std::to_string(where.line);
}

// Threads by what they wait for, with one of each kind.
std::string describe_deadlock() {
  struct Kind {
    unsigned count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Kind> kinds;
  for (unsigned i = 0; i < machine.count; ++i) {
    const Thread& t = machine.threads[i];
    Kind& kind =
        kinds[t.done ? "has returned"
                     : std::string("waits at ") + t.wait.what + ", " + describe(t.wait.where)];
    if (kind.count++ == 0) kind.first = &t;
  }
  std::string text = "deadlock in block " + describe(machine.block_index) +
                     ": not every thread that must reaches the same barrier or collective:";
  for (const auto& [what, kind] : kinds) {
    text += " " + describe(*kind.first) + " " + what;
    text += kind.count > 1 ? " (and " + std::to_string(kind.count - 1) + " others);" : ";";
  }
  text.back() = '.';
  return text;
}

}  // namespace simt
