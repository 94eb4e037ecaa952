// tristate_relu on CPU: layouts, work items of fixed size and the sums over them.
//
// Work items and the order in which their sums are added depend on the sizes alone, so results do
// not depend on the threads.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <tuple>
#include <utility>

#include "checks/tristate_relu.h"
#include "cpu/isa.h"

namespace resgrow {
namespace {

constexpr int64_t kItem = 32768;   // values per work item
constexpr int64_t kGrain = 32768;  // values that waking a thread is worth it for
constexpr int64_t kShortestRun =
    64;  // values of one channel that a sum of their own is worth it for
constexpr int64_t kColumns = kTriStateColumns;
constexpr int64_t kFewColumns = 512;
constexpr int64_t kLineValues = 16;      // float32 in a cache line
constexpr int64_t kStep = 32;            // the most values that a kernel takes at once
constexpr int64_t kStrip = 64;           // columns that registers hold the slopes and sums of
constexpr int64_t kCached = 512 * 1024;  // bytes of x that are in the caches when they are needed
static_assert(kShortestRun * kLineValues <= kColumns);
constexpr int64_t kMostRuns = kItem / kShortestRun;  // in a work item

const TriStateReluKernels& kernels_for(const at::Tensor& x) {
  const KernelTable& table = kernels();
  if (x.scalar_type() == at::kDouble) return table.tristate_relu_double;
  return x.scalar_type() == at::kFloat ? table.tristate_relu_float : table.tristate_relu_bfloat16;
}

// A small tensor is done within a microsecond: new ones are made without the dispatcher, which
// would take half of one.
at::Tensor new_empty(at::IntArrayRef sizes, at::ScalarType type) {
  return at::Tensor(at::detail::empty_cpu(sizes, type));
}

at::Tensor new_like(const at::Tensor& x) {
  if (!x.is_non_overlapping_and_dense()) return at::empty_like(x);
  return at::Tensor(at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()));
}

// Room for values, not initialised; on the stack where they are few, for the same reason. Slopes
// and sums are read with every value: none of their vectors may straddle a cache line.
template <class A, int64_t FEW = 512>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : many_(size > FEW ? static_cast<A*>(::operator new(size * sizeof(A), kLine)) : nullptr) {}
  A* data() { return many_ ? many_.get() : few_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(A* p) const { ::operator delete(p, kLine); }
  };
  alignas(64) A few_[FEW];
  const std::unique_ptr<A, Free> many_;
};

// Calls f(c, 1[gate >= .5]) for each gate, compared in the gate's own precision.
template <class T, class F>
void each_gate_of(const at::Tensor& gates, const F& f) {
  const T* values = gates.const_data_ptr<T>();
  const int64_t stride = gates.dim() == 0 ? 0 : gates.stride(0);
  for (int64_t c = 0, count = gates.numel(); c < count; ++c) f(c, values[c * stride] >= T(.5f));
}

template <class F>
void each_gate(const at::Tensor& gates, const F& f) {
  if (gates.scalar_type() == at::kFloat) return each_gate_of<float>(gates, f);
  if (gates.scalar_type() == at::kDouble) return each_gate_of<double>(gates, f);
  each_gate_of<at::BFloat16>(gates, f);
}

// The sums of a work item: [2][slots], over x >= 0 and over the rest, one slot per channel in turn.
template <class A>
struct Sums {
  A* data;  // null: not wanted
  int64_t slots;

  Sums of_item(int64_t i) const { return {data ? data + 2 * slots * i : nullptr, slots}; }
  A* above() const { return data; }
  A* below() const { return data + slots; }
  void clear() const { std::fill_n(data, 2 * slots, A(0)); }
};

// One call: A is the type of slopes and sums.
template <class A>
class Pass {
 public:
  // grad and out are wanted where they are given; all tensors are dense and laid out alike.
  Pass(const at::Tensor& x, const at::Tensor* grad, at::Tensor* out, const at::Tensor& w,
       const at::Tensor& d)
      : layout_(x),
        kernels_(kernels_for(x)),
        itemsize_(x.itemsize()),
        x_(static_cast<const char*>(x.const_data_ptr())),
        grad_(grad ? static_cast<const char*>(grad->const_data_ptr()) : nullptr),
        out_(out ? static_cast<char*>(out->mutable_data_ptr()) : nullptr),
        channels_(layout_.channels),
        inner_(layout_.inner),
        outer_(layout_.outer),
        w_(w) {
    each_gate(d, [&](int64_t, bool open) { depth_ = open; });
  }

  // Gradients of the gates where they are given, both or none.
  void run(A* grad_w = nullptr, A* grad_d = nullptr) {
    Scratch<double> scratch(grad_d ? 2 * channels_ : 0);
    const Sums<double> totals{grad_d ? scratch.data() : nullptr, channels_};
    if (grad_d) totals.clear();
    if (outer_ > 0) (inner_ >= kShortestRun ? runs(totals) : columns(totals));
    if (grad_d) gate_gradients(totals, grad_w, grad_d);
  }

 private:
  // dw = sum_{x >= 0} grad x + d' sum_{x < 0} grad x, dd = sum_c w'_c sum_{x < 0} grad x
  void gate_gradients(const Sums<double>& totals, A* grad_w, A* grad_d) const {
    const double *above = totals.above(), *below = totals.below();
    const double depth = depth_;
    for (int64_t c = 0; c < channels_; ++c) grad_w[c] = above[c] + depth * below[c];
    double sum = 0;
    each_gate(w_, [&](int64_t c, bool open) { sum += (open ? 1. : 0.) * below[c]; });
    *grad_d = sum;
  }

  // Slopes of `count` columns, `inner` of them to a channel.
  void slopes(int64_t count, int64_t inner, A* positive, A* negative) {
    positive_ = positive;
    negative_ = negative;
    const int64_t period = channels_ * inner;
    each_gate(w_, [&](int64_t c, bool open) {
      std::fill_n(positive + c * inner, inner, A(open));
      std::fill_n(negative + c * inner, inner, A(open && depth_));
    });
    for (int64_t i = period; i < count; i += period) {
      std::copy_n(positive, period, positive + i);
      std::copy_n(negative, period, negative + i);
    }
  }

  TriStateRelu args(int64_t offset, int64_t slope, int64_t rows, int64_t cols, int64_t stride,
                    A* sums) const {
    const auto at = [&](auto* base) { return base ? base + offset * itemsize_ : nullptr; };
    return {at(x_), at(grad_), at(out_), sums,          positive_ + slope, negative_ + slope,
            rows,   cols,      stride,   /*channel=*/0, /*channels=*/0,    /*cached=*/false};
  }

  // Channels lie in runs of `inner`: short runs share a work item, long ones are cut.
  void runs(const Sums<double>& totals) {
    Scratch<A> positive(channels_), negative(channels_);
    slopes(channels_, 1, positive.data(), negative.data());
    const int64_t count = outer_ * channels_;
    const int64_t pieces = (inner_ + kItem - 1) / kItem;
    const int64_t group = std::max<int64_t>(1, kItem / inner_);
    const int64_t items = (count + group - 1) / group * pieces;
    const auto first = [&](int64_t item) { return item / pieces * group; };
    reduce(items, std::min(group, channels_), totals, first, [&](int64_t i, const Sums<A>& sums) {
      const int64_t start = i % pieces * kItem, rows = std::min(group, count - first(i));
      A found[2 * kMostRuns];
      TriStateRelu a = args(first(i) * inner_ + start, 0, rows, std::min(kItem, inner_ - start),
                            inner_, sums.data ? found : nullptr);
      a.channel = first(i) % channels_;
      a.channels = channels_;
      kernels_.runs(a);
      if (sums.data) add_runs(found, rows, sums);
    });
  }

  static void add_runs(const A* found, int64_t rows, const Sums<A>& sums) {
    for (int64_t row = 0, slot = 0; row < rows; ++row) {
      sums.above()[slot] += found[2 * row];
      sums.below()[slot] += found[2 * row + 1];
      if (++slot == sums.slots) slot = 0;
    }
  }

  // Channels alternate: rows of whole periods, cut into blocks of rows and of whole channels.
  void columns(const Sums<double>& totals) {
    const int64_t period = channels_ * inner_;
    const int64_t repeat = std::min(outer_, periods(period));
    const int64_t cols = period * repeat, rows = outer_ / repeat, rest = outer_ % repeat * period;
    // Blocks that begin on a cache line, where the channels allow it.
    const int64_t even = std::lcm(inner_, kLineValues);
    const int64_t wide = cols <= kColumns ? cols : kColumns / even * even;
    const int64_t tall = kItem / wide;
    const int64_t row_blocks = (rows + tall - 1) / tall, col_blocks = (cols + wide - 1) / wide;
    const int64_t items = row_blocks * col_blocks + (rest > 0);  // the rest has one block
    const bool cached = (rows * cols + rest) * itemsize_ <= kCached;
    Scratch<A, kColumns> positive(cols), negative(cols);
    slopes(cols, inner_, positive.data(), negative.data());
    const auto first = [&](int64_t item) { return item % col_blocks * wide / inner_; };
    const int64_t slots = std::min(channels_, wide / inner_);
    reduce(items, slots, totals, first, [&](int64_t i, const Sums<A>& sums) {
      const int64_t row = i / col_blocks * tall, start = i % col_blocks * wide;
      const bool last = i == row_blocks * col_blocks;
      const int64_t width = last ? rest : std::min(wide, cols - start);
      alignas(64) A found[2 * kColumns];
      if (sums.data) std::fill_n(found, 2 * width, A(0));
      TriStateRelu a =
          args((last ? rows : row) * cols + start, start, last ? 1 : std::min(tall, rows - row),
               width, cols, sums.data ? found : nullptr);
      a.cached = cached;
      kernels_.columns(a);
      if (!sums.data) return;
      add_columns(found, width, sums.above(), slots);
      add_columns(found + width, width, sums.below(), slots);
    });
  }

  // How many of them make a row: one strip, or else enough for a row to be worth its beginning, in
  // whole steps where these are few.
  static int64_t periods(int64_t period) {
    if (kStrip % period == 0) return kStrip / period;
    const int64_t whole = std::lcm(period, kStep);
    const int64_t unit = whole <= kColumns ? whole : period;
    return std::max<int64_t>(1, kFewColumns / unit) * unit / period;
  }

  void add_columns(const A* __restrict found, int64_t count, A* __restrict sums,
                   int64_t slots) const {
    for (const A* end = found + count; found < end; found += slots * inner_) {
      const int64_t here = std::min<int64_t>(slots, (end - found) / inner_);
      if (inner_ == 1) {
        for (int64_t slot = 0; slot < here; ++slot) sums[slot] += found[slot];
      } else {
        for (int64_t slot = 0; slot < here; ++slot)
          sums[slot] += sum(found + slot * inner_, inner_);
      }
    }
  }

  // In eight chains, as additions may not change places.
  static A sum(const A* values, int64_t count) {
    A chains[8] = {}, rest = 0;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int64_t k = 0; k < 8; ++k) chains[k] += values[i + k];
    }
    for (; i < count; ++i) rest += values[i];
    for (const A chain : chains) rest += chain;
    return rest;
  }

  // Calls item(i, its sums) for all work items, and adds these up: those of channel first(i) and
  // its successors.
  template <class First, class Item>
  void reduce(int64_t items, int64_t slots, const Sums<double>& totals, const First& first,
              const Item& item) const {
    Scratch<A, 4096> scratch(totals.data ? 2 * slots * items : 0);
    const Sums<A> sums{totals.data ? scratch.data() : nullptr, slots};
    // A small tensor may have several items, too: a row that is left over, one channel each.
    const int64_t grain = std::max<int64_t>(1, kGrain * items / (outer_ * channels_ * inner_));
    at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (sums.data) sums.of_item(i).clear();
        item(i, sums.of_item(i));
      }
    });
    for (int64_t i = 0; totals.data && i < items; ++i) {
      const Sums<A> found = sums.of_item(i);
      for (int64_t slot = 0, c = first(i) % channels_; slot < slots; ++slot) {
        totals.above()[c] += found.above()[slot];
        totals.below()[c] += found.below()[slot];
        if (++c == channels_) c = 0;
      }
    }
  }

  const ChannelLayout layout_;
  const TriStateReluKernels& kernels_;
  const int64_t itemsize_;
  const char* x_;
  const char* grad_;
  char* out_;
  const int64_t channels_, inner_, outer_;
  const at::Tensor& w_;
  bool depth_ = false;
  const A* positive_ = nullptr;
  const A* negative_ = nullptr;
};

// x, y: dense and laid out alike; they may be one.
void forward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d, at::Tensor y) {
  if (x.scalar_type() == at::kDouble) {
    Pass<double>(x, nullptr, &y, w, d).run();
  } else {
    Pass<float>(x, nullptr, &y, w, d).run();
  }
}

at::Tensor tristate_relu(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  check_tristate_relu("tristate_relu", x, w, d, /*half=*/false);
  at::Tensor y = new_like(x);
  if (x.numel() > 0) forward(laid_out(x, y), w, d, y);
  return y;
}

void tristate_relu_(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  check_tristate_relu("tristate_relu_", x, w, d, /*half=*/false);
  write_over(x, [&](const at::Tensor& from, const at::Tensor& to) { forward(from, w, d, to); });
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor converted(at::Tensor t, at::ScalarType type) {
  return t.scalar_type() == type ? std::move(t) : t.to(type);
}

template <class A>
Gradients backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                   const at::Tensor& d, bool need_x, bool need_gates) {
  constexpr auto type = c10::CppTypeToScalarType<A>::value;
  // Small ones first: behind a large one, they keep its memory from being joined with what is free
  // behind it when it is freed, and the next one then needs new pages.
  at::Tensor grad_w = need_gates ? new_empty(w.sizes(), type) : new_empty({0}, w.scalar_type());
  at::Tensor grad_d = need_gates ? new_empty({}, type) : new_empty({0}, d.scalar_type());
  at::Tensor grad_x = need_x ? new_like(x) : new_empty({0}, x.scalar_type());
  Pass<A> pass(x, &grad, need_x ? &grad_x : nullptr, w, d);
  if (!need_gates) {
    if (need_x) pass.run();
    return {std::move(grad_x), std::move(grad_w), std::move(grad_d)};
  }
  pass.run(grad_w.template mutable_data_ptr<A>(), grad_d.template mutable_data_ptr<A>());
  return {std::move(grad_x), converted(std::move(grad_w), w.scalar_type()),
          converted(std::move(grad_d), d.scalar_type())};
}

// Gradients that are not needed come back as empty tensors of shape (0,).
Gradients tristate_relu_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                                 const at::Tensor& d, bool need_x, bool need_gates) {
  check_tristate_relu_backward("tristate_relu_backward", grad, x, w, d, /*half=*/false);
  const at::Tensor like = dense_like(x);
  const at::Tensor dense_x = laid_out(x, like), dense_grad = laid_out(grad, like);
  return x.scalar_type() == at::kDouble
             ? backward<double>(dense_grad, dense_x, w, d, need_x, need_gates)
             : backward<float>(dense_grad, dense_x, w, d, need_x, need_gates);
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, CPU, m) {
  m.impl("tristate_relu", &resgrow::tristate_relu);
  m.impl("tristate_relu_", &resgrow::tristate_relu_);
  m.impl("tristate_relu_backward", &resgrow::tristate_relu_backward);
}
