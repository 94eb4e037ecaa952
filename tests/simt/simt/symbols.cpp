#include "simt/symbols.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace simt {

namespace {

const Dl_info& library() {
  static const Dl_info info = [] {
    Dl_info found{};
    dladdr(reinterpret_cast<const void*>(&offset_in_library), &found);
    return found;
  }();
  return info;
}

std::vector<std::string> output_of(const std::string& command) {
  std::vector<std::string> lines;
  if (FILE* const pipe = popen(command.c_str(), "r")) {
    char line[4096];
    while (std::fgets(line, sizeof line, pipe)) {
      lines.emplace_back(line, std::strcspn(line, "\n"));
    }
    pclose(pipe);
  }
  return lines;
}

// The file's path from the tree's root on, without what addr2line adds.
std::string shortened(const std::string& path) {
  for (const char* root : {"/csrc/", "/tests/"}) {
    const size_t at = path.rfind(root);
    if (at != std::string::npos) return path.substr(at + 1, path.find(' ', at) - at - 1);
  }
  return path;
}

bool is_of_a_kernel(const std::string& place) {
  return place.find("/simt/simt/") == std::string::npos && place.find('?') == std::string::npos;
}

}  // namespace

uint32_t offset_in_library(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) -
                               static_cast<const char*>(library().dli_fbase));
}

std::vector<Symbol> symbols(const std::vector<uint32_t>& offsets) {
  std::string command = std::string("addr2line -e '") + library().dli_fname + "' -a -C -f -i";
  for (const uint32_t offset : offsets) {
    char text[16];
    std::snprintf(text, sizeof text, " %#x", offset);
    command += text;
  }
  // Per address: itself, then function and place of each function that is inlined there.
  const std::vector<std::string> lines = output_of(command + " 2>/dev/null");
  std::vector<Symbol> found;
  bool placed = false;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].rfind("0x", 0) == 0) {
      found.emplace_back();
      placed = false;
    } else if (i + 1 < lines.size() && !found.empty()) {
      const std::string &function = lines[i], &place = lines[++i];
      if (found.back().function == "?") found.back().function = function;
      if (!placed && is_of_a_kernel(place)) {
        found.back().place = shortened(place);
        placed = true;
      }
    }
  }
  found.resize(offsets.size());
  return found;
}

}  // namespace simt
