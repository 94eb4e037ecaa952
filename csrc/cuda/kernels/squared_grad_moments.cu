// How squared_grad's moments are dealt to blocks, and their launch.
#include "cuda/kernels/squared_grad_moments.cuh"

namespace resgrow {
namespace {

int width_of(Type type) {
  return type == Type::float64 ? 2 : type == Type::float32 ? 4 : 8;
}

bool divides(Int width, const void* p, Int size, Int a, Int b) {
  return reinterpret_cast<unsigned long long>(p) % 16 == 0 && size % width == 0 && a % width == 0 &&
         b % width == 0;
}

// Whether 16 bytes can be read at once.
bool whole_vectors(const SquaredGradMoments& a) {
  const Int width = width_of(a.type);
  if (a.channels_side_by_side) {
    return divides(width, a.grad, a.channels, a.grad_sample, a.grad_position) &&
           divides(width, a.x, a.channels, a.x_sample, a.x_position);
  }
  return divides(width, a.grad, a.positions, a.grad_sample, a.grad_channel) &&
         divides(width, a.x, a.positions, a.x_sample, a.x_channel);
}

int power_above(Int size, int most) {
  int power = 1;
  while (power < size && power < most) power *= 2;
  return power;
}

ChannelPlan channel_plan(const SquaredGradMoments& a, int vector) {
  ChannelPlan plan{};
  plan.lanes = power_above((a.channels + vector - 1) / vector, 32);
  // Four positions per thread at least before samples are shared.
  plan.along = power_above((a.positions + kFlight - 1) / kFlight, kThreads / plan.lanes);
  return plan;
}

// Of one sample, or of as many as a block takes at once.
struct Blocks {
  Int wide, samples;
};

Blocks blocks_of(const SquaredGradMoments& a) {
  const int vector = whole_vectors(a) ? width_of(a.type) : 1;
  if (!a.channels_side_by_side) {
    constexpr int kWarps = kThreads / 32;
    return {(a.channels + kWarps - 1) / kWarps, 1};
  }
  const ChannelPlan plan = channel_plan(a, vector);
  const Int wide = Int(plan.lanes) * vector;
  return {(a.channels + wide - 1) / wide, kThreads / (plan.lanes * plan.along)};
}

// Two rounds of two blocks per multiprocessor, where there are samples enough.
int parts_of(const SquaredGradMoments& a) {
  const Blocks blocks = blocks_of(a);
  const Int wanted = kSquaredGradProcessors * 4 / blocks.wide + 1;
  const Int most = (a.samples + blocks.samples - 1) / blocks.samples;
  return static_cast<int>(wanted < most ? wanted : most);
}

template <class T, int VECTOR, int SUMS>
Status run(const SquaredGradMoments& a, Stream stream) {
  const int parts = parts_of(a);
  const dim3 grid(static_cast<unsigned>(blocks_of(a).wide), parts);
  const Deal deal{a.samples / parts, a.samples % parts};
  if (!a.channels_side_by_side) {
    return launch(&moments_positions<T, VECTOR, SUMS>, grid, dim3(kThreads), 0, stream, a, deal);
  }
  const size_t shared = sizeof(typename SumOf<T>::type) * kThreads * VECTOR * SUMS;
  return launch(&moments_channels<T, VECTOR, SUMS>, grid, dim3(kThreads), shared, stream, a, deal,
                channel_plan(a, VECTOR));
}

template <class T, int VECTOR>
Status run_sums(const SquaredGradMoments& a, Stream stream) {
  return a.x ? run<T, VECTOR, 2>(a, stream) : run<T, VECTOR, 1>(a, stream);
}

template <class T>
Status run_type(const SquaredGradMoments& a, Stream stream) {
  const Status status =
      whole_vectors(a) ? run_sums<T, 16 / int(sizeof(T))>(a, stream) : run_sums<T, 1>(a, stream);
  if (status != 0) return status;
  using A = typename SumOf<T>::type;
  constexpr int kAcross = kThreads / kWays;
  const dim3 grid(static_cast<unsigned>((a.channels + kAcross - 1) / kAcross), a.x ? 2 : 1);
  return launch(&moments_finish<A>, grid, dim3(kThreads), kThreads * sizeof(A), stream, a,
                parts_of(a));
}

}  // namespace

Int squared_grad_moments_workspace(const SquaredGradMoments& a) {
  return Int(parts_of(a)) * a.channels * (a.x ? 2 : 1) * (a.type == Type::float64 ? 8 : 4);
}

Status squared_grad_moments(const SquaredGradMoments& a, Stream stream) {
  return with_type(a.type, [&](auto zero) { return run_type<decltype(zero)>(a, stream); });
}

}  // namespace resgrow
