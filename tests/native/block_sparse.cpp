// The products of block_sparse, glue and kernels, on small and ragged shapes against their
// definition: without torch, for sanitizers and for other processors.
//
//   block_sparse [RANDOM_SHAPES]
#include <ATen/Parallel.h>

#include <cstring>
#include <new>
#include <thread>

#include "block_sparse_case.h"

// Scratch memory begins as NaN: what reads it before writing it shows.
void* operator new(size_t bytes, std::align_val_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, size_t(alignment), bytes) != 0) throw std::bad_alloc();
  return std::memset(memory, 0xff, bytes);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}

namespace resgrow::testing {
namespace {

// On a thread of its own, which has kept no scratch memory: every buffer is then as small as it may
// be, and reading beyond one is an error that a sanitizer sees.
template <class F>
void run_afresh(const F& run) {
  std::thread(run).join();
}

enum Epilogue { kBias = 1, kSlopes = 2, kResidual = 4, kEpilogues = 8 };

template <class T>
void check_forward(const BlockSparseCase& c, int parts) {
  const auto x = as<T>(c.x), values = as<T>(c.values), residual = as<T>(c.residual);
  const auto bias = as<T>(c.bias), positive = as<T>(c.positive), negative = as<T>(c.negative);
  BlockSparseEpilogue<T> epilogue{};
  if (parts & kBias) epilogue.bias = bias.data();
  if (parts & kResidual) epilogue.residual = residual.data();
  if (parts & kSlopes) {
    epilogue.positive = positive.data();
    epilogue.negative = negative.data();
  }
  std::vector<double> want = c.y;
  for (size_t i = 0; i < want.size(); ++i) {
    const int64_t output = i % c.s.outputs;
    if (parts & kBias) want[i] += c.bias[output];
    if (parts & kResidual) want[i] += c.residual[i];
    if (parts & kSlopes) want[i] *= (want[i] >= 0 ? c.positive : c.negative)[output];
  }
  auto y = unwritten<T>(want.size());
  run_afresh(
      [&] { block_sparse_forward<T>(c.s, c.view(), x.data(), values.data(), epilogue, y.data()); });
  require_equal(y, want, "forward");
}

template <class T>
void check_gradients(const BlockSparseCase& c) {
  const auto x = as<T>(c.x), values = as<T>(c.values), grad = as<T>(c.grad);
  auto grad_x = unwritten<T>(x.size());
  run_afresh([&] {
    block_sparse_input_grad<T>(c.s, c.view(), grad.data(), values.data(), grad_x.data());
  });
  require_equal(grad_x, c.grad_x, "input gradient");
  if (block_sparse_transposes(c.s)) {
    grad_x = unwritten<T>(x.size());
    run_afresh([&] {
      block_sparse_transposed<T>(c.s, c.view(), grad.data(), values.data(), grad_x.data());
    });
    require_equal(grad_x, c.grad_x, "input gradient, transposed");
  }
  if (c.blocks == 0) return;  // the glue returns before
  auto grad_values = unwritten<T>(values.size());
  run_afresh([&] {
    block_sparse_weight_grad<T>(c.s, c.view(), x.data(), grad.data(), grad_values.data());
  });
  require_equal(grad_values, c.grad_values, "weight gradient");
}

template <class T>
void check(const BlockSparseCase& c, int64_t number, int threads) {
  at::threads_in_use() = threads;
  for_every_isa([&](const std::string& isa) {
    announce(isa + ", " + std::to_string(8 * sizeof(T)) + " bits, " + std::to_string(threads) +
             " threads: " + c.name());
    check_forward<T>(c, number % kEpilogues);
    check_gradients<T>(c);
  });
}

struct Block {
  int64_t outputs, inputs;
};
const std::vector<Block> kBlocks = {{16, 1}, {16, 16}, {8, 1}, {4, 1}, {12, 3}, {32, 2}, {4, 4}};

BlockSparseShape random_shape(Random& random) {
  BlockSparseShape s{};
  const Block block = random.pick(kBlocks);
  s.block_out = block.outputs;
  s.block_in = block.inputs;
  s.groups = random.chance(.25) ? random.between(2, 3) : 1;
  s.channels = random.between(1, 40);
  s.outputs = random.between(1, 50);
  if (s.groups > 1) {
    s.channels = s.groups * s.block_in * random.between(1, 3);
    s.outputs = s.groups * s.block_out * random.between(1, 2);
  }
  s.samples = random.chance(.2) ? random.between(4, 20) : random.pick<int64_t>({1, 3});
  s.height = random.between(1, 9);
  s.width = random.chance(.2) ? random.between(20, 70) : random.between(1, 12);
  const bool plain = random.chance(.3);
  for (int d = 0; d < 2; ++d) {
    s.kernel[d] = random.between(1, 3);
    s.stride[d] = plain ? 1 : random.between(1, 3);
    s.dilation[d] = plain ? 1 : random.between(1, 2);
    s.padding[d] = random.between(0, 3);
    if (random.chance(.2)) s.kernel[d] = s.stride[d] = 1, s.padding[d] = 0;
  }
  return BlockSparseCase::fits(s) ? s : random_shape(random);
}

struct Large {
  int64_t samples, channels, side, outputs, kernel, stride;
  Block block;
  double density;

  BlockSparseShape shape() const {
    BlockSparseShape s{};
    s.samples = samples;
    s.channels = channels;
    s.height = s.width = side;
    s.outputs = outputs;
    s.groups = 1;
    s.block_out = block.outputs;
    s.block_in = block.inputs;
    for (int d = 0; d < 2; ++d) {
      s.kernel[d] = kernel;
      s.padding[d] = kernel / 2;
      s.stride[d] = stride;
      s.dilation[d] = 1;
    }
    return s;
  }
};
// Where the work is taken apart, or done in another order, because there is much of it.
const std::vector<Large> kLarge = {
    {1, 64, 40, 32, 3, 1, {16, 1}, .01},   // several bands
    {16, 4, 12, 512, 3, 1, {16, 1}, .02},  // gathered gradients slide through a window
    {16, 4, 23, 512, 3, 2, {16, 1}, .02},  {16, 16, 24, 64, 3, 1, {16, 1}, .005},  // or stay in it
    {1, 16, 182, 64, 3, 1, {16, 1}, .005},  // an output that no cache holds
    {300, 40, 1, 70, 1, 1, {8, 1}, .2},     // a linear layer
    {1, 700, 1, 33, 1, 1, {16, 1}, .2},    {3, 40, 30, 70, 1, 1, {8, 1}, .2},  // many pixels
};

}  // namespace
}  // namespace resgrow::testing

int main(int count, char** arguments) {
  using namespace resgrow::testing;
  const int64_t shapes = count > 1 ? std::atoll(arguments[1]) : 200;
  Random random;
  int64_t number = 0;
  for (; number < shapes; ++number) {
    const BlockSparseCase c(random_shape(random), random.pick<double>({0, .1, .5, 1}), random);
    check<float>(c, number, 1);
    check<float>(c, number + 1, 3);
    check<double>(c, number + 2, 3);
  }
  for (const Large& large : kLarge) {
    const BlockSparseCase c(large.shape(), large.density, random);
    for (const int threads : {1, 3}) check<float>(c, number, threads);
    ++number;
  }
  announce(std::to_string(number) + " shapes right");
}
