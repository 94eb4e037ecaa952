// Three fibers that count in turns, each on with what it had: prints 12 turns and the sum of what
// they reached.
#include <cstdio>
#include <vector>

#include "simt/fiber.h"

using simt::Fiber;

namespace {

constexpr size_t kStack = 1 << 16;
Fiber host, fibers[3];
int current, turns;
double sum;

void count() {
  double reached = 1.5 * (current + 1);  // lives in a register that a transfer must keep
  for (;;) {
    reached += current;
    sum += reached;
    ++turns;
    Fiber::transfer(fibers[current], host);
  }
}

}  // namespace

int main() {
  std::vector<char> stacks(3 * kStack);
  for (int i = 0; i < 3; ++i) fibers[i].start(&stacks[i * kStack], kStack, count);
  for (int round = 0; round < 4; ++round) {
    for (current = 0; current < 3; ++current) Fiber::transfer(host, fibers[current]);
  }
  std::printf("%d %g\n", turns, sum);
}
