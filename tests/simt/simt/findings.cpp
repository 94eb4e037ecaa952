#include "simt/findings.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "simt/machine.h"
#include "simt/shadow.h"

namespace simt {

namespace {

const Dl_info& library() {
  static const Dl_info info = [] {
    Dl_info found{};
    dladdr(&machine, &found);
    return found;
  }();
  return info;
}

// Function and file:line of every function that is inlined at an address, innermost first.
std::vector<std::string> symbolized(uint32_t offset) {
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -e '%s' -C -f -i %#x 2>/dev/null",
                library().dli_fname, offset);
  std::vector<std::string> lines;
  if (FILE* const pipe = popen(command, "r")) {
    char line[4096];
    while (std::fgets(line, sizeof line, pipe)) {
      lines.emplace_back(line, std::strcspn(line, "\n"));
    }
    pclose(pipe);
  }
  return lines;
}

// The file's path from the tree's root on.
std::string shortened(const std::string& path) {
  for (const char* root : {"/csrc/", "/tests/"}) {
    const size_t at = path.rfind(root);
    if (at != std::string::npos) return path.substr(at + 1);
  }
  return path;
}

std::string threads_name(unsigned block, unsigned thread) {
  const Machine& m = machine;
  const uint3 b = {block % m.grid.x, block / m.grid.x % m.grid.y, block / m.grid.x / m.grid.y};
  return describe(m.threads[thread]) + " of block " + describe(b);
}

}  // namespace

uint32_t offset_in_library(const void* pc) {
  return static_cast<uint32_t>(static_cast<const char*>(pc) -
                               static_cast<const char*>(library().dli_fbase));
}

std::string place(uint32_t offset) {
  // A call's address is the one it returns to: the line is that of the byte before.
  const auto lines = symbolized(offset - 1);
  for (size_t i = 1; i < lines.size(); i += 2) {
    if (lines[i].find("/simt/simt/") == std::string::npos &&
        lines[i].find("?") == std::string::npos) {
      return shortened(lines[i].substr(0, lines[i].find(' ')));
    }
  }
  return "an unknown place";
}

std::string function_at(const void* pc) {
  const auto lines = symbolized(offset_in_library(pc));
  return lines.empty() ? "?" : lines.front();
}

std::string describe(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string describe(const Thread& t) {
  return "thread " + describe(t.index);
}

std::string describe(Where where) {
  return shortened(where.file) + ":" + std::to_string(where.line);
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
