// Border between the glue of tristate_relu and its kernels.
#pragma once

namespace resgrow {

using Int = long long;

constexpr int kTriStateColumns = 1024;  // at most; their slopes and sums stay in the nearest cache

// `rows` rows of `cols` values, rows `stride` values apart. With slope = positive where x >= 0 and
// negative elsewhere: out = slope * x where grad is null, else out = slope * grad. x, grad, out:
// the table's type; slopes and sums: float64 for float64, else float32.
struct TriStateRelu {
  const void* x;
  const void* grad;
  void* out;   // null: not wanted (backward only)
  void* sums;  // null: not wanted; else sums of grad * x over x >= 0 and over the rest
  const void* positive;
  const void* negative;
  Int rows, cols, stride;
  Int channel;   // runs: of the first row; its successors follow in turn
  Int channels;  // runs
  bool cached;   // columns: the values are in the caches, whose order is not memory's
};

struct TriStateReluKernels {
  // Each row has one channel's slopes and sets sums[row][2].
  void (*runs)(const TriStateRelu&);
  // Each column has its own slopes; adds to sums[2][cols].
  void (*columns)(const TriStateRelu&);
};

}  // namespace resgrow
