// The kernels of select, tristate_relu and squared_grad against their definitions, called as their
// glue calls them.
//
//   kernels [ROUNDS]
#include <algorithm>
#include <cmath>
#include <cstring>

#include "harness.h"

namespace resgrow::testing {
namespace {

// Values of a kernel's type and back; a bfloat16 is the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};
void encode(double value, float* out) {
  *out = float(value);
}
void encode(double value, double* out) {
  *out = value;
}
void encode(double value, BFloat16* out) {
  const float f = float(value);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(f));
  out->bits = bits >> 16;
}
double decode(float value) {
  return value;
}
double decode(double value) {
  return value;
}
double decode(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}
template <class T>
std::vector<T> encoded(const std::vector<double>& values) {
  std::vector<T> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) encode(values[i], &result[i]);
  return result;
}

// The k-th smallest score by its key's digits, the scores on either side of it and a mask.
template <class T>
void check_select(const SelectKernels& kernels, Random& random) {
  const int64_t size = random.between(1, 3000);
  const auto values = random.integers<double>(size, random.pick<int64_t>({1, 100}));
  const auto scores = encoded<T>(values);
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const int64_t k = random.between(1, size);
  SelectKey key = 0;
  int64_t below = 0;
  for (int shift = kernels.key_bits; shift > 0;) {
    const int bits = std::min(shift, kSelectDigitBits);
    shift -= bits;
    std::vector<unsigned> counts(kSelectCopies * kSelectStride);
    require(!kernels.histogram(scores.data(), size, {key, shift, bits}, counts.data()), "no NaN");
    int64_t bin = 0;
    const auto count = [&] {
      int64_t sum = 0;
      for (int copy = 0; copy < kSelectCopies; ++copy) sum += counts[copy * kSelectStride + bin];
      return sum;
    };
    for (; below + count() < k; ++bin) below += count();
    key = key << bits | SelectKey(bin);
  }
  std::vector<T> score(1);
  kernels.score(key, score.data());
  const double want = sorted[k - 1];
  require(decode(score[0]) == want, "select: score of the key");
  const auto number = [&](auto holds) {
    return int64_t(std::count_if(values.begin(), values.end(), holds));
  };
  const int64_t less = number([&](double v) { return v < want; });
  const int64_t equal = number([&](double v) { return v == want; });
  require(below == less, "select: scores below");

  std::vector<T> between(size);
  SelectCounts counts{};
  kernels.partition(scores.data(), size, key, ~SelectKey{0}, between.data(), &counts);
  require(counts.below_lower == less && counts.to_lower == less + equal &&
              counts.between == size - less - equal,
          "select: partition");
  std::vector<char> keep(size), want_keep(size);
  auto* mask = reinterpret_cast<bool*>(keep.data());
  const bool keep_equal = random.chance(.5);
  require(kernels.mask(scores.data(), size, key, keep_equal, mask) == equal, "select: ties");
  const int64_t drop = random.between(0, equal);
  for (int64_t i = 0; i < size; ++i)
    want_keep[i] = values[i] > want || (keep_equal && values[i] == want);
  require(keep == want_keep, "select: mask");
  kernels.mask_ties(scores.data(), size, key, drop, mask);
  for (int64_t i = 0, seen = 0; i < size; ++i)
    want_keep[i] = values[i] > want || (values[i] == want && seen++ >= drop);
  require(keep == want_keep, "select: mask with ties");
}

// A: what slopes and sums are computed in.
template <class T, class A>
void check_tristate(const TriStateReluKernels& kernels, Random& random) {
  const int64_t rows = random.between(1, 9), cols = random.between(1, random.chance(.5) ? 70 : 300);
  const int64_t stride = cols + random.below(3), size = (rows - 1) * stride + cols;
  const bool columns = random.chance(.5), backward = random.chance(.7);
  const int64_t channels = columns ? cols : random.between(1, rows);
  const auto xs = random.integers<double>(size), grads = random.integers<double>(size);
  const auto x = encoded<T>(xs), grad = encoded<T>(grads);
  const auto positive = random.integers<A>(channels, 1), negative = random.integers<A>(channels, 1);
  auto out = encoded<T>(std::vector<double>(size, 7));
  std::vector<A> sums(2 * (columns ? cols : rows));
  std::vector<double> want_sums(sums.size()), want(size, 7);
  TriStateRelu a{};
  a.x = x.data();
  a.grad = backward ? grad.data() : nullptr;
  a.out = out.data();
  a.sums = backward && random.chance(.7) ? sums.data() : nullptr;
  if (a.sums && random.chance(.3)) a.out = nullptr;
  a.positive = positive.data();
  a.negative = negative.data();
  a.rows = rows;
  a.cols = cols;
  a.stride = stride;
  a.channel = columns ? 0 : random.below(channels);
  a.channels = channels;
  a.cached = random.chance(.5);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const int64_t at = row * stride + col;
      const int64_t channel = columns ? col : (a.channel + row) % channels;
      const double g = backward ? grads[at] : xs[at];
      if (a.out) want[at] = g * (xs[at] >= 0 ? positive : negative)[channel];
      const int64_t side = xs[at] < 0;
      if (a.sums) want_sums[columns ? side * cols + col : 2 * row + side] += g * xs[at];
    }
  }
  (columns ? kernels.columns : kernels.runs)(a);
  std::vector<double> got(size);
  for (int64_t i = 0; i < size; ++i) got[i] = decode(out[i]);
  require_equal(got, want, "tristate_relu");
  require_equal(sums, want_sums, "tristate_relu: sums");
}

template <class T>
void check_squared_grad(const SquaredGradKernels<T>& kernels, Random& random) {
  const int vectors = random.between(1, 2), k = random.between(1, kernels.max_k[vectors]);
  const int64_t width = vectors * kernels.lanes;
  SquaredGradTile<T> a{};
  a.samples = random.between(1, 3);
  a.rows = random.between(1, 4);
  a.cols = random.between(1, 5);
  a.vec_col = width + random.below(3);
  a.bcast_col = k + random.below(3);
  a.vec_row = a.cols * a.vec_col;
  a.bcast_row = a.cols * a.bcast_col;
  a.vec_sample = a.rows * a.vec_row;
  a.bcast_sample = a.rows * a.bcast_row;
  a.out_k = width + random.below(3);
  a.square = random.chance(.5);
  a.add = random.chance(.5);
  const auto size = [&](int64_t sample, int64_t col, int64_t last) {
    return a.samples * sample - col + last;  // the last of all ends where its values end
  };
  const auto vec = random.integers<T>(size(a.vec_sample, a.vec_col, width), 2);
  const auto bcast = random.integers<T>(size(a.bcast_sample, a.bcast_col, k), 2);
  auto out = random.integers<T>((k - 1) * a.out_k + width);
  std::vector<double> want = as<double>(out);
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t lane = 0; lane < width; ++lane) {
      double total = a.add ? want[j * a.out_k + lane] : 0;
      for (int64_t n = 0; n < a.samples; ++n) {
        double sum = 0;
        for (int64_t i = 0; i < a.rows * a.cols; ++i) {
          sum += double(vec[n * a.vec_sample + i * a.vec_col + lane]) *
                 bcast[n * a.bcast_sample + i * a.bcast_col + j];
        }
        total += a.square ? sum * sum : sum;
      }
      want[j * a.out_k + lane] = total;
    }
  }
  a.vec = vec.data();
  a.bcast = bcast.data();
  a.out = out.data();
  kernels.tile[vectors][k](a);
  require_equal(out, want, "squared_grad");
}

void check(const std::string& isa, Random& random) {
  set_cpu_isa(isa);
  const KernelTable& table = kernels();
  announce(isa + ": select");
  check_select<float>(table.select_float, random);
  check_select<double>(table.select_double, random);
  check_select<BFloat16>(table.select_bfloat16, random);
  announce(isa + ": tristate_relu");
  check_tristate<float, float>(table.tristate_relu_float, random);
  check_tristate<double, double>(table.tristate_relu_double, random);
  check_tristate<BFloat16, float>(table.tristate_relu_bfloat16, random);
  announce(isa + ": squared_grad");
  check_squared_grad(table.squared_grad_float, random);
  check_squared_grad(table.squared_grad_double, random);
}

}  // namespace
}  // namespace resgrow::testing

int main(int count, char** arguments) {
  using namespace resgrow::testing;
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 200;
  Random random;
  for (int64_t round = 0; round < rounds; ++round) {
    for (const std::string& isa : resgrow::usable_isas()) check(isa, random);
  }
  announce(std::to_string(rounds) + " rounds right");
}
