// Stands in for torch's: real threads, as many as a test asks for, whatever the machine has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace at {

inline int& threads_in_use() {
  static int threads = 1;
  return threads;
}
inline int get_num_threads() {
  return threads_in_use();
}

// Even, contiguous shares of at least `grain`, as torch's own.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& run) {
  if (begin >= end) return;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t most = ceil_div(end - begin, std::max<int64_t>(1, grain));
  const int64_t shares = std::min<int64_t>(get_num_threads(), most);
  if (shares == 1) return run(begin, end);
  const int64_t share = ceil_div(end - begin, shares);
  std::vector<std::thread> workers;
  for (int64_t first = begin; first < end; first += share) {
    workers.emplace_back([&run, first, last = std::min(end, first + share)] { run(first, last); });
  }
  for (std::thread& worker : workers) worker.join();
}

}  // namespace at
