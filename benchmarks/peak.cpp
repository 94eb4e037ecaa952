// The most multiply-adds of float32 that one thread does. Compiled by _peak.py with VECTOR_BYTES
// and the flags of an instruction set.
typedef float V __attribute__((vector_size(VECTOR_BYTES)));

namespace {
// Independent sums, enough to hide an addition's latency; with them the registers are as full as in
// the kernels of block_sparse.
constexpr int kSums = VECTOR_BYTES == 64 ? 28 : VECTOR_BYTES == 32 ? 12 : 10;
constexpr int kPixels = 64, kWeights = 64;  // within a first-level cache

V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
float total(const V (&sums)[kSums]) {
  float result = 0;
  for (const V& sum : sums) result += sum[0];
  return result;
}
}  // namespace

extern "C" {

// Floating-point operations of one round of either.
int operations() {
  return 2 * kSums * int(sizeof(V) / sizeof(float));
}

// Everything in registers: the processor's peak.
float registers(long rounds, float factor) {
  V sums[kSums], f = factor - V{};
  for (int i = 0; i < kSums; ++i) sums[i] = float(i) - V{};
  for (long k = 0; k < rounds; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * f + f;
  }
  return total(sums);
}

// As the kernels do it: a vector of weights times single pixels, both from the first-level cache.
float broadcast(long rounds, float factor) {
  static float pixels[kPixels + kSums * 16], weights[kWeights * 16];
  for (float& pixel : pixels) pixel = factor;
  for (float& weight : weights) weight = factor;
  V sums[kSums] = {};
  for (long k = 0; k < rounds; ++k) {
    const V weight = load(weights + k % kWeights * 16);
    const float* x = pixels + k % kPixels;
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] += weight * x[i * 16];
  }
  return total(sums);
}

}  // extern "C"
