// What the native tests share. Values are small integers, so that every sum is exact whatever its
// order, and results must equal the reference exactly. Whatever a product should write or may not
// read uninitialised is NaN before.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace resgrow::testing {

class Random {
 public:
  int64_t below(int64_t limit) { return next() % limit; }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(double p) { return next() < p * double(uint64_t{1} << 31); }
  template <class T>
  T pick(const std::vector<T>& from) {
    return from[below(from.size())];
  }
  template <class T>
  std::vector<T> integers(int64_t count, int64_t magnitude = 3) {
    std::vector<T> values(count);
    for (T& v : values) v = T(between(-magnitude, magnitude));
    return values;
  }

 private:
  uint64_t next() {  // Knuth's MMIX generator
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }
  uint64_t state_ = 1;
};

// Allocated to the byte: one element beyond is not the program's.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

template <class T, class S>
std::vector<T> as(const std::vector<S>& values) {
  return std::vector<T>(values.begin(), values.end());
}

// A sanitizer ends the program in the middle of something: this is what.
inline void announce(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::fflush(stdout);
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "wrong: %s\n", what.c_str());
  std::exit(1);
}

inline void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

template <class T>
void require_equal(const std::vector<T>& got, const std::vector<double>& want, const char* what) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (double(got[i]) == want[i]) continue;
    fail(std::string(what) + " at " + std::to_string(i) + " of " + std::to_string(want.size()) +
         ": got " + std::to_string(double(got[i])) + ", want " + std::to_string(want[i]));
  }
}

// Runs it with every instruction set that the processor has.
template <class F>
void for_every_isa(const F& run) {
  for (const std::string& isa : usable_isas()) {
    set_cpu_isa(isa);
    run(isa);
  }
}

}  // namespace resgrow::testing
