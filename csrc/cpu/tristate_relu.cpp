// tristate_relu on CPU: layouts, work items of fixed size and the sums over them.
//
// Work items and the order in which their sums are added depend on the sizes alone, so results do
// not depend on the threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <new>
#include <tuple>
#include <vector>

#include "checks/tristate_relu.h"
#include "cpu/isa.h"

namespace resgrow {
namespace {

constexpr int64_t kItem = 32768;  // values per work item
constexpr int64_t kShortestRun =
    64;                             // values of one channel in a row that vectors are worth it for
constexpr int64_t kColumns = 1024;  // their slopes and sums stay in the first-level cache
constexpr int64_t kFewColumns = 512;

const TriStateReluKernels& kernels_for(const at::Tensor& x) {
  const KernelTable& table = kernels();
  if (x.scalar_type() == at::kDouble) return table.tristate_relu_double;
  return x.scalar_type() == at::kFloat ? table.tristate_relu_float : table.tristate_relu_bfloat16;
}

// 1[gate >= .5], compared in the gate's own precision.
std::vector<char> open(const at::Tensor& gates) {
  const at::Tensor flat = gates.reshape(-1);
  std::vector<char> result(flat.numel());
  const auto read = [&](const auto& values) {
    for (size_t i = 0; i < result.size(); ++i) result[i] = values[i] >= 0.5;
  };
  if (flat.scalar_type() == at::kFloat) {
    read(flat.accessor<float, 1>());
  } else {
    const at::Tensor wide = flat.to(at::kDouble);
    read(wide.accessor<double, 1>());
  }
  return result;
}

// Slopes and sums are read with every value: none of their vectors may straddle a cache line.
template <class A>
struct CacheAligned {
  using value_type = A;
  static constexpr std::align_val_t line{64};
  CacheAligned() = default;
  A* allocate(size_t n) { return static_cast<A*>(::operator new(n * sizeof(A), line)); }
  void deallocate(A* p, size_t) { ::operator delete(p, line); }
  friend bool operator==(CacheAligned, CacheAligned) { return true; }
  friend bool operator!=(CacheAligned, CacheAligned) { return false; }
};
template <class A>
using Buffer = std::vector<A, CacheAligned<A>>;

// One call: A is the type of slopes and sums.
template <class A>
class Pass {
 public:
  // grad, out and the sums are wanted where they are given; all tensors are dense and laid out
  // alike.
  Pass(const at::Tensor& x, const at::Tensor* grad, at::Tensor* out, bool sums, const at::Tensor& w,
       const at::Tensor& d)
      : layout_(x),
        kernels_(kernels_for(x)),
        itemsize_(x.itemsize()),
        x_(static_cast<const char*>(x.const_data_ptr())),
        grad_(grad ? static_cast<const char*>(grad->const_data_ptr()) : nullptr),
        out_(out ? static_cast<char*>(out->mutable_data_ptr()) : nullptr),
        sums_(sums),
        channels_(layout_.channels),
        inner_(layout_.inner),
        outer_(layout_.outer),
        width_(open(w)),
        depth_(open(d)[0]),
        above_(channels_),
        below_(channels_) {}

  void run() {
    if (inner_ >= kShortestRun) {
      runs();
    } else {
      columns();
    }
  }

  // dw = sum_{x >= 0} grad x + d' sum_{x < 0} grad x
  at::Tensor grad_w(const at::TensorOptions& options) const {
    at::Tensor out = at::empty({channels_}, options);
    A* data = out.template mutable_data_ptr<A>();
    for (int64_t c = 0; c < channels_; ++c) data[c] = above_[c] + (depth_ ? 1. : 0.) * below_[c];
    return out;
  }

  // dd = sum_c w'_c sum_{x < 0} grad x
  at::Tensor grad_d(const at::TensorOptions& options) const {
    double sum = 0;
    for (int64_t c = 0; c < channels_; ++c) sum += (width_[c] ? 1. : 0.) * below_[c];
    at::Tensor out = at::empty({}, options);
    *out.template mutable_data_ptr<A>() = static_cast<A>(sum);
    return out;
  }

 private:
  // Calls f(channel, first column, last column) for each run of one channel among `count` columns.
  template <class F>
  void each_run(int64_t count, int64_t inner, const F& f) const {
    int64_t channel = 0;
    for (int64_t i = 0; i < count; i += inner) {
      f(channel, i, i + inner);
      if (++channel == channels_) channel = 0;
    }
  }

  // Slopes of `count` columns, `inner` of them to a channel.
  void slopes(int64_t count, int64_t inner) {
    positive_.resize(count);
    negative_.resize(count);
    each_run(count, inner, [&](int64_t channel, int64_t begin, int64_t end) {
      const A positive = width_[channel], negative = width_[channel] && depth_;
      for (int64_t i = begin; i < end; ++i) {
        positive_[i] = positive;
        negative_[i] = negative;
      }
    });
  }

  TriStateRelu args(int64_t offset, int64_t slope, int64_t rows, int64_t cols, int64_t stride,
                    A* sums) {
    const auto at = [&](auto* base) { return base ? base + offset * itemsize_ : nullptr; };
    return {at(x_), at(grad_), at(out_), sums, &positive_[slope], &negative_[slope], rows,
            cols,   stride,    0,        0};
  }

  // Channels lie in runs of `inner`: short runs share a work item, long ones are cut.
  void runs() {
    slopes(channels_, 1);
    const int64_t count = outer_ * channels_;
    const int64_t pieces = (inner_ + kItem - 1) / kItem;
    const int64_t group = std::max<int64_t>(1, kItem / inner_);
    Buffer<A> sums(sums_ ? 2 * count * pieces : 0);
    const int64_t items = (count + group - 1) / group * pieces;
    at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i / pieces * group, start = i % pieces * kItem;
        A* target = sums_ ? &sums[2 * (first * pieces + i % pieces)] : nullptr;
        TriStateRelu a = args(first * inner_ + start, 0, std::min(group, count - first),
                              std::min(kItem, inner_ - start), inner_, target);
        a.channel = first % channels_;
        a.channels = channels_;
        kernels_.runs(a);
      }
    });
    if (!sums_) return;
    each_run(count * pieces, pieces, [&](int64_t channel, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        above_[channel] += sums[2 * i];
        below_[channel] += sums[2 * i + 1];
      }
    });
  }

  // Channels alternate: rows of whole periods, cut into blocks of rows and columns.
  void columns() {
    const int64_t period = channels_ * inner_;
    // An odd number of periods: rows a power of two apart would share a few cache sets.
    const int64_t repeat = std::min(outer_, kFewColumns / period | 1);
    const int64_t cols = period * repeat, rows = outer_ / repeat, rest = outer_ % repeat * period;
    const int64_t tall = kItem / std::min(cols, kColumns);
    const int64_t row_blocks = (rows + tall - 1) / tall,
                  col_blocks = (cols + kColumns - 1) / kColumns;
    slopes(cols, inner_);
    Buffer<A> sums(sums_ ? 2 * cols * (row_blocks + 1) : 0);
    at::parallel_for(0, row_blocks * col_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / col_blocks, start = i % col_blocks * kColumns;
        A* target = sums_ ? &sums[2 * (block * cols + start)] : nullptr;
        kernels_.columns(args(block * tall * cols + start, start,
                              std::min(tall, rows - block * tall), std::min(kColumns, cols - start),
                              cols, target));
      }
    });
    if (rest > 0)
      kernels_.columns(
          args(rows * cols, 0, 1, rest, rest, sums_ ? &sums[2 * row_blocks * cols] : nullptr));
    if (!sums_) return;
    std::vector<double> above(cols), below(cols);
    const auto add = [&](int64_t row_block, int64_t start, int64_t count) {
      const A* found = &sums[2 * (row_block * cols + start)];
      for (int64_t i = 0; i < count; ++i) {
        above[start + i] += found[i];
        below[start + i] += found[count + i];
      }
    };
    for (int64_t block = 0; block < row_blocks; ++block) {
      for (int64_t start = 0; start < cols; start += kColumns)
        add(block, start, std::min(kColumns, cols - start));
    }
    if (rest > 0) add(row_blocks, 0, rest);
    each_run(cols, inner_, [&](int64_t channel, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        above_[channel] += above[i];
        below_[channel] += below[i];
      }
    });
  }

  const ChannelLayout layout_;
  const TriStateReluKernels& kernels_;
  const int64_t itemsize_;
  const char* x_;
  const char* grad_;
  char* out_;
  const bool sums_;
  const int64_t channels_, inner_, outer_;
  const std::vector<char> width_;
  const bool depth_;
  Buffer<A> positive_, negative_;
  std::vector<double> above_,
      below_;  // per channel: sums of grad * x over x >= 0 and over the rest
};

// x, y: dense and laid out alike; they may be one.
void forward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d, at::Tensor y) {
  if (x.scalar_type() == at::kDouble) {
    Pass<double>(x, nullptr, &y, false, w, d).run();
  } else {
    Pass<float>(x, nullptr, &y, false, w, d).run();
  }
}

at::Tensor tristate_relu(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  check_tristate_relu("tristate_relu", x, w, d, /*half=*/false);
  at::Tensor y = at::empty_like(x);
  if (x.numel() > 0) forward(laid_out(x, y), w, d, y);
  return y;
}

void tristate_relu_(const at::Tensor& x, const at::Tensor& w, const at::Tensor& d) {
  check_tristate_relu("tristate_relu_", x, w, d, /*half=*/false);
  write_over(x, [&](const at::Tensor& from, const at::Tensor& to) { forward(from, w, d, to); });
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <class A>
Gradients backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w,
                   const at::Tensor& d, bool need_x, bool need_gates) {
  at::Tensor grad_x = need_x ? at::empty_like(x) : at::empty({0}, x.options());
  Pass<A> pass(x, &grad, need_x ? &grad_x : nullptr, need_gates, w, d);
  if (x.numel() > 0) pass.run();
  const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
  if (!need_gates) return {grad_x, at::empty({0}, w.options()), at::empty({0}, d.options())};
  return {grad_x, pass.grad_w(options).to(w.scalar_type()),
          pass.grad_d(options).to(d.scalar_type())};
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
