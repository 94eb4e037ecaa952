// select: the workspace, its first kernel, and the launchers of scores in memory.
#include "cuda/kernels/select_launch.cuh"

namespace resgrow {
namespace {

struct SelectTable {
  SelectTensor tensors[kSelectTable];
  int from, count;
};

static_assert(sizeof(SelectTable) + sizeof(SelectWork) <= 4096, "what a kernel's parameters hold");

// Copies descriptions of tensors from the parameters, which a CUDA graph keeps. The first of these
// launches also prepares the workspace.
RESGROW_KERNEL(kSelectThreads) void select_prepare(SelectWork work, SelectTable table) {
  const int thread = threadIdx.x;
  if (thread < table.count) work.table[table.from + thread] = table.tensors[thread];
  if (table.from > 0) return;
  for (int bin = thread; bin < kSelectBins; bin += kSelectThreads) work.histogram[bin] = 0;
  if (thread == 0) {
    *work.state = {};
    work.state->nan = kSelectNoNan;
    work.state->rank = work.rank;
    work.state->left = work.key_bits;
  }
}

template <class T>
RESGROW_KERNEL(32)
void select_write(SelectWork work, T* out) {
  using Ord = Order<typename Lanes<T>::Value>;
  const SelectState& s = *work.state;
  if (threadIdx.x > 0) return;
  *out = Lanes<T>::from(s.nan != kSelectNoNan ? Ord::nan()
                                              : Ord::value(static_cast<typename Ord::Key>(s.key)));
}

SelectLaunches launches(const SelectCall& call) {
  return call.obd ? select_launches_obd(call.type) : select_launches_of<Stored>(call.type);
}

SelectPlan plan(const SelectCall& call) {
  return plan_select(call, launches(call).key_bytes);
}

template <class T>
Status write_threshold(const SelectPlan& plan, void* out, Stream stream) {
  return launch(&select_write<T>, dim3(1), dim3(32), 0, stream, plan.work, static_cast<T*>(out));
}

}  // namespace

SelectPlan plan_select(const SelectCall& call, int key_bytes) {
  SelectPlan plan{};
  // Two blocks per multiprocessor keep 64 KB of loads on their way; few items are spread thinly.
  const Int wanted = (Int{call.items} + 3) / 4, most = 2 * Int{call.processors};
  plan.blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  const Int warps = Int{plan.blocks} * kSelectWarps;
  SelectWork& work = plan.work;
  work.rank = static_cast<U64>(call.k);
  work.size = call.size;
  work.items = call.items;
  work.tensors = call.tensors;
  work.key_bits = 8 * key_bytes;
  work.damping = call.damping;
  // Every warp may leave its last page half empty.
  if (call.sample > 0) {
    work.pages = static_cast<unsigned>((call.between + kSelectPage - 1) / kSelectPage + warps);
  }
  const auto part = [&](Int bytes) {
    void* start = static_cast<char*>(call.workspace) + plan.bytes;
    plan.bytes += (bytes + 255) / 256 * 256;
    return start;
  };
  work.state = static_cast<SelectState*>(part(sizeof(SelectState)));
  work.histogram = static_cast<U64*>(part(kSelectBins * sizeof(U64)));
  work.table = static_cast<SelectTensor*>(part(call.tensors * Int{sizeof(SelectTensor)}));
  work.runs = static_cast<U64*>(part((warps + 1) * Int{sizeof(U64)}));
  work.ties = static_cast<unsigned*>(part(call.items * Int{sizeof(unsigned)}));
  work.candidates = part(Int{work.pages} * kSelectPage * key_bytes);
  if (call.masks) work.places = static_cast<U64*>(part(Int{work.pages} * kSelectPage * 8));
  return plan;
}

Int select_workspace(const SelectCall& call) {
  return plan(call).bytes;
}

Status launch_select_describe(const SelectCall& call, const SelectTensor* tensors, int from,
                              int count, Stream stream) {
  SelectTable table;
  table.from = from;
  table.count = count;
  for (int i = 0; i < count; ++i) table.tensors[i] = tensors[i];
  return launch(&select_prepare, dim3(1), dim3(kSelectThreads), 0, stream, plan(call).work, table);
}

Status launch_select_rank(const SelectCall& call, Stream stream) {
  return launches(call).rank(call, plan(call), stream);
}

Status launch_select_threshold(const SelectCall& call, void* out, Stream stream) {
  switch (call.type) {
    case Type::float64:
      return write_threshold<double>(plan(call), out, stream);
    case Type::bfloat16:
      return write_threshold<BFloat16>(plan(call), out, stream);
    case Type::float16:
      return write_threshold<Half>(plan(call), out, stream);
    default:
      return write_threshold<float>(plan(call), out, stream);
  }
}

Status launch_select_masks(const SelectCall& call, Int drop, Stream stream) {
  return launches(call).masks(plan(call), drop, stream);
}

}  // namespace resgrow
