// select on CPU: exact ranks over many tensors at once, and masks from them.
//
// The rank of a small sample brackets the score that is sought; one pass counts what lies below the
// bracket and copies out the little that lies inside. Few scores, and those whose sample misled,
// are ranked by radix: histograms of one digit of the keys after the other. Both count exactly, so
// that results depend neither on the sample nor on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <vector>

#include "checks/select.h"
#include "cpu/isa.h"

namespace resgrow {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSample = 1 << 14;
constexpr int64_t kSampled = 1 << 18;  // from how many scores on a sample pays

// A piece of one tensor: what one kernel call looks at.
struct Chunk {
  const char* scores;
  int64_t size;
  int64_t tensor;
  int64_t offset;  // of its first score in the tensor
};

struct Scores {
  const char* op;
  const SelectKernels* kernels;
  std::vector<at::Tensor> tensors;  // contiguous
  std::vector<Chunk> chunks;
  int64_t size = 0;
  bool derived = false;  // copied from others, in which NaN is looked for

  int64_t itemsize() const { return kernels->key_bits / 8; }

  void add(const char* scores, int64_t numel, int64_t tensor) {
    size += numel;
    for (int64_t start = 0; start < numel; start += kChunk) {
      chunks.push_back(
          {scores + start * itemsize(), std::min(kChunk, numel - start), tensor, start});
    }
  }
};

// Of tensors that have passed the checks.
Scores scores_of(const char* op, at::TensorList tensors) {
  const auto dtype = tensors[0].scalar_type();
  const KernelTable& table = resgrow::kernels();
  Scores scores{op, dtype == at::kFloat    ? &table.select_float
                    : dtype == at::kDouble ? &table.select_double
                                           : &table.select_bfloat16};
  for (size_t i = 0; i < tensors.size(); ++i) {
    scores.tensors.push_back(tensors[i].contiguous());
    scores.add(static_cast<const char*>(scores.tensors[i].const_data_ptr()), tensors[i].numel(), i);
  }
  return scores;
}

// The first tensor that holds NaN, whichever thread meets one first.
class FirstNan {
 public:
  explicit FirstNan(const Scores& scores)
      : scores_(scores), tensors_(scores.tensors.size()), first_(tensors_) {}

  void report(int64_t tensor) {
    int64_t first = first_.load();
    while (tensor < first && !first_.compare_exchange_weak(first, tensor)) {
    }
  }

  void check() const { check_select_nan(scores_.op, first_, tensors_); }

 private:
  const Scores& scores_;
  const int64_t tensors_;
  std::atomic<int64_t> first_;
};

// How many of the scores with the digit's prefix have each value of the digit.
std::vector<int64_t> histogram(const Scores& scores, SelectDigit digit) {
  constexpr int64_t flush = int64_t(1) << 31;  // scores that a kernel's 32-bit counts can take
  std::vector<int64_t> counts(kSelectBins);
  std::mutex mutex;
  FirstNan first_nan(scores);
  at::parallel_for(0, scores.chunks.size(), 1, [&](int64_t begin, int64_t end) {
    std::vector<unsigned> copies(kSelectCopies * kSelectStride);
    int64_t pending = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      if (scores.kernels->histogram(chunk.scores, chunk.size, digit, copies.data())) {
        first_nan.report(chunk.tensor);
      }
      pending += chunk.size;
      if (pending < flush && i + 1 < end) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t copy = 0; copy < kSelectCopies; ++copy) {
        for (int64_t bin = 0; bin < kSelectBins; ++bin)
          counts[bin] += copies[copy * kSelectStride + bin];
      }
      std::fill(copies.begin(), copies.end(), 0);
      pending = 0;
    }
  });
  if (!scores.derived) first_nan.check();
  return counts;
}

struct Rank {
  SelectKey key = 0;  // of the k-th smallest score
  int64_t below = 0;  // scores with a smaller key
  int64_t equal = 0;  // scores with this key
};

// 1 <= k <= scores.size.
Rank radix_rank(const Scores& scores, int64_t k) {
  Rank found;
  for (int shift = scores.kernels->key_bits; shift > 0;) {
    const int bits = std::min(shift, kSelectDigitBits);
    shift -= bits;
    const std::vector<int64_t> counts = histogram(scores, {found.key, shift, bits});
    int64_t bin = 0;
    for (; found.below + counts[bin] < k; ++bin) found.below += counts[bin];
    found.key = found.key << bits | static_cast<SelectKey>(bin);
    found.equal = counts[bin];
  }
  return found;
}

Scores like(const Scores& scores, const at::Tensor& values, int64_t size) {
  Scores result{scores.op, scores.kernels};
  result.derived = true;
  result.tensors.push_back(values);
  result.add(static_cast<const char*>(values.const_data_ptr()), size, 0);
  return result;
}

// One score from each of `size` equal stretches, at a place that no period of the data follows.
Scores sample(const Scores& scores, int64_t size) {
  const int64_t itemsize = scores.itemsize(), stretch = scores.size / size;
  at::Tensor values = at::empty({size}, scores.tensors[0].options());
  char* target = static_cast<char*>(values.mutable_data_ptr());
  uint64_t random = 0;
  size_t chunk = 0;
  int64_t first = 0;  // position of the chunk's first score
  for (int64_t i = 0; i < size; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    const int64_t position = i * stretch + static_cast<int64_t>((random >> 33) % stretch);
    while (position - first >= scores.chunks[chunk].size) first += scores.chunks[chunk++].size;
    const char* source = scores.chunks[chunk].scores + (position - first) * itemsize;
    std::copy_n(source, itemsize, target + i * itemsize);
  }
  return like(scores, values, size);
}

struct Partition {
  SelectCounts counts{};
  Scores between;
  bool complete = true;  // false: more lay between than `between` had room for
};

Partition partition(const Scores& scores, SelectKey lower, SelectKey upper) {
  const int64_t itemsize = scores.itemsize(), room = scores.size / 8;
  at::Tensor between = at::empty({room}, scores.tensors[0].options());
  char* target = static_cast<char*>(between.mutable_data_ptr());
  Partition result;
  std::mutex mutex;
  FirstNan first_nan(scores);
  at::parallel_for(0, scores.chunks.size(), 1, [&](int64_t begin, int64_t end) {
    std::vector<char> found(kChunk * itemsize);
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      SelectCounts counts{};
      if (scores.kernels->partition(chunk.scores, chunk.size, lower, upper, found.data(),
                                    &counts)) {
        first_nan.report(chunk.tensor);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      if (result.counts.between + counts.between <= room) {
        std::copy_n(found.data(), counts.between * itemsize,
                    target + result.counts.between * itemsize);
      } else {
        result.complete = false;
      }
      result.counts.below_lower += counts.below_lower;
      result.counts.to_lower += counts.to_lower;
      result.counts.between += counts.between;
      result.counts.to_upper += counts.to_upper;
    }
  });
  first_nan.check();
  result.between = like(scores, between, std::min<int64_t>(result.counts.between, room));
  return result;
}

// 1 <= k <= scores.size.
Rank rank(const Scores& scores, int64_t k) {
  if (scores.size < kSampled) return radix_rank(scores, k);
  // A sample's rank is off by more than 4 sqrt(size) / 2 once in 16,000 times at the median, where
  // that is likeliest; then all scores are ranked by radix.
  const Scores drawn = sample(scores, kSample);
  const double middle = static_cast<double>(k) / scores.size * kSample;
  const double margin = 2 * std::sqrt(static_cast<double>(kSample));
  const auto from = std::llround(middle - margin), to = std::llround(middle + margin);
  const SelectKey lower = from < 1 ? 0 : radix_rank(drawn, from).key;
  const SelectKey upper = to > kSample ? ~SelectKey{0} : radix_rank(drawn, to).key;
  const Partition parts = partition(scores, lower, upper);
  const SelectCounts& counts = parts.counts;
  const int64_t below_upper = counts.to_lower + counts.between;
  if (k <= counts.below_lower || k > counts.to_upper || !parts.complete)
    return radix_rank(scores, k);
  if (k <= counts.to_lower)
    return {lower, counts.below_lower, counts.to_lower - counts.below_lower};
  if (k > below_upper) return {upper, below_upper, counts.to_upper - below_upper};
  Rank found = rank(parts.between, k - counts.to_lower);
  found.below += counts.to_lower;
  return found;
}

// keep = True above the bound, and at it after the first `drop` of the scores that equal it.
void write_masks(const Scores& scores, const Rank& bound, int64_t drop,
                 std::vector<at::Tensor>& keep) {
  const SelectKernels& kernels = *scores.kernels;
  const int64_t chunks = scores.chunks.size();
  std::vector<bool*> data;
  for (at::Tensor& mask : keep) data.push_back(mask.mutable_data_ptr<bool>());
  std::vector<int64_t> ties(chunks);
  const auto target = [&](const Chunk& chunk) { return data[chunk.tensor] + chunk.offset; };
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = scores.chunks[i];
      ties[i] = kernels.mask(chunk.scores, chunk.size, bound.key, false, target(chunk));
    }
  });
  if (drop == bound.equal) return;
  // Some ties stay: chunks that hold any are written again from where the drop ends.
  std::vector<int64_t> before(chunks);
  for (int64_t i = 1; i < chunks; ++i) before[i] = before[i - 1] + ties[i - 1];
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (before[i] + ties[i] <= drop || ties[i] == 0) continue;
      const Chunk& chunk = scores.chunks[i];
      if (before[i] >= drop) {
        kernels.mask(chunk.scores, chunk.size, bound.key, true, target(chunk));
      } else {
        kernels.mask_ties(chunk.scores, chunk.size, bound.key, drop - before[i], target(chunk));
      }
    }
  });
}

std::vector<at::Tensor> masks(const Scores& scores, int64_t k) {
  // With k = 0 the bound is the smallest score and all its ties stay; it is sought for the NaN
  // check.
  const Rank bound = scores.size > 0 ? rank(scores, std::max<int64_t>(k, 1)) : Rank{};
  std::vector<at::Tensor> keep;
  for (const at::Tensor& tensor : scores.tensors) {
    keep.push_back(at::empty(tensor.sizes(), tensor.options().dtype(at::kBool)));
  }
  write_masks(scores, bound, k - bound.below, keep);
  return keep;
}

at::Tensor select_threshold(at::TensorList tensors, int64_t k) {
  check_select_scores("select_threshold", tensors, k, 1);
  const Scores scores = scores_of("select_threshold", tensors);
  at::Tensor out = at::empty({}, tensors[0].options());
  scores.kernels->score(rank(scores, k).key, out.mutable_data_ptr());
  return out;
}

std::vector<at::Tensor> select_mask(at::TensorList tensors, int64_t k) {
  check_select_scores("select_mask", tensors, k, 0);
  return masks(scores_of("select_mask", tensors), k);
}

// The scores are written out, tensor by tensor: every pass over them is cheaper than their
// arithmetic would be.
std::vector<at::Tensor> select_mask_obd(at::TensorList weights, at::TensorList curvatures,
                                        double damping, int64_t k) {
  check_select_obd("select_mask_obd", weights, curvatures, damping, k);
  const auto dtype = weights[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  std::vector<at::Tensor> scores;
  for (size_t i = 0; i < weights.size(); ++i) {
    // Three roundings, as the reference has them: the CUDA kernels give the same bits.
    const at::Tensor damped = at::clamp_min(curvatures[i].to(dtype), 0).add_(damping).mul_(0.5);
    scores.push_back(damped.mul_(weights[i].to(dtype).square()));
  }
  return masks(scores_of("select_mask_obd", scores), k);
}

}  // namespace
}  // namespace resgrow

TORCH_LIBRARY_IMPL(resgrow, CPU, m) {
  m.impl("select_threshold", &resgrow::select_threshold);
  m.impl("select_mask", &resgrow::select_mask);
  m.impl("select_mask_obd", &resgrow::select_mask_obd);
}
